"""What a user can get wrong: one line that says what to do, exit code 1, never a traceback.

What may be wrong in a configuration is tested in `tests/config`.
"""

from __future__ import annotations

import re
import socket
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from exporter.cli import commands as command_line
from exporter.ledger.engine import open_database
from tests.e2e import commands
from tests.e2e.processes import Exporter

GOOD = """\
accounts:
  - {name: main, api_key: key-0123456789, secret_key: secret-9876543210}
balance: {interval: 0}
ledger:
  url: sqlite:///{folder}/ledger.db
"""


async def run(folder: Path, *arguments: str) -> tuple[int, list[str]]:
    """Run a command that is to end by itself; returns its exit code and the lines it wrote."""
    done = await commands.run(folder, *arguments)
    text = done.output + done.errors
    assert "key-0123456789" not in text
    assert "secret-9876543210" not in text
    return done.code, text.splitlines()


def good(folder: Path) -> Path:
    path = folder / "config.yaml"
    path.write_text(GOOD.replace("{folder}", str(folder)))
    return path


async def test_every_problem_is_reported_at_once(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        """\
accounts:
  - {name: main, api_key: key-0123456789, secret_key: secret-9876543210, rate_limit: fast}
  - {name: main, api_key: "", secret_key_file: /no/such/file}
watch:
  calls:
    - {account: main, reference_id: Ab}
    - {account: main, reference_id: aB}
    - {account: other, reference_id: c}
polling: {interval: -5s}
"""
    )
    code, lines = await run(tmp_path, "check", f"--config.file={path}")
    assert code == 1
    text = "\n".join(lines)
    for expected in (
        r":2: accounts\[0\]\.rate_limit: ",
        r":3: accounts\[1\]\.api_key: ",
        r":3: accounts\[1\]\.secret_key_file: .*No such file",
        r":9: polling\.interval: ",
    ):
        assert re.search(expected, text), text


async def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    code, lines = await run(tmp_path, f"--config.file={tmp_path}/\udcff.yaml")
    assert (code, len(lines)) == (1, 1)
    assert "No such file" in lines[0]


def no_sqlite(path: Path) -> None:
    path.write_bytes(b"no database" * 100)


def foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t (x)")


def newer(path: Path) -> None:
    open_database(f"sqlite:///{path}").close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.execute("UPDATE compatibility SET oldest_user = '9998'")
        connection.commit()


def folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("prepare", "expected"),
    [
        (no_sqlite, "is not an SQLite database; name another file"),
        (foreign, "belongs to another program; name another database"),
        (newer, "was written by a newer esms-exporter .* upgrade this exporter"),
        (folder, "is a directory; name a file in it"),
    ],
)
async def test_a_ledger_that_cannot_be_used(
    prepare: Callable[[Path], None], expected: str, tmp_path: Path
) -> None:
    prepare(tmp_path / "ledger.db")
    code, lines = await run(
        tmp_path, f"--config.file={good(tmp_path)}", "--web.listen-address=127.0.0.1:0"
    )
    assert (code, len(lines)) == (1, 1), lines
    assert re.match(rf"esms-exporter: ledger {tmp_path}/ledger\.db: {expected}", lines[0])


async def test_a_ledger_that_another_exporter_uses(tmp_path: Path) -> None:
    async with Exporter(good(tmp_path)) as exporter:
        await exporter.ready()
        code, lines = await run(
            tmp_path, f"--config.file={good(tmp_path)}", "--web.listen-address=127.0.0.1:0"
        )
    assert (code, len(lines)) == (1, 1), lines
    assert "is in use by another esms-exporter; stop it" in lines[0]


async def test_an_address_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, lines = await run(
            tmp_path, f"--config.file={good(tmp_path)}", f"--web.listen-address={address}"
        )
    assert (code, len(lines)) == (1, 1), lines
    assert lines[0] == (
        f"esms-exporter: cannot listen on {address}: address already in use; "
        "stop the program that uses it, or choose another --web.listen-address"
    )


@pytest.mark.parametrize(
    "option",
    [
        "--web.listen-address=here",
        "--web.listen-address=::1:80",
        "--web.telemetry-path=metrics",
        "--web.telemetry-path=/",
        "--web.telemetry-path=/-/ready",
        "--web.telemetry-path=/api/v1/metrics",
        "--web.telemetry-path=/callback/x",
        "--web.telemetry-path=/{x",
        "--log.level=loud",
        "--log.format=xml",
        "--no-such-option",
    ],
)
def test_wrong_usage(option: str, tmp_path: Path) -> None:
    ended = CliRunner().invoke(command_line, [f"--config.file={good(tmp_path)}", option])
    assert ended.exit_code == 2
    assert ended.output.splitlines()[-1].startswith("Error: ")


async def test_wrong_usage_of_a_process(tmp_path: Path) -> None:
    code, lines = await run(tmp_path, "run")
    assert code == 2
    assert lines[-1].startswith("Error: ")


async def test_the_good_file_is_good(tmp_path: Path) -> None:
    assert await run(tmp_path, "check", f"--config.file={good(tmp_path)}") == (
        0,
        [f"{tmp_path}/config.yaml: good: 1 accounts, 0 calls"],
    )
