"""Locked doors: TLS, users and sockets of systemd, on a real process."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import sys
from functools import partial
from pathlib import Path

import aiohttp
import bcrypt
import pytest
from click.testing import CliRunner

from exporter.cli import commands
from exporter.errors import ConfigError
from tests import subprocesses
from tests.e2e.processes import Exporter, configure
from tests.e2e.prometheus import every_kind
from tests.waiting import deadline
from tests.web.certificates import Certificates

HASH = bcrypt.hashpw(b"right", bcrypt.gensalt(10)).decode()
TLS = "tls_server_config: {cert_file: server.crt, key_file: server.key}\n"
NOWHERE = "http://127.0.0.1:9"


async def test_prometheus_comes_in_with_a_password_over_tls(
    tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    Certificates(tmp_path)
    web = tmp_path / "web.yml"
    web.write_text(f"{TLS}basic_auth_users:\n  prometheus: {HASH}\n")
    scrape = (
        f"    scheme: https\n    tls_config: {{ca_file: {tmp_path}/ca.crt}}\n"
        "    basic_auth: {username: prometheus, password: right}\n"
    )
    options = (f"--web.config.file={web}", "--web.open-probes", "--log.level=debug")
    async with Exporter(configure(tmp_path, NOWHERE), *options) as exporter:
        target = (await exporter.ready()).removeprefix("https://")
        async with every_kind(tmp_path / "servers", target, scrape) as servers:
            for prometheus in servers:
                await prometheus.until("up", lambda found: [*found.values()] == [1])
        context = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
        async with http.get(f"https://{target}/-/ready", ssl=context) as answer:
            assert answer.status == 200


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
async def test_sockets_of_systemd(tmp_path: Path, family: socket.AddressFamily) -> None:
    with socket.socket(family) as listener:
        listener.bind(("127.0.0.1", 0) if family == socket.AF_INET else f"{tmp_path}/web.sock")
        listener.listen()
        # As sd_listen_fds(3) has it: the process's own number, and descriptors from 3 on.
        command = (
            f"export LISTEN_PID=$$ LISTEN_FDS=1; exec {sys.executable} -m exporter "
            f"--config.file={configure(tmp_path, NOWHERE)} --web.systemd-socket"
            f" >{tmp_path}/log 2>&1"
        )
        process = await subprocesses.start(
            "sh", "-c", command, pass_fds=[3], preexec_fn=partial(os.dup2, listener.fileno(), 3)
        )
        path = listener.getsockname() if family == socket.AF_UNIX else None
        connector = aiohttp.UnixConnector(path) if path else aiohttp.TCPConnector()
        host = "x" if path else f"127.0.0.1:{listener.getsockname()[1]}"
        async with (
            deadline(),
            aiohttp.ClientSession(connector=connector) as http,
            http.get(f"http://{host}/-/healthy") as answer,
        ):
            assert answer.status == 200
        process.send_signal(signal.SIGTERM)
        async with deadline():
            assert await process.wait() == 0


async def test_no_image_of_the_memory_is_left(tmp_path: Path, http: aiohttp.ClientSession) -> None:
    config = configure(tmp_path, NOWHERE)
    async with Exporter(config, "--web.external-url=/esms") as exporter:
        url = await exporter.ready()
        async with http.get(f"{url}/esms/-/ready") as answer:
            assert answer.status == 200
        limits = Path(f"/proc/{exporter.running.pid}/limits").read_text().splitlines()  # noqa: ASYNC240 - of the kernel
        (core,) = [line for line in limits if line.startswith("Max core file size")]
        assert core.split()[4:6] == ["0", "0"]
        (files,) = [line for line in limits if line.startswith("Max open files")]
        assert files.split()[3] == files.split()[4]


def test_check_reads_the_web_configuration_too(tmp_path: Path) -> None:
    web, config = tmp_path / "web.yml", configure(tmp_path, NOWHERE)
    web.write_text(TLS)
    command = ["check", f"--config.file={config}", f"--web.config.file={web}"]
    bad = CliRunner().invoke(commands, command)
    assert isinstance(bad.exception, ConfigError)
    assert "server.crt cannot be read" in str(bad.exception)
    Certificates(tmp_path)
    good = CliRunner().invoke(commands, command)
    assert (good.exit_code, good.stderr) == (0, "")
    (tmp_path / "server.key").chmod(0o644)
    exposed = CliRunner().invoke(commands, command)
    told = f"{tmp_path}/server.key: is world-readable\n"
    assert (exposed.exit_code, exposed.stderr) == (0, told)
