"""What the exporter is measured beside: other ways to ask the same, in processes of their own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote

from benchmarks.processes import CONCURRENCY, Certificate, provider

QUERY: Final = "/GetSendStatus?ApiKey=k&SecretKey=s&ReferenceId="
WARM_UP: Final = 1_000
"""Requests that loops send before they measure."""

_GO_LOOP: Final = Path(__file__).parent / "go"

_BLACKBOX: Final = """
modules:
  esms:
    prober: http
    timeout: 10s
    http:
      preferred_ip_protocol: ip4
      fail_if_body_not_matches_regexp: ['"CodeResponse" *: *"100"']
"""
_JSON_EXPORTER: Final = """
modules:
  esms:
    metrics:
      - {name: esms_send_status, help: SendStatus, path: '{ .SendStatus }'}
"""


class Cost(NamedTuple):
    """CPU seconds of the asking process per 1,000 requests, and requests per second."""

    cpu: float
    rate: float


class Missing(Exception):  # noqa: N818 - not an error
    """A peer is not installed; says what is missing."""


Peer = Callable[[Certificate | None], Cost]


def _loop(certificate: Certificate | None, requests: int, *command: str) -> Cost:
    """Run a program that asks the provider and prints CPU and wall seconds."""
    with provider(certificate) as url:
        output = subprocess.run(
            [part.replace("BASE", url + QUERY) for part in command],
            env={**os.environ, **(certificate.environ if certificate else {})},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
    cpu, wall = map(float, output.split())
    return Cost(cpu / requests * 1000, requests / wall)


def _module(name: str, *arguments: str, requests: int) -> Peer:
    options = ("--requests", str(requests), "--concurrency", str(CONCURRENCY))
    command = (sys.executable, "-m", f"benchmarks.{name}", *arguments, "BASE", *options)
    return lambda certificate: _loop(certificate, requests, *command)


def _requests(requests: int) -> Peer:
    if not find_spec("requests"):
        raise Missing("the package `requests` is not installed")
    return _module("plain_loops", "requests", requests=requests)


def _go(folder: Path, requests: int) -> Peer:
    go = shutil.which("go") or shutil.which("/usr/local/go/bin/go")
    if not go:
        raise Missing("`go` is not installed")
    program = str(folder / "loop")
    subprocess.run([go, "build", "-o", program, "."], cwd=_GO_LOOP, check=True)
    command = (program, "BASE", str(requests), str(CONCURRENCY))
    return lambda certificate: _loop(certificate, requests, *command)


def _prober(name: str, config: str, contains: str, requests: int) -> Peer:
    """Return an exporter that asks once for each probe; a bare loop drives it."""
    program = shutil.which(name)
    if not program:
        raise Missing(f"`{name}` is not installed")

    def measure(certificate: Certificate | None) -> Cost:
        # A probe knows one kind of answer: every call is under way.
        with (
            provider(certificate, endless=True) as url,
            _listening(program, config, certificate) as (pid, port),
        ):
            target = quote(url + QUERY, safe="")
            before, began = _cpu(pid), time.perf_counter()
            subprocess.run(
                [
                    *(sys.executable, "-m", "benchmarks.bare_loop"),
                    f"http://127.0.0.1:{port}/probe?module=esms&target={target}",
                    *("--requests", str(requests), "--contains", contains),
                ],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            sent = requests + WARM_UP
            return Cost((_cpu(pid) - before) / sent * 1000, sent / (time.perf_counter() - began))

    return measure


@contextmanager
def _listening(
    program: str, config: str, certificate: Certificate | None
) -> Iterator[tuple[int, int]]:
    """Run an exporter; yields its process and its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
        file.write(config)
        file.flush()
        with subprocess.Popen(
            [program, f"--config.file={file.name}", f"--web.listen-address=127.0.0.1:{port}"],
            env={**os.environ, **(certificate.environ if certificate else {})},
            stderr=subprocess.DEVNULL,
        ) as child:
            try:
                _wait_for(port)
                yield child.pid, port
            finally:
                child.kill()


def _wait_for(port: int) -> None:
    for _ in range(100):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit(f"nobody listens on port {port}")


def _cpu(pid: int) -> float:
    """Return the CPU seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


BARE: Final = "bare loop, tuned"


def peers(folder: Path, requests: int) -> Iterator[tuple[str, Peer | Missing]]:
    """Yield every peer, or what is missing of it; the dear ones send fewer requests."""
    makers: dict[str, Callable[[], Peer]] = {
        BARE: lambda: _module("bare_loop", requests=requests),
        "aiohttp, typical use": lambda: _module("plain_loops", "aiohttp", requests=requests // 2),
        "requests.Session": lambda: _requests(requests // 16),
        "Go net/http": lambda: _go(folder, requests),
        "blackbox_exporter": lambda: _prober(
            "prometheus-blackbox-exporter", _BLACKBOX, "probe_success 1", requests // 16
        ),
        "json_exporter": lambda: _prober(
            "json_exporter", _JSON_EXPORTER, "esms_send_status 7", requests // 16
        ),
    }
    for name, make in makers.items():
        try:
            yield name, make()
        except Missing as missing:
            yield name, missing
