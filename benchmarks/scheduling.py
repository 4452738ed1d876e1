"""What it costs to schedule a poll, by the number of watched calls: it is to be the same for all.

Calls are spread over five minutes, as `polling.max_interval` spreads them. A poll takes the first
that is due out of the schedule and puts it back in five minutes on, with some jitter.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import time

from exporter.calls import WatchedCall
from exporter.ids import ReferenceId
from exporter.polling.timing_wheel import TimingWheel

INTERVAL = 300.0


def _measure(calls: int, polls: int) -> float:
    """Return the CPU microseconds of a poll."""
    chance = random.Random(1)
    wheel = TimingWheel(lambda _: 0)
    for row in range(calls):
        call = WatchedCall(row, ReferenceId(f"{row:036d}"), 0.0)
        wheel.add(call, INTERVAL * chance.random())
    jitter = [INTERVAL * (0.9 + 0.2 * chance.random()) for _ in range(polls)]
    now = 0.0
    gc.collect()
    gc.freeze()  # as the exporter does
    began = time.process_time()
    for wait in jitter:
        while (found := wheel.pop(now)) is None:
            now = wheel.next_due() or now
        wheel.add(found[0], now + wait)
    return (time.process_time() - began) / polls * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--polls", type=int, default=200_000)
    parser.add_argument("--runs", type=int, default=5)
    sizes = [1_000, 10_000, 100_000, 1_000_000]
    parser.add_argument("--calls", type=int, nargs="+", default=sizes)
    options = parser.parse_args()
    found: dict[int, list[float]] = {size: [] for size in options.calls}
    for _ in range(options.runs):
        for size, times in found.items():
            times.append(_measure(size, options.polls))
    print("| calls | microseconds a poll | lowest | highest |\n" + "|---" * 4 + "|")
    for size, times in found.items():
        median, low, high = statistics.median(times), min(times), max(times)
        print(f"| {size:,} | {median:.2f} | {low:.2f} | {high:.2f} |")


if __name__ == "__main__":
    main()
