"""Measure exports: seconds, memory and the size of the file, by format.

The calls have ten label sets. With `--url`, the ledger is in that empty database.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import insert

from exporter.calls import Key, Result, Status
from exporter.ledger.engine import open_database
from exporter.ledger.schema import accounts, calls, label_sets

_DAY = 86_400.0
_ENDINGS = (
    (Result.SUCCESS, Status.ANSWERED, Key.ONE),
    (Result.SUCCESS, Status.ANSWERED, None),
    (Result.SUCCESS, Status.NO_ANSWER, None),
    (Result.FAILURE, Status.NONE, None),
)


def fill(url: str, count: int, days: float) -> None:
    """Write finished calls to an empty ledger."""
    with closing(open_database(url)) as database, database.begin() as connection:
        connection.execute(insert(accounts).values(id=1, name="main"))
        sets = [{"id": n, "labels": f'{{"campaign":"c{n}"}}'} for n in range(1, 11)]
        connection.execute(insert(label_sets), sets)
        rows = _rows(count, days, time.time())
        while batch := list(islice(rows, 10_000)):
            connection.execute(insert(calls), batch)


def _rows(count: int, days: float, now: float) -> Iterator[dict[str, Any]]:
    chance = random.Random(1)
    for number in range(count):
        result, status, key = chance.choice(_ENDINGS)
        ended = now - chance.random() * days * _DAY
        name = f"{chance.getrandbits(128):032X}"
        yield {
            "account_id": 1,
            "normalized_id": name.lower(),
            "reference_id": name,
            "label_set_id": number % 10 + 1,
            "state": "new",
            "state_since": 0.0,
            "result": result.value,
            "status": status.value,
            "key": key and key.value,
            "duration": chance.uniform(1, 90) if status is Status.ANSWERED else None,
            "first_watched": ended - chance.uniform(5, 90),
            "finished_at": ended,
        }


def measure(config: Path, output: str, file: Path) -> tuple[float, float, float]:
    """Run an export; return its seconds, those of its CPU time, and its largest memory in MB."""
    command = [sys.executable, "-m", "exporter", "export", f"--config.file={config}"]
    command += [f"--format={output}", f"--output-file={file}"]
    began = time.perf_counter()
    process = os.posix_spawn(sys.executable, command, os.environ)
    _, status, used = os.wait4(process, 0)
    assert status == 0, command
    seconds = time.perf_counter() - began
    return seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--days", type=float, default=30)
    parser.add_argument("--url", help="of an empty database; by default, a file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        url = options.url or f"sqlite:///{folder}/ledger.db"
        fill(url, options.calls, options.days)
        config = folder / "config.yaml"
        config.write_text(
            "accounts: [{name: main, api_key: k, secret_key: s}]\n"
            f"watch: {{labels: [campaign]}}\nledger: {{url: '{url}'}}\n"
        )
        print("| format | seconds | CPU, s | peak memory, MB | file, MB |")
        print("|---" * 5 + "|")
        for output in ("csv", "jsonl", "openmetrics"):
            file = folder / output
            seconds, cpu, memory = measure(config, output, file)
            size = file.stat().st_size / 1024**2
            print(f"| `{output}` | {seconds:.1f} | {cpu:.1f} | {memory:.0f} | {size:,.1f} |")


if __name__ == "__main__":
    main()
