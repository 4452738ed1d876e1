from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme
from click.testing import CliRunner

from exporter.cli.simulate import simulate
from tests import subprocesses

RUN = "from exporter.cli.simulate import simulate; simulate()"


@contextmanager
def running(*options: str) -> Iterator[tuple[subprocesses.Child, list[str]]]:
    with subprocesses.popen(
        *(sys.executable, "-W", "error", "-c", RUN, *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line.rstrip())
            if "DELETE" in line:
                break
        yield process, lines


@pytest.mark.parametrize(
    ("number", "host"), [(signal.SIGTERM, "127.0.0.1"), (signal.SIGINT, "[::1]")]
)
def test_it_says_where_it_listens_and_ends_as_asked(number: signal.Signals, host: str) -> None:
    with running("--listen", f"{host}:0", "--account", "a:b:c:7") as (process, lines):
        origin = lines[0].removeprefix("listening on ")
        assert origin.startswith(f"http://{host}:")
        assert lines[1] == f"base_url: {origin}/MainService.svc/json"
        assert lines[2] == f"balance_url: {origin}/MainService.svc/json"
        assert "  a: api_key=b secret_key=c (7 requests/s)" in lines
        query = "ApiKey=b&SecretKey=c&ReferenceId=505139D7-54F8-48A9-88FA-9460A78731DD"
        path = "/MainService.svc/json/GetSendStatus"
        with urllib.request.urlopen(f"{origin}{path}?{query}") as answer:
            assert answer.status == 200
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")


def test_https_on_every_interface_with_the_default_accounts(tmp_path: Path) -> None:
    certificate = trustme.CA().issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "cert.pem")
    with running("--listen=:0", f"--tls-cert-file={tmp_path / 'cert.pem'}") as (_, lines):
        assert lines[0].startswith("listening on https://127.0.0.1:")
        keys = "api_key=SIMULATED-API-KEY-MAIN secret_key=SIMULATED-SECRET-KEY-MAIN"
        assert f"  main: {keys} (20 requests/s)" in lines


def test_an_address_in_use_and_a_certificate_that_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(simulate, [f"--listen=127.0.0.1:{port}"])
    assert result.exit_code == 1
    assert result.output.startswith(f"Error: cannot listen on 127.0.0.1:{port}: ")
    assert result.output.count("\n") == 1
    result = CliRunner().invoke(simulate, ["--tls-cert-file=/nowhere"])
    assert result.exit_code == 1
    assert "cannot use the certificate /nowhere: No such file" in result.output
