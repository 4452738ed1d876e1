"""Exporters that share a ledger on PostgreSQL: what polls cost, by how many there are.

An account is polled by one exporter, so there are several accounts. Calls appear in a file once
each exporter holds its share of the accounts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from benchmarks.processes import Exporter, configuration, provider
from benchmarks.provider import POLLS
from tests.databases import Server, postgresql

ACCOUNTS = tuple(f"account-{number}" for number in range(8))
REQUESTS = "esms_api_requests_total"
LEASES = "esms_account_lease"
CPU = "process_cpu_seconds_total"
TICKS = 100  # of the kernel, per second


class Run(NamedTuple):
    """What a run has cost; CPU in seconds."""

    seconds: float
    polls: float
    exporters: float
    server: float


def _server_cpu(server: Server) -> float:
    """Return the CPU seconds of a server, and of all processes that it has and had."""
    used = 0.0
    for found in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = found.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        if int(found.parent.name) == server.pid:
            used += sum(map(int, fields[11:15])) / TICKS
        elif int(fields[1]) == server.pid:
            used += sum(map(int, fields[11:13])) / TICKS
    return used


def _seen(exporters: Sequence[Exporter]) -> list[Mapping[str, float]]:
    return [exporter.totals() for exporter in exporters]


def _sum(seen: Sequence[Mapping[str, float]], sample: str) -> float:
    return sum(found.get(sample, 0.0) for found in seen)


def measure(server: Server, replicas: int, calls: int) -> Run:
    """Have calls polled to their end by a number of exporters."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = stack.enter_context(server.database()).replace("+psycopg", "")
        base_url = stack.enter_context(provider(None))
        config = configuration(folder, base_url, 0, ledger=url, accounts=ACCOUNTS)
        calls_file = folder / "calls.csv"
        with config.open("a") as file:
            file.write(f"\nwatch: {{files: ['{calls_file}']}}\n")
        calls_file.write_text("account,reference_id\n")
        exporters = [stack.enter_context(Exporter(config)) for _ in range(replicas)]
        for exporter in exporters:
            exporter.drain()
        while any(seen.get(LEASES, 0.0) * replicas != len(ACCOUNTS) for seen in _seen(exporters)):
            time.sleep(0.2)
        begun = _seen(exporters)
        server_begun = _server_cpu(server)
        rows = (f"{ACCOUNTS[number % len(ACCOUNTS)]},{number:036d}" for number in range(calls))
        new_file = folder / "new"
        new_file.write_text("\n".join(["account,reference_id", *rows, ""]))
        new_file.rename(calls_file)

        def until(share: float) -> tuple[list[Mapping[str, float]], float]:
            while _sum(seen := _seen(exporters), REQUESTS) < POLLS * calls * share:
                time.sleep(0.2)
            return seen, _server_cpu(server)

        (first, server_first), (last, server_last) = until(0.1), until(0.9)
        if _sum(first, REQUESTS) == _sum(last, REQUESTS):  # so few that all were polled at once
            first, server_first = begun, server_begun

        def grown(sample: str) -> float:
            return _sum(last, sample) - _sum(first, sample)

        return Run(
            last[0]["now"] - first[0]["now"],
            grown(REQUESTS),
            grown(CPU),
            server_last - server_first,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--calls", type=int, default=40_000)
    options = parser.parse_args()
    print(
        "| exporters | polls per second | CPU ms per poll | of it, PostgreSQL "
        "| CPU ms of PostgreSQL per finished call | cores used |\n|---|---|---|---|---|---|"
    )
    with postgresql("-c", "fsync=on") as server:
        for number in options.replicas:
            run = measure(server, number, options.calls)
            print(
                f"| {number} | {run.polls / run.seconds:,.0f} "
                f"| {(run.exporters + run.server) / run.polls * 1000:.3f} "
                f"| {run.server / run.polls * 1000:.3f} "
                f"| {POLLS * run.server / run.polls * 1000:.2f} "
                f"| {(run.exporters + run.server) / run.seconds:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
