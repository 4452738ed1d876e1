"""The processes of a benchmark: started on loopback, and stopped whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import trustme
from prometheus_client.parser import text_string_to_metric_families

CONCURRENCY = 64
BASE_PATH = "/MainService.svc/json"


@contextmanager
def process(*arguments: str, environ: Mapping[str, str] | None = None) -> Iterator[str]:
    """Run a Python module with a pipe for its first line of output, which is yielded."""
    with subprocess.Popen(
        [sys.executable, "-m", *arguments],
        stdout=subprocess.PIPE,
        env={**os.environ, **(environ or {})},
        text=True,
    ) as child:
        assert child.stdout
        try:
            yield child.stdout.readline().strip()
        finally:
            child.send_signal(signal.SIGKILL)


class Certificate:
    """A certificate for loopback, and the authority that exporter and peer are to trust."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        self.file = folder / "provider.pem"
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(self.file)
        trusted = folder / "authority.pem"
        authority.cert_pem.write_to_path(trusted)
        self.environ = {"SSL_CERT_FILE": str(trusted)}


@contextmanager
def provider(certificate: Certificate | None, *, endless: bool = False) -> Iterator[str]:
    """Run the cheap provider; yields its base URL."""
    options = ["--certificate", str(certificate.file)] if certificate else []
    options += ["--endless"] if endless else []
    with process("benchmarks.provider", *options) as port:
        yield f"{'https' if certificate else 'http'}://127.0.0.1:{port}{BASE_PATH}"


def configuration(
    folder: Path,
    base_url: str,
    calls: int,
    interval: str = "100ms",
    ledger: str = "",
    accounts: Sequence[str] = ("main",),
) -> Path:
    """Write a configuration; with the usual interval, it polls as fast as it can."""
    ledger = ledger or f"sqlite:///{folder}/ledger.db"
    path = folder / "config.yaml"
    lines = [
        "accounts:",
        *(
            f"  - {{name: {account}, api_key: k, secret_key: s, base_url: '{base_url}',"
            f" rate_limit: 100000, max_concurrency: {CONCURRENCY}}}"
            for account in accounts
        ),
        f"polling: {{pace: growing, interval: {interval}, max_interval: {interval}}}",
        "balance: {interval: 0}",
        f"ledger: {{url: '{ledger}'}}",
        *(["watch:", "  calls:"] if calls else []),
        *(f"    - '{number:036d}'" for number in range(calls)),
    ]
    path.write_text("\n".join(lines))
    return path


class Exporter:
    """A running exporter, seen from outside."""

    def __init__(
        self, config: Path, environ: Mapping[str, str] | None = None, module: str = "exporter"
    ) -> None:
        self._process = subprocess.Popen(  # the context manager ends it
            [
                *(sys.executable, "-m", module, "--config.file", str(config)),
                *("--web.listen-address", "127.0.0.1:0", "--log.level", "info"),
            ],
            stderr=subprocess.PIPE,
            env={**os.environ, **(environ or {})},
            text=True,
        )
        self.url = ""

    def __enter__(self) -> Self:
        self.url = self._field("listening", "addresses=")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def wait_until_ready(self) -> None:
        """Return once the calls are loaded and polled."""
        self._field("ready", "calls=")

    def totals(self) -> Mapping[str, float]:
        """Scrape; returns the sum of each sample's series, and `now`, the time in seconds."""
        text = self.scrape()
        return {**totals(text), "now": time.perf_counter()}

    def scrape(self) -> str:
        """Return the text of one scrape."""
        with urllib.request.urlopen(f"{self.url}/metrics") as answer:
            return str(answer.read(), "utf-8")

    def memory(self, kind: str = "VmRSS") -> float:
        """Return the resident memory, in MB; `VmHWM` is the most that it ever was."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith(kind))
        return int(line.split()[1]) / 1024

    def open_files(self) -> int:
        """Return how many files and sockets are open."""
        return len(list(Path(f"/proc/{self._process.pid}/fd").iterdir()))

    def threads(self) -> int:
        """Return how many threads there are."""
        return len(list(Path(f"/proc/{self._process.pid}/task").iterdir()))

    def drain(self) -> None:
        """Read its log from here on to no end: one that nobody reads would hold it up."""
        assert self._process.stderr
        reading = threading.Thread(target=deque, args=(self._process.stderr, 0), daemon=True)
        reading.start()

    def end(self) -> None:
        """Stop it in good order."""
        self._process.terminate()
        self._process.communicate(timeout=30)

    def _field(self, event: str, field: str) -> str:
        assert self._process.stderr
        for line in self._process.stderr:
            if f"event={event} " in line:
                return next(part[len(field) :] for part in line.split() if part.startswith(field))
        raise SystemExit("the exporter ended; run it by hand to see why")


def totals(text: str) -> dict[str, float]:
    """Return the sum of each sample's series."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def wait_until(exporter: Exporter, sample: str, value: float) -> Mapping[str, float]:
    """Scrape every 0.2 s until a sample has reached a value; returns that scrape."""
    while (found := exporter.totals())[sample] < value:
        time.sleep(0.2)
    return found
