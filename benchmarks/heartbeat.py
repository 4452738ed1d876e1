"""The exporter with a pulse: how long its event loop stands still.

Runs `esms-exporter` with the arguments it is given, and a task that wants to run every 5 ms. At the
end (SIGTERM) it writes to the file `HEARTBEAT` what it saw, in milliseconds: the longest gap, the
longest without the time that the loop's thread waited for a processor, because other programs had
them all, and the longest time within one gap that this thread was computing. The rest is what the
exporter's other threads took. The first `HEARTBEAT_SKIPS` beats do not count.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Coroutine
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

from exporter import cli
from exporter.cli import run as command

_EVERY = 0.005
_FIRST = 1 + int(os.environ.get("HEARTBEAT_SKIPS", "0"))


class Gap(NamedTuple):
    """Between two beats, in seconds: how long, and what the loop's thread did in that time."""

    wall: float
    waited: float
    computed: float


async def _beat(gaps: list[Gap]) -> None:
    with _scheduled() as file:
        last = _clocks(file)
        while True:
            await asyncio.sleep(_EVERY)
            now = _clocks(file)
            wall, waited, computed = (b - a for a, b in zip(last, now, strict=True))
            gaps.append(Gap(wall - _EVERY, waited, computed))
            last = now


def _scheduled() -> FileIO:
    return FileIO("/proc/thread-self/schedstat")


def _clocks(file: FileIO) -> tuple[float, float, float]:
    file.seek(0)
    waited = int(file.read(100).split()[1]) / 1e9
    return time.perf_counter(), waited, time.thread_time()


async def _with_pulse(work: Coroutine[Any, Any, None]) -> None:  # Any: as asyncio has it
    gaps: list[Gap] = []
    pulse = asyncio.create_task(_beat(gaps))
    try:
        await work
    finally:
        pulse.cancel()
        gaps = gaps[_FIRST:]
        found = {
            "wall_ms": max(gap.wall for gap in gaps) * 1000,
            "stood_ms": max(gap.wall - gap.waited for gap in gaps) * 1000,
            "cpu_ms": max(gap.computed for gap in gaps) * 1000,
            "over_50_ms": sum(gap.wall - gap.waited > 0.05 for gap in gaps),
        }
        await asyncio.to_thread(Path(os.environ["HEARTBEAT"]).write_text, json.dumps(found))


def main() -> None:
    run = command.run_process  # the one place where the command line starts the loop
    command.run_process = lambda work: run(_with_pulse(work))
    cli.main()


if __name__ == "__main__":
    main()
