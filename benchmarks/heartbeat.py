"""The exporter with a pulse: how long its event loop stands still.

Runs `esms-exporter` with the arguments it is given, and a task that wants to run every 5 ms. At the
end (SIGTERM) it writes to the file `HEARTBEAT` what it saw, in milliseconds: the longest
gap, and the longest time within one gap that the loop's own thread was computing. The difference is
what other threads and other programs took.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from exporter import cli

_EVERY = 0.005


async def _beat(gaps: list[tuple[float, float]]) -> None:
    wall, cpu = time.perf_counter(), time.thread_time()
    while True:
        await asyncio.sleep(_EVERY)
        now, used = time.perf_counter(), time.thread_time()
        gaps.append((now - wall - _EVERY, used - cpu))
        wall, cpu = now, used


async def _with_pulse(work: Coroutine[Any, Any, None]) -> None:  # Any: as asyncio has it
    gaps: list[tuple[float, float]] = []
    pulse = asyncio.create_task(_beat(gaps))
    try:
        await work
    finally:
        pulse.cancel()
        gaps = gaps[1:]
        found = {
            "wall_ms": max(wall for wall, _ in gaps) * 1000,
            "cpu_ms": max(cpu for _, cpu in gaps) * 1000,
            "gaps": len(gaps),
            "over_50_ms": sum(wall > 0.05 for wall, _ in gaps),
        }
        await asyncio.to_thread(Path(os.environ["HEARTBEAT"]).write_text, json.dumps(found))


def main() -> None:
    run = cli._run  # noqa: SLF001 - the one place where the command line starts the loop
    cli._run = lambda work: run(_with_pulse(work))  # noqa: SLF001
    cli.main()


if __name__ == "__main__":
    main()
