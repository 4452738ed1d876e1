"""A series for each call: what a scrape of a hundred thousand costs, and what the loop feels of it.

First in one process: rendering, compressing, and the same series with prometheus-client's registry
and renderer. Then an exporter that watches as many calls, polls on, and is scraped with gzip and
without: how long a scrape takes, and how long the event loop stands still.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from benchmarks.full_ledger import fill
from benchmarks.processes import Exporter, configuration, provider
from exporter.calls import CallState, ReferenceId, WatchedCall
from exporter.metrics.exposition import compress
from exporter.metrics.per_call import CallStates

STATES = tuple(CallState)


def _median(work: Callable[[], object], runs: int) -> float:
    """Return the CPU milliseconds of some work."""
    times = []
    for _ in range(runs):
        began = time.process_time()
        work()
        times.append((time.process_time() - began) * 1000)
    return statistics.median(times)


def _in_one_process(count: int, runs: int) -> None:
    calls = {
        row: WatchedCall(row, ReferenceId(f"{row:036d}"), float(row), STATES[row % len(STATES)])
        for row in range(count)
    }
    states = CallStates()
    states.configure(count)
    taken = states.candidates({"main": calls}, 0.0)
    assert taken
    registry = CollectorRegistry()
    gauge = Gauge(
        "esms_call_state", "Help.", ["account", "reference_id", "state"], registry=registry
    )
    for call in calls.values():
        gauge.labels("main", call.reference_id, call.state.value).set(1)
    states.configure(count // 2)
    half = states.candidates({"main": calls}, 0.0)
    assert half
    pieces = taken.render(openmetrics=False)
    size = sum(map(len, pieces)) / 1e6
    print("| of a scrape | CPU, ms |\n|---|---|")
    states.configure(count)
    for name, work in {
        "in the loop: to take down what may be shown": lambda: states.candidates(
            {"main": calls}, 0.0
        ),
        "in a thread: to render": lambda: taken.render(openmetrics=False),
        "the same of the newer half": lambda: half.render(openmetrics=False),
        f"in a thread: to compress {size:.1f} MB": lambda: compress(pieces),
        "prometheus-client, in the loop: to render": lambda: generate_latest(registry),
    }.items():
        print(f"| {name} | {_median(work, runs):.1f} |")


def _scrape(url: str, *, gzip: bool) -> float:
    headers = {"Accept-Encoding": "gzip"} if gzip else {}
    began = time.perf_counter()
    with urllib.request.urlopen(urllib.request.Request(f"{url}/metrics", headers=headers)) as it:
        it.read()
    return (time.perf_counter() - began) * 1000


def _of_an_exporter(count: int, scrapes: int, settle: float) -> None:
    print(
        "\n| series | scrapes | scrape p50, ms | p99, ms | longest gap, ms | without waiting, ms "
        "| of it own, ms |\n" + "|---" * 7 + "|"
    )
    for limit, gzip in ((1, False), (count, False), (count, True)):
        with provider(None, endless=True) as url, tempfile.TemporaryDirectory() as name:
            config, pulse = configuration(Path(name), url, 0, "5m"), Path(name) / "pulse.json"
            with config.open("a") as file:
                file.write(f"\nmetrics: {{per_call: {{enabled: true, limit: {limit}}}}}\n")
            fill(Path(name) / "ledger.db", count, time.time())
            environ = {"HEARTBEAT": str(pulse), "HEARTBEAT_SKIPS": f"{160 * settle:.0f}"}
            with Exporter(config, environ, module="benchmarks.heartbeat") as exporter:
                exporter.wait_until_ready()
                time.sleep(settle)
                times = []
                for _ in range(scrapes):
                    times.append(_scrape(exporter.url, gzip=gzip))
                    time.sleep(0.2)
                exporter.end()
            seen = json.loads(pulse.read_text())
        percentiles = statistics.quantiles(times, n=100)
        print(
            f"| {limit:,} | {'gzip' if gzip else 'plain'} | {percentiles[49]:.1f} "
            f"| {percentiles[98]:.1f} | {seen['wall_ms']:.1f} | {seen['stood_ms']:.1f} "
            f"| {seen['cpu_ms']:.1f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--scrapes", type=int, default=100)
    parser.add_argument("--settle", type=float, default=10, help="seconds before the first scrape")
    options = parser.parse_args()
    _in_one_process(options.calls, options.runs)
    _of_an_exporter(options.calls, options.scrapes, options.settle)


if __name__ == "__main__":
    main()
