"""Many watched calls: start-up, memory, scrapes, and how long the event loop stands still.

Without `--full-ledger`, the first run takes the calls in from the configuration, and the second
starts on the ledger that the first left behind. With it, the ledger is filled before the start, and
the other run is one with a thousandth of the calls: the difference is what a call takes. All of
them poll, and are scraped from the moment the server answers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.full_ledger import fill
from benchmarks.processes import Exporter, configuration, provider, totals

REQUESTS = "esms_api_requests_total"


class Run(NamedTuple):
    """Seconds, MB, requests per second, and milliseconds."""

    first_poll: float
    ready: float
    memory: float
    most_memory: float
    rate: float
    scrape_p50: float
    scrape_p99: float
    gap: float
    stood: float
    gap_cpu: float
    over_50_ms: float


class Scraper(threading.Thread):
    """Scrapes again and again, from the moment the server answers, until it is told to stop."""

    def __init__(self, exporter: Exporter) -> None:
        super().__init__(daemon=True)
        self._exporter = exporter
        self._end = threading.Event()
        self.times: list[float] = []  # milliseconds
        self.first_poll = 0.0  # when a scrape first showed one
        self.start()

    def run(self) -> None:
        """Scrape every 50 ms."""
        while not self._end.wait(0.05):
            start = time.perf_counter()
            text = self._exporter.scrape()
            self.times.append((time.perf_counter() - start) * 1000)
            if not self.first_poll and totals(text).get(REQUESTS):
                self.first_poll = time.perf_counter()

    def end(self) -> None:
        """Return once it has ended."""
        self._end.set()
        self.join()


def _measure(config: Path, folder: Path, seconds: float) -> Run:
    pulse = folder / "pulse.json"
    began = time.perf_counter()
    environ = {"HEARTBEAT": str(pulse)}
    with Exporter(config, environ, module="benchmarks.heartbeat") as exporter:
        scraper = Scraper(exporter)
        exporter.wait_until_ready()
        ready = time.perf_counter() - began
        first = exporter.totals()
        time.sleep(seconds)
        last = exporter.totals()
        memory, most = exporter.memory(), exporter.memory("VmHWM")
        scraper.end()
        exporter.end()
    seen = json.loads(pulse.read_text())
    rate = (last[REQUESTS] - first[REQUESTS]) / (last["now"] - first["now"])
    percentiles = statistics.quantiles(scraper.times, n=100)
    return Run(
        scraper.first_poll - began, ready, memory, most, rate, percentiles[49], percentiles[98],
        seen["wall_ms"], seen["stood_ms"], seen["cpu_ms"], seen["over_50_ms"],
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--full-ledger", action="store_true", help="do without the first run")
    parser.add_argument("--interval", default="100ms", help="between polls of a call")
    parser.add_argument("--seconds", type=float, default=20, help="of each run, once all is loaded")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    few = options.calls // 1_000
    starts = [f"{few:,} calls", f"{options.calls:,} calls"]
    if not options.full_ledger:
        starts = ["from the file", "from the ledger"]
    found: dict[str, list[Run]] = {start: [] for start in starts}
    for _ in range(options.runs):
        with provider(None, endless=True) as url, tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            given = 0 if options.full_ledger else options.calls
            config = configuration(folder, url, given, options.interval)
            for start, calls in zip(starts, (few, options.calls), strict=True):
                if options.full_ledger:
                    for file in folder.glob("ledger.db*"):
                        file.unlink()
                    fill(folder / "ledger.db", calls, time.time())
                found[start].append(_measure(config, folder, options.seconds))
    print(
        "| start | first poll, s | ready, s | memory, MB | peak, MB | polls/s | scrape p50, ms "
        "| p99, ms | longest gap, ms | without waiting, ms | own CPU, ms | gaps over 50 ms |\n"
        + "|---" * 12
        + "|"
    )
    for start, runs in found.items():
        medians = (statistics.median(column) for column in zip(*runs, strict=True))
        print(f"| {start} | " + " | ".join(f"{median:,.1f}" for median in medians) + " |")
    if options.full_ledger:
        less, more = ([run.memory for run in runs] for runs in found.values())
        each = (statistics.median(more) - statistics.median(less)) * 1024**2
        print(f"\nBytes of memory for each call: {each / (options.calls - few):,.0f}")


if __name__ == "__main__":
    main()
