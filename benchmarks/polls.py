"""CPU seconds per 1,000 polls of the whole exporter, beside a bare loop that asks the same."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from benchmarks.processes import (
    CONCURRENCY,
    Certificate,
    Exporter,
    configuration,
    provider,
    wait_until,
)
from benchmarks.provider import POLLS

REQUESTS = "esms_api_requests_total"
CPU = "process_cpu_seconds_total"


class Pair(NamedTuple):
    """CPU seconds per 1,000 requests, and requests per second."""

    bare: float
    exporter: float
    bare_rate: float
    exporter_rate: float


def _exporter(base_url: str, certificate: Certificate | None, calls: int) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as name:
        config = configuration(Path(name), base_url, calls)
        with Exporter(config, certificate.environ if certificate else None) as exporter:
            exporter.wait_until_ready()
            first = wait_until(exporter, REQUESTS, POLLS * calls * 0.1)
            last = wait_until(exporter, REQUESTS, POLLS * calls * 0.9)
            polls = last[REQUESTS] - first[REQUESTS]
            duration = last["now"] - first["now"]
            return (last[CPU] - first[CPU]) / polls * 1000, polls / duration


def _bare(base_url: str, certificate: Certificate | None, requests: int) -> tuple[float, float]:
    output = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.bare_loop"),
            f"{base_url}/GetSendStatus?ApiKey=k&SecretKey=s&ReferenceId=",
            *("--requests", str(requests), "--concurrency", str(CONCURRENCY)),
        ],
        env={**os.environ, **(certificate.environ if certificate else {})},
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    cpu, wall = map(float, output.split())
    return cpu / requests * 1000, requests / wall


def measure(certificate: Certificate | None, pairs: int, calls: int) -> list[Pair]:
    """Run exporter and bare loop in turns."""
    found = []
    for _ in range(pairs):
        with provider(certificate) as url:
            bare, bare_rate = _bare(url, certificate, POLLS * calls)
        with provider(certificate) as url:
            ours, rate = _exporter(url, certificate, calls)
        found.append(Pair(bare, ours, bare_rate, rate))
        print(f"  {found[-1]}", file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--calls", type=int, default=8_000)
    options = parser.parse_args()
    print("| | bare loop | exporter | ratio | polls per second |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for scheme, certificate in (("HTTP", None), ("HTTPS", Certificate(Path(folder)))):
            pairs = measure(certificate, options.pairs, options.calls)
            bare = statistics.median(pair.bare for pair in pairs)
            ours = statistics.median(pair.exporter for pair in pairs)
            ratio = statistics.median(pair.exporter / pair.bare for pair in pairs)
            rate = statistics.median(pair.exporter_rate for pair in pairs)
            print(f"| {scheme} | {bare:.4f} | {ours:.4f} | {ratio:.2f} | {rate:,.0f} |")


if __name__ == "__main__":
    main()
