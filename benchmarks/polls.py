"""CPU seconds per 1,000 polls of the whole exporter, beside others that ask the same."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks.peers import BARE, Cost, Missing, Peer, peers
from benchmarks.processes import Certificate, Exporter, configuration, provider, wait_until
from benchmarks.provider import POLLS

REQUESTS = "esms_api_requests_total"
CPU = "process_cpu_seconds_total"
OURS = "exporter, whole process"


def exporter(certificate: Certificate | None, calls: int) -> Cost:
    """Have calls polled until they have finished: the last poll of a call costs the most."""
    environ = certificate.environ if certificate else None
    with (
        tempfile.TemporaryDirectory() as name,
        provider(certificate) as url,
        Exporter(configuration(Path(name), url, calls), environ) as running,
    ):
        running.wait_until_ready()
        first = running.totals()
        last = wait_until(running, REQUESTS, POLLS * calls)
    polls = last[REQUESTS] - first[REQUESTS]
    cpu = (last[CPU] - first[CPU]) / polls * 1000
    return Cost(cpu, polls / (last["now"] - first["now"]))


def measure(
    peers: Mapping[str, Peer | Missing], certificate: Certificate | None, rounds: int
) -> dict[str, list[Cost]]:
    """Run all of them in turns."""
    found: dict[str, list[Cost]] = {}
    for _ in range(rounds):
        for name, peer in peers.items():
            if not isinstance(peer, Missing):
                found.setdefault(name, []).append(peer(certificate))
                print(f"  {name}: {found[name][-1]}", file=sys.stderr)
    return found


def table(peers: Mapping[str, Peer | Missing], found: Mapping[str, list[Cost]]) -> None:
    print("| | CPU s per 1,000 | times the bare loop | from | to | requests per second |")
    print("|---|---|---|---|---|---|")
    for name, peer in peers.items():
        if isinstance(peer, Missing):
            print(f"| {name} | not measured: {peer} | | | | |")
            continue
        costs = found[name]
        ratios = [cost.cpu / bare.cpu for cost, bare in zip(costs, found[BARE], strict=True)]
        cpu, rate = (statistics.median(column) for column in zip(*costs, strict=True))
        ratio = statistics.median(ratios)
        print(
            f"| {name} | {cpu:.4f} | {ratio:.2f} | {min(ratios):.2f} | {max(ratios):.2f} "
            f"| {rate:,.0f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=5_000, help="that are polled five times each")
    parser.add_argument("--only", choices=("HTTP", "HTTPS"))
    parser.add_argument("--alone", action="store_true", help="only the exporter and the bare loop")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        others = dict(peers(Path(folder), POLLS * options.calls))
        if options.alone:
            others = {BARE: others[BARE]}
        ours: Peer = lambda certificate: exporter(certificate, options.calls)  # noqa: E731
        contestants = {BARE: others.pop(BARE), OURS: ours, **others}
        for scheme, certificate in (("HTTP", None), ("HTTPS", Certificate(Path(folder)))):
            if options.only in (None, scheme):
                found = measure(contestants, certificate, options.rounds)
                print(f"\n{scheme}, medians of {options.rounds} rounds:\n")
                table(contestants, found)


if __name__ == "__main__":
    main()
