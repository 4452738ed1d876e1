"""What the ledger's own thread costs: CPU time for each finished call and each changed state.

Groups are committed one after the other, as the exporter does it, to a fresh table and to one of a
million calls. The time is that of this process; a database server's own is not in it, the rows per
second are.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final, NamedTuple

from exporter.calls import CallState, Finished, Key, PollAgain, Result, Status
from exporter.ids import ReferenceId
from exporter.ledger.engine import open_database
from exporter.ledger.store import Store, StoreSettings
from exporter.ledger.types import BATCH_SIZE, NewCall, Observation, StoredCall

ACCOUNT: Final = "main"
FINISHED: Final = Finished(Result.SUCCESS, Status.ANSWERED, 13.0, Key.ONE)
QUEUED: Final = PollAgain(CallState.QUEUED)
STATES: Final = (CallState.NOT_FOUND, CallState.QUEUED, CallState.AWAITING_REPORT)


class Cost(NamedTuple):
    """CPU time of a row in µs, rows per second, and the longest commit in ms."""

    cpu: float
    rate: float
    longest: float


def add(store: Store, first: int, count: int) -> list[StoredCall]:
    """Take calls in, with numbers for their ids."""
    calls = [
        NewCall(ACCOUNT, ReferenceId(f"{number:036d}"), {"campaign": f"c{number % 10}"})
        for number in range(first, first + count)
    ]
    return store.watch(None, calls, time.time()).added


def fill(store: Store, first: int, count: int) -> None:
    """Add many calls."""
    for start in range(first, first + count, BATCH_SIZE):
        add(store, start, BATCH_SIZE)


def unfinished(store: Store) -> Iterator[StoredCall]:
    last = 0
    while chunk := store.unfinished(ACCOUNT, last):
        yield from chunk
        last = chunk[-1].call.id


def commit(
    store: Store, calls: Sequence[StoredCall], found: Finished | PollAgain, size: int
) -> Cost:
    """Commit what was found out about calls, in groups of `size`."""
    waits = []
    cpu, wall = time.process_time(), time.perf_counter()
    for start in range(0, len(calls), size):
        group = calls[start : start + size]
        began = time.perf_counter()
        store.commit([Observation(ACCOUNT, call, found, time.time()) for *_, call in group])
        waits.append(time.perf_counter() - began)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return Cost(cpu / len(calls) * 1e6, len(calls) / wall, max(waits) * 1e3)


def measure(store: Store, rows: int, rounds: int, per_round: int) -> None:
    """Print a line for each kind of change and size of group."""
    costs: dict[tuple[str, int], list[Cost]] = {}
    calls = unfinished(store)
    for _ in range(rounds):
        for size in (100, 1_000):
            chosen = list(islice(calls, per_round))
            for kind, found in (("state", QUEUED), ("finish", FINISHED)):
                costs.setdefault((kind, size), []).append(commit(store, chosen, found, size))
    for (kind, size), found_costs in costs.items():
        cpu, rate, longest = (
            statistics.median(column) for column in zip(*found_costs, strict=True)
        )
        print(f"| {rows:,} | {kind} | {size:,} | {cpu:.1f} | {rate:,.0f} | {longest:.1f} |")
        sys.stdout.flush()


def life(store: Store, first: int, count: int, size: int) -> float:
    """Add, poll and finish calls in groups of `size`; return the CPU time of a call in µs.

    They have the states of a call that takes a minute, as in `benchmarks.polls`.
    """
    cpu, calls = time.process_time(), list[StoredCall]()
    for start in range(first, first + count, size):
        calls += add(store, start, size)
    of_each = (time.process_time() - cpu) / count * 1e6
    for second, state in enumerate(STATES):
        of_each += commit(store, calls, PollAgain(state), size).cpu
        for *_, call in calls:  # as the poller does
            call.state, call.state_since = state, float(second)
    return of_each + commit(store, calls, FINISHED, size).cpu


def measure_history(store: Store, first: int, rounds: int, per_round: int) -> None:
    """Print what `ledger.history` adds to a call; both are measured in each round."""
    print("\n| group | CPU per call without history, µs | with | ratio | from | to |")
    print("|---|---|---|---|---|---|")
    for size in (100, 1_000):
        found: dict[bool, list[float]] = {False: [], True: []}
        for number in range(rounds):
            for history in (True, False) if number % 2 else (False, True):
                store.configure(StoreSettings(history=history))
                found[history].append(life(store, first, per_round, size))
                first += per_round + size
        ratios = [on / off for off, on in zip(*found.values(), strict=True)]
        off, on, ratio = map(statistics.median, (*found.values(), ratios))
        spread = f"{min(ratios):.2f} | {max(ratios):.2f}"
        print(f"| {size:,} | {off:.1f} | {on:.1f} | {ratio:.2f} | {spread} |")
        sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="of an empty database (default: a new SQLite file)")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the large table")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--per-round", type=int, default=4_000, help="calls that are committed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(open_database(options.url or f"sqlite:///{folder}/ledger.db"))
        print("| table | change | group | CPU per row, µs | rows per second | longest commit, ms |")
        print("|---|---|---|---|---|---|")
        # Two sizes of groups, each with calls of its own.
        few = 2 * options.rounds * options.per_round
        fill(store, 0, few)
        measure(store, few, options.rounds, options.per_round)
        fill(store, few, options.rows - few)
        measure(store, options.rows, options.rounds, options.per_round)
        measure_history(store, 10 * options.rows, options.rounds, options.per_round)
        store.database.close()


if __name__ == "__main__":
    main()
