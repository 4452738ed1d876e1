from __future__ import annotations

import fcntl
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog

from exporter.logs import LAST_ERROR, STANDARD_ERROR, LogSink, configure_logging
from tests import subprocesses
from tests.waiting import DEADLINE


def logged(capfd: pytest.CaptureFixture[str]) -> str:
    assert STANDARD_ERROR.drain(DEADLINE)
    return capfd.readouterr().err


def test_logfmt(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "logfmt")
    log = structlog.get_logger("test")
    log.debug("not shown")
    log.info("an event", account="main", text='says "hi"\nand more', number=1.5, good=True)
    line = logged(capfd)
    assert line.count("\n") == 1
    timestamp, rest = line.split(" ", 1)
    assert timestamp.startswith("timestamp=2")
    assert timestamp.endswith("Z")
    assert rest == (
        'level=info event="an event" account=main text="says \\"hi\\"\\nand more" number=1.5 '
        "good=true\n"
    )


def test_json(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging("debug", "json")
    structlog.get_logger("test").debug("an event", account="main")
    line = json.loads(logged(capfd))
    assert line.pop("timestamp")
    assert line == {"level": "debug", "event": "an event", "account": "main"}


def test_the_last_error_is_remembered(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging("error", "logfmt")
    log, before = structlog.get_logger("test"), time.time()
    log.error("an error", problem="a secret")
    log.warning("a warning")
    assert LAST_ERROR.event == "an error"
    assert before <= LAST_ERROR.at <= time.time()
    assert "an error" in logged(capfd)


def test_what_libraries_log_is_told_without_its_text(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "logfmt")
    log = logging.getLogger("aiohttp.client")
    log.info("not shown")
    try:
        int("http://host/?ApiKey=k")
    except ValueError:
        log.exception("GET %s failed", "http://host/?ApiKey=k")
    log.warning("GET %s", "http://host/?ApiKey=k")
    first, second = logged(capfd).splitlines()
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
    assert 'event="uncaught exception" error=ValueError frames=' in ran.stderr
    assert "<string>:5" in ran.stderr
    assert "S3cr3t" not in ran.stderr + ran.stdout
    assert "Traceback" not in ran.stderr


def full_pipe() -> tuple[int, int]:
    """Return the ends of a pipe that takes no byte more."""
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 4096)
    os.write(write_end, b"." * 4095 + b"\n")
    return read_end, write_end


@pytest.mark.parametrize("blocking", [True, False])
def test_a_reader_that_stands_still_blocks_nothing(
    capfd: pytest.CaptureFixture[str], *, blocking: bool
) -> None:
    configure_logging("error", "logfmt")
    read_end, write_end = full_pipe()
    os.set_blocking(write_end, blocking)
    sink = LogSink(write_end)
    lines = [f"{number} " + "x" * 10_000 for number in range(1000)]
    for line in lines:
        sink.msg(line)
    assert sink.dropped > 0
    kept = len(lines) - sink.dropped
    with open(read_end, encoding="utf-8") as pipe:  # noqa: PTH123 - a descriptor
        pipe.readline()
        assert [pipe.readline() for _ in range(kept)] == [f"{line}\n" for line in lines[:kept]]
        sink.msg("after")
        assert pipe.readline() == "after\n"
        assert sink.drain(DEADLINE)
    os.close(write_end)
    assert f'event="log lines dropped" lines={sink.dropped}' in logged(capfd)


def unread() -> int:
    read_end, write_end = os.pipe()
    os.close(read_end)
    return write_end


@pytest.mark.parametrize(
    "broken",
    [unread, lambda: os.open("/dev/full", os.O_WRONLY), lambda: os.open("/dev/null", os.O_RDONLY)],
    ids=["EPIPE", "ENOSPC", "EBADF"],
)
def test_lines_that_cannot_be_written_are_counted_and_told_once(
    broken: Callable[[], int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    configure_logging("error", "logfmt")
    descriptor = broken()
    sink = LogSink(descriptor)
    for _ in range(3):
        sink.msg("lost")
    assert sink.drain(DEADLINE)
    assert sink.dropped == 3
    assert logged(capfd) == ""
    with (tmp_path / "log").open("wb") as file:
        os.dup2(file.fileno(), descriptor)
    for _ in range(2):
        sink.msg("written")
        assert sink.drain(DEADLINE)
    os.close(descriptor)
    assert sink.dropped == 3
    assert (tmp_path / "log").read_text() == "written\n" * 2
    told = logged(capfd)
    assert told.count('event="log lines dropped" lines=3') == told.count("\n") == 1
