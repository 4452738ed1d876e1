"""The command `health`, against real servers."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import bcrypt
import pytest
import pytest_asyncio
from click.testing import CliRunner, Result

from exporter.app import App
from exporter.cli import commands
from exporter.cli.health import get
from exporter.config import Config
from exporter.errors import RemoteExporterError
from exporter.sources.configuration import ConfigFile
from exporter.web.server import WebOptions, WebServer
from exporter.web.sockets import ListenAddress
from exporter.web.web_config import load_web_config
from tests import subprocesses
from tests.e2e.commands import contents
from tests.e2e.processes import Process, configure
from tests.peers import peer, response, says
from tests.ports import free_port
from tests.programs import program, unavailable
from tests.web.bench import TLS
from tests.web.certificates import Certificates

CLIENTS = ", client_auth_type: RequireAndVerifyClientCert, client_ca_file: ca.crt"
# The same in each worker of pytest-xdist, because it is part of the ids of tests.
HASH = bcrypt.hashpw(b"right", b"$2b$04$abcdefghijklmnopqrstuu").decode()
USERS = f"basic_auth_users: {{a: {HASH}}}\n"


@pytest_asyncio.fixture
async def service() -> AsyncIterator[App]:
    service = App(lambda: Config(accounts=()))
    yield service
    await service.stop()


async def health(*options: str) -> Result:
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy"), "http://127.0.0.1:9")
    return await asyncio.to_thread(
        CliRunner().invoke, commands, ["health", *options], env={**proxies, "NO_PROXY": ""}
    )


@pytest.mark.parametrize(
    ("host", "web", "file"),
    [
        ("127.0.0.1", "", ""),
        ("localhost", USERS, USERS),
        ("", "rate_limit: {interval: 1h, burst: 1}\n", ""),
        ("::1", f"{TLS}}}\n", f"{TLS}}}\n"),
        ("", f"{TLS}}}\n{USERS}", f"{TLS}}}\n"),
        ("", f"{TLS}{CLIENTS}}}\n", f"{TLS}}}\n"),
        ("", f"{TLS}{CLIENTS}, max_version: TLS12}}\n", f"{TLS}}}\n"),
        # What is in force may be older than the file.
        ("", f"{TLS}}}\n", "broken: yes"),
        ("", f"{TLS}}}\n", ""),
        ("127.0.0.1", "", f"{TLS}}}\n"),
    ],
)
async def test_every_listener_is_known(
    service: App, tmp_path: Path, host: str, web: str, file: str
) -> None:
    Certificates(tmp_path)
    path = tmp_path / "web.yml"
    path.write_text(web)
    address = ListenAddress(host, free_port())
    config = ConfigFile(path, load_web_config)
    options = WebOptions([address], config=config, route_prefix="/esms")
    server = WebServer(service, options)
    await server.start()
    asked = (f"--web.listen-address={address}", f"--web.config.file={path}", "--log.level=debug")
    path.write_text(file)
    for _ in range(2):
        assert (await health(*asked)).output.endswith("healthy\n")
    await server.stop()
    ended = await health(*asked)
    assert isinstance(ended.exception, RemoteExporterError)
    assert str(ended.exception) == f"{address}: no answer (Connection refused)"


async def test_something_else_that_answers_is_no_exporter() -> None:
    async with peer(says(response(b""))) as port:
        ended = await health(f"--web.listen-address=127.0.0.1:{port}")
    assert str(ended.exception) == f"127.0.0.1:{port}: another program responds at this address"


async def test_a_server_that_drips_is_no_exporter() -> None:
    async def drip(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"H")
            await writer.drain()
            await asyncio.sleep(0.01)

    async with peer(drip) as port:
        address = ListenAddress("127.0.0.1", port)
        with pytest.raises(RemoteExporterError, match=r"no answer \(TimeoutError\)"):
            await asyncio.to_thread(get, address, ("http",), timeout=0.5)


async def test_in_a_container_the_options_are_those_of_the_first_process(tmp_path: Path) -> None:
    unshare, nsenter = (program(name, "Debian's util-linux") for name in ("unshare", "nsenter"))
    isolated = (unshare, "--pid", "--fork", "--mount-proc", "--kill-child")
    if subprocesses.run(*isolated, "true").returncode:
        unavailable("needs namespaces: run it as root, outside of a container")
    started = tmp_path / "esms-exporter"
    started.write_text(f"#!{sys.executable}\nfrom exporter.cli import main\nmain()\n")
    started.chmod(0o755)
    environ = {"PYTHONPATH": os.pathsep.join(sys.path)}
    config = configure(tmp_path, "http://127.0.0.1:9")
    options = (f"--config.file={config}", f"--web.listen-address=127.0.0.1:{free_port()}")
    command = (*isolated, str(started), *options)
    async with Process(command, tmp_path / "log", environ) as exporter:
        await exporter.says("event=ready")
        (first,) = (
            pid
            for pid, what in subprocesses.descendants().items()
            if f"{started} --config" in what and "unshare" not in what
        )
        inside = (nsenter, f"--target={first}", "--pid", "--mount", "--", str(started))
        archive = tmp_path / "archive"
        for asked, said in (
            (["health"], "healthy"),
            (["diagnostics", f"--output={archive}"], f"{archive}: versions.json config.yaml"),
        ):
            ended = subprocesses.run(*inside, *asked, env={**os.environ, **environ})
            assert (ended.returncode, ended.stdout[: len(said)]) == (0, said), ended.stderr
        assert contents(archive).keys() >= {"ledger.json", "metrics.txt"}
        os.kill(first, signal.SIGTERM)
        await exporter.wait()
