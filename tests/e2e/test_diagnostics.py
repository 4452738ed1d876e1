"""The archive for bug reports, of exporters and ledgers in any state."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import sqlite3
import stat
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import bcrypt
import pytest
import yaml

import exporter as package
from exporter.cli.diagnostics import log_lines
from exporter.errors import ExporterError
from exporter.simulator import Plan, Simulator
from tests.databases import Server
from tests.e2e.commands import CONFIG, Command, contents, invoke, piped
from tests.e2e.processes import Exporter, configure, listed

ID = "505139D7-54F8-48A9-88FA-9460A78731DD"
DOWN = "--web.listen-address=127.0.0.1:9"


async def collected(folder: Path, *options: str) -> dict[str, str]:
    archive = folder / "found.tar.gz"
    archive.unlink(missing_ok=True)
    ended = await invoke(folder, "diagnostics", f"--output={archive}", *options)
    assert ended.code == 0, ended.errors
    found = contents(archive)
    assert ended.output == f"{archive}: {' '.join(found)}\n"
    assert ended.errors == found["problems.txt"]
    return found


@pytest.mark.parametrize("log_format", ["logfmt", "json"])
async def test_a_running_exporter(tmp_path: Path, simulator: Simulator, log_format: str) -> None:
    simulator.add_call("main", ID, Plan())
    call = listed(ID, campaign="0901888484")  # labels may hold anything
    config = configure(tmp_path, simulator, [call])
    web = ("--web.telemetry-path=/numbers", "--web.external-url=http://localhost/esms")
    options = ("--log.level=debug", f"--log.format={log_format}")
    async with Exporter(config, *web, *options) as exporter:
        url = await exporter.ready()
        await exporter.says("call updated")
        address = f"--web.listen-address={url.removeprefix('http://')}"
        log = config.with_suffix(".log")
        # As `docker compose logs` shows it, with lines of another program between.
        log = tmp_path / "log"
        lines = (f"exporter-1  | {line}\nGET /?ApiKey=x\n" for line in exporter.output.splitlines())
        log.write_text("".join(lines))
        found = await collected(tmp_path, CONFIG, address, *web, f"--log-file={log}")
    assert found.keys() == {
        *("versions.json", "config.yaml", "ledger.json", "metrics.txt", "log.txt", "problems.txt")
    }
    assert found["problems.txt"] == ""
    versions = json.loads(found["versions.json"])
    assert versions["esms-exporter"] == package.__version__
    assert versions["libraries"]["aiohttp"]
    assert yaml.safe_load(found["config.yaml"])["accounts"][0]["name"] == "main"
    ledger = json.loads(found["ledger.json"])
    assert (ledger["engine"], ledger["rows"]["calls"]) == ("sqlite", 1)
    assert ledger["bytes"] > 4096
    assert 'esms_account_authorized{account="main"} 1.0' in found["metrics.txt"]
    assert 'campaign="***"' in found["metrics.txt"]
    assert 'le="+Inf"' in found["metrics.txt"]
    assert "call updated" in found["log.txt"]
    everything = "".join(found.values()).lower()
    for hidden in (ID.lower(), "0901888484", "key-main", "secret-main", "apikey="):
        assert hidden not in everything


async def test_a_shared_ledger(tmp_path: Path, simulator: Simulator, server: Server) -> None:
    with server.database() as url:
        config = configure(
            tmp_path, simulator, [listed(ID)], ledger={"url": url.replace("+psycopg", "")}
        )
        empty = await collected(tmp_path, CONFIG, DOWN)
        assert "ledger: holds no ledger" in empty["problems.txt"]
        async with Exporter(config) as exporter:
            await exporter.ready()
            found = await collected(tmp_path, CONFIG, DOWN)
        ledger = json.loads(found["ledger.json"])
        assert (ledger["engine"], ledger["rows"]["calls"]) == ("postgresql", 1)
        assert ledger["bytes"] > 8192


def test_lines_of_other_programs_in_the_log() -> None:
    time, phone, mixed = "2025-03-14T07:32:20.123456Z", "84 901-888-484", f"90188848-4{ID[10:]}"
    log = (
        f"timestamp={time} level=info event=dialled to={phone} call={mixed} seconds=1.5\n"
        f'app: {{"timestamp": "{time}", "level": "info", "event": "{phone}", "to": 84901888484}}\n'
    )
    assert list(log_lines(io.BytesIO(log.encode()))) == [
        f"timestamp={time} level=info event=dialled to=*** call=*** seconds=1.5",
        f'{{"timestamp": "{time}", "level": "info", "event": "***", "to": ***}}',
    ]


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.iterdir()}


def _no_ledger(folder: Path) -> None:
    configure(folder, "http://127.0.0.1:9")


def _no_database(folder: Path) -> None:
    configure(folder, "http://127.0.0.1:9", ledger={"url": "postgresql://127.0.0.1:9/x"})


def _other_file(folder: Path) -> None:
    configure(folder, "http://127.0.0.1:9")
    (folder / "ledger.db").write_bytes(b"no database" * 100)


def _broken_config(folder: Path) -> None:
    (folder / "config.yaml").write_text("accounts: [{name: main, api_key: [S3cr3t]}]\nx: S3cr3t\n")


def _misplaced(folder: Path) -> None:
    configure(
        *(folder, "http://127.0.0.1:9"),
        accounts=[{"name": "main", "secret_key": "s", "S3cr3t": 1, "api_key_file": "S3cr3t is it"}],
    )


def _named_by_a_phone_number(folder: Path) -> None:
    configure(folder, "http://127.0.0.1:9", ledger={"url": f"sqlite:///{folder}/84901888484.db"})


def _no_config(folder: Path) -> None:
    assert not (folder / "config.yaml").exists()


@pytest.mark.parametrize(
    ("prepare", "problem", "missing"),
    [
        (_no_ledger, "ledger.json: ledger {folder}/ledger.db: cannot be opened", {"ledger.json"}),
        (_no_database, "ledger.json: ledger: refuses connections", {"ledger.json"}),
        (_other_file, "ledger.json: ledger {folder}/ledger.db: is not an SQLite", {"ledger.json"}),
        (_broken_config, "config.yaml:1: accounts[0].api_key: ", {"ledger.json"}),
        (_misplaced, ".api_key_file: the file *** cannot be read: No such file", {"ledger.json"}),
        (_misplaced, "accounts[0].?: unknown key", {"ledger.json"}),
        (_named_by_a_phone_number, "ledger {folder}/***.db: cannot", {"ledger.json"}),
        (_no_config, "config.yaml: cannot be read", {"ledger.json", "config.yaml"}),
    ],
)
async def test_what_cannot_be_had(
    tmp_path: Path, prepare: Callable[[Path], None], problem: str, missing: set[str]
) -> None:
    prepare(tmp_path)
    before = files(tmp_path)
    web = tmp_path / "web.yml"
    web.write_text("unknown: S3cr3t\n")
    found = await collected(tmp_path, CONFIG, DOWN, "--web.config.file=web.yml")
    assert problem.format(folder=tmp_path) in found["problems.txt"]
    assert "metrics.txt: 127.0.0.1:" in found["problems.txt"]
    assert "no answer (Connection refused)" in found["problems.txt"]
    assert "log.txt: pass the log" in found["problems.txt"]
    assert found.keys() == {"versions.json", "config.yaml", "ledger.json", "problems.txt"} - missing
    for hidden in ("S3cr3t", "84901888484"):
        assert hidden not in "".join(found.values())
    # Nothing is made or changed.
    after = files(tmp_path)
    assert {*after} - {*before} == {web, tmp_path / "found.tar.gz"}
    assert before.items() <= after.items()


async def test_a_locked_ledger_and_a_password(tmp_path: Path, simulator: Simulator) -> None:
    config = configure(tmp_path, simulator)
    web = tmp_path / "web.yml"
    users = f"basic_auth_users: {{a: {bcrypt.hashpw(b'right', bcrypt.gensalt(4)).decode()}}}\n"
    web.write_text(users)
    async with Exporter(config, f"--web.config.file={web}") as exporter:
        address = (await exporter.ready()).removeprefix("http://")
        options = (f"--web.listen-address={address}", "--web.config.file=web.yml")
        found = await collected(tmp_path, CONFIG, *options)
        expected = f"metrics.txt: {address}: refused with the HTTP status 401"
        assert expected in found["problems.txt"]
        assert users.rsplit(maxsplit=1)[-1] not in "".join(found.values())
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        found = await collected(tmp_path, CONFIG, DOWN)
    assert "is locked by another program" in found["problems.txt"]


async def test_a_log_that_cannot_be_read(tmp_path: Path) -> None:
    found = await collected(tmp_path, CONFIG, DOWN, "--log-file=/proc/self/mem")
    assert "log.txt: cannot be read: Input/output error" in found["problems.txt"]


async def test_where_the_archive_goes(tmp_path: Path) -> None:
    configure(tmp_path, "http://127.0.0.1:9")
    arguments = ("diagnostics", CONFIG, DOWN)
    with piped(tmp_path, *arguments, "--output=-") as (command, output):
        archive = await asyncio.to_thread(output.read)
    assert (await command.end()).code == 0
    full = os.open("/dev/full", os.O_WRONLY)
    command = Command(tmp_path, *arguments, "--output=-", output=full)
    os.close(full)
    ended = await command.end()
    assert ended.code == 1
    assert ended.errors.endswith("the output cannot be written: No space left on device\n")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        assert "esms-exporter-diagnostics/problems.txt" in tar.getnames()
    assert (await invoke(tmp_path, *arguments)).code == 0
    (made,) = files(tmp_path).keys() - {tmp_path / "config.yaml"}
    assert re.fullmatch(r"esms-exporter-diagnostics-\d{8}T\d{6}Z\.tar\.gz", made.name)
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    with pytest.raises(ExporterError, match="exists already; name another file"):
        await invoke(tmp_path, *arguments, f"--output={made}")
    assert (await invoke(tmp_path, "diagnostics")).code == 2
