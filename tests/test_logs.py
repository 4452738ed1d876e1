from __future__ import annotations

import json
import logging
import sys

import pytest
import structlog

from exporter.logs import configure_logging
from tests import subprocesses


def test_logfmt(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "logfmt")
    log = structlog.get_logger("test")
    log.debug("not shown")
    log.info("an event", account="main", text='says "hi"\nand more', number=1.5, good=True)
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    timestamp, rest = line.split(" ", 1)
    assert timestamp.startswith("timestamp=2")
    assert timestamp.endswith("Z")
    assert rest == (
        'level=info event="an event" account=main text="says \\"hi\\"\\nand more" number=1.5 '
        "good=true\n"
    )


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("debug", "json")
    structlog.get_logger("test").debug("an event", account="main")
    line = json.loads(capsys.readouterr().err)
    assert line.pop("timestamp")
    assert line == {"level": "debug", "event": "an event", "account": "main"}


def test_what_libraries_log_is_told_without_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "logfmt")
    log = logging.getLogger("aiohttp.client")
    log.info("not shown")
    try:
        int("http://host/?ApiKey=k")
    except ValueError:
        log.exception("GET %s failed", "http://host/?ApiKey=k")
    log.warning("GET %s", "http://host/?ApiKey=k")
    first, second = capsys.readouterr().err.splitlines()
    assert 'level=error event="library message"' in first
    assert "logger=aiohttp.client" in first
    assert "where=test_logs:" in first
    assert "error=ValueError" in first
    assert "level=warning" in second
    assert "ApiKey" not in first + second


@pytest.mark.parametrize(
    "crash",
    [
        "fail()",
        "import threading; thread = threading.Thread(target=fail); thread.start(); thread.join()",
        "type('T', (), {'__del__': lambda self: fail()})()",
        "import asyncio; asyncio.run(asyncio.to_thread(fail))",
    ],
)
def test_what_crashes_tells_where_and_not_what(crash: str) -> None:
    program = (
        "from exporter.logs import configure_logging\n"
        "configure_logging('info', 'logfmt')\n"
        "def fail():\n    key = 'S3cr3t'\n    raise ValueError(f'no such key: {key}')\n"
        f"{crash}\n"
    )
    ran = subprocesses.run(sys.executable, "-c", program)
    assert "event=crashed error=ValueError frames=" in ran.stderr
    assert "<string>:5" in ran.stderr
    assert "S3cr3t" not in ran.stderr + ran.stdout
    assert "Traceback" not in ran.stderr
