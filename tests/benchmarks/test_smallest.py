"""Every benchmark in its smallest form: it runs, and prints figures."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests import subprocesses

ROOT = Path(__file__).parents[2]

# Those that are run, with what makes them small, and how many rows of figures they print.
SMALLEST = {
    "callbacks --calls 3 --seconds 1 --scale 0.05": 4,
    "export --calls 100 --days 0.1": 3,
    "ledger --rows 200 --rounds 1 --per-round 20": 10,
    "notifications --rounds 1 --calls 20": 4,
    "pace --share 0.01": 34,
    "polls --rounds 1 --calls 40 --alone --only HTTPS": 2,
    "pushed --rate 20 --seconds 2": 1,
    "replicas --replicas 2 --calls 20": 1,
    "scheduling --polls 100 --runs 1 --calls 10 100": 2,
    "soak --minutes 0.1 --rate 20 --longest 0.5 --speed 20": 11,
    "watched --calls 1000 --seconds 1 --runs 1": 2,
    "watched --full-ledger --calls 2000 --seconds 1 --runs 1": 2,
}
# Parts of those, and what they are measured beside.
PARTS = {
    *("bare_loop", "full_ledger", "heartbeat", "lives", "peers", "plain_loops", "processes"),
    *("provider", "troubles", "virtual_time"),
}


def test_each_is_run_in_its_smallest_form() -> None:
    modules = {path.stem for path in (ROOT / "benchmarks").glob("[!_]*.py")}
    assert modules == {name.split()[0] for name in SMALLEST} | PARTS


@pytest.mark.parametrize("command", SMALLEST)
def test_it_prints_figures(command: str) -> None:
    ran = subprocesses.run(sys.executable, "-m", *f"benchmarks.{command}".split(), cwd=ROOT)
    # A machine that is too busy for the rate of a soak is no fault, and ends it with 1.
    assert ran.returncode == 0 or "; 0 lost or counted wrong" in ran.stdout, ran.stderr
    figures = [line for line in ran.stdout.splitlines() if re.search(r"[|:] [\d,.]*\d", line)]
    assert len(figures) >= SMALLEST[command], ran.stdout
