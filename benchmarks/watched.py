"""A hundred thousand watched calls: memory, scrapes, and how long the event loop stands still.

The first run takes the calls in from the configuration; the second starts on the ledger that the
first left behind. Both poll as fast as they can, while they are scraped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.processes import Exporter, configuration, provider

REQUESTS = "esms_api_requests_total"


class Run(NamedTuple):
    """Seconds, MB, requests per second, and milliseconds."""

    ready: float
    memory: float
    most_memory: float
    rate: float
    scrape_p50: float
    scrape_p99: float
    gap: float
    gap_cpu: float
    over_50_ms: int


def _measure(config: Path, folder: Path, scrapes: int) -> Run:
    pulse = folder / "pulse.json"
    began = time.perf_counter()
    environ = {"HEARTBEAT": str(pulse)}
    with Exporter(config, environ, module="benchmarks.heartbeat") as exporter:
        exporter.wait_until_ready()
        ready = time.perf_counter() - began
        first = exporter.totals()
        times = []
        for _ in range(scrapes):
            time.sleep(0.05)
            start = time.perf_counter()
            exporter.scrape()
            times.append((time.perf_counter() - start) * 1000)
        last = exporter.totals()
        memory, most = exporter.memory(), exporter.memory("VmHWM")
        exporter.end()
    seen = json.loads(pulse.read_text())
    rate = (last[REQUESTS] - first[REQUESTS]) / (last["now"] - first["now"])
    percentiles = statistics.quantiles(times, n=100)
    return Run(
        ready, memory, most, rate, percentiles[49], percentiles[98],
        seen["wall_ms"], seen["cpu_ms"], seen["over_50_ms"],
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--scrapes", type=int, default=300)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    print(
        "| start | ready, s | memory, MB | at most, MB | polls/s | scrape p50, ms | p99, ms "
        "| longest gap, ms | of it own, ms | gaps over 50 ms |\n" + "|---" * 10 + "|"
    )
    found: dict[str, list[Run]] = {"from the file": [], "from the ledger": []}
    for _ in range(options.runs):
        with provider(None, endless=True) as url, tempfile.TemporaryDirectory() as name:
            config = configuration(Path(name), url, options.calls)
            for runs in found.values():
                runs.append(_measure(config, Path(name), options.scrapes))
    for start, runs in found.items():
        medians = (statistics.median(column) for column in zip(*runs, strict=True))
        print(f"| {start} | " + " | ".join(f"{median:,.1f}" for median in medians) + " |")


if __name__ == "__main__":
    main()
