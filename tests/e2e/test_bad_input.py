"""What a user can get wrong: one line that says what to do, exit code 1 or 2, no traceback.

What may be wrong in a configuration is tested in `tests/config`, and in a ledger in `tests/ledger`.
"""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from exporter.errors import ExporterError
from tests import subprocesses
from tests.e2e import commands
from tests.e2e.processes import configure

KEY, SECRET = "key-0123456789", "secret-9876543210"


async def run(folder: Path, *arguments: str) -> tuple[int, list[str]]:
    """Run a command that is to end by itself; returns its exit code and the lines it wrote."""
    done = await commands.run(folder, *arguments)
    text = done.output + done.errors
    assert KEY not in text
    assert SECRET not in text
    return done.code, text.splitlines()


def good(folder: Path) -> str:
    keys = {"api_key": KEY, "secret_key": SECRET}
    return f"--config.file={configure(folder, 'http://127.0.0.1:9', account=keys)}"


async def test_check_reports_every_problem_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        "accounts:\n"
        f"  - {{name: main, api_key: {KEY}, secret_key: {SECRET}, rate_limit: fast}}\n"
        '  - {name: main, api_key: "", secret_key_file: /no/such/file}\n'
        "polling: {interval: -5s}\n"
    )
    code, lines = await run(tmp_path, "check", f"--config.file={path}")
    assert code == 1
    for expected in (
        r":2: accounts\[0\]\.rate_limit: ",
        r":3: accounts\[1\]\.api_key: ",
        r":3: accounts\[1\]\.secret_key_file: .*No such file",
        r":4: polling\.interval: ",
    ):
        assert re.search(expected, "\n".join(lines)), lines
    assert await run(tmp_path, "check", good(tmp_path)) == (
        0,
        [f"{tmp_path}/config.yaml: good: 1 accounts, 0 calls"],
    )


async def test_what_it_does_not_start_with(tmp_path: Path) -> None:
    code, lines = await run(tmp_path, f"--config.file={tmp_path}/\udcff.yaml")
    assert (code, len(lines)) == (1, 1)
    assert "No such file" in lines[0]

    config = good(tmp_path)
    (tmp_path / "ledger.db").write_bytes(b"no database" * 100)
    code, lines = await run(tmp_path, config, "--web.listen-address=127.0.0.1:0")
    assert (code, len(lines)) == (1, 1), lines
    problem = f"ledger {tmp_path}/ledger.db: is not an SQLite database; name another file"
    assert lines[0].startswith(f"esms-exporter: {problem}")
    (tmp_path / "ledger.db").unlink()

    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = await run(tmp_path, config, f"--web.listen-address={address}")
    problem = f"esms-exporter: cannot listen on {address}: address already in use; "
    assert ended == (
        1,
        [f"{problem}stop the program that uses it, or choose another --web.listen-address"],
    )


def test_too_few_files_can_be_open() -> None:
    limited = ("sh", "-c", 'ulimit -n 10 && exec "$@"', "sh")
    ended = subprocesses.run(*limited, *subprocesses.ESMS_EXPORTER, "schema")
    problem = "esms-exporter: needs 64 open files; raise `ulimit -n` (10)\n"
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", problem)


async def test_the_address_for_callbacks(tmp_path: Path) -> None:
    configure(tmp_path, "http://127.0.0.1:1")
    command = ("callback-url", commands.CONFIG, "--url=https://x.example.com/esms")
    with pytest.raises(ExporterError, match="no account with a `callback_token`"):
        await commands.invoke(tmp_path, *command, "--account=main")
    configure(tmp_path, "http://127.0.0.1:1", account={"callback_token": "made-up/token"})
    # As it stands in the query of MakeCall*, which the provider decodes once.
    assert (await commands.invoke(tmp_path, *command)).output == (
        "https%3A%2F%2Fx.example.com%2Fesms%2Fcallback%2Fmain%2Fmade-up%252Ftoken\n"
    )
