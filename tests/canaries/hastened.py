"""Runs the exporter with canary calls that are due every few seconds, and that end it where told.

    python hastened.py EVERY_SECONDS KILL_AT ARGUMENTS_OF_THE_EXPORTER...

The bounds of the configuration stay: `every: 10m` is what comes round sooner. KILL_AT is `nowhere`,
`intent` (committed, nothing sent), `answer` (sent, nothing written) or `accepted` (written).
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from exporter.account import Account
from exporter.canaries import canaries, runs, schedule
from exporter.canaries.runs import CanaryRunner
from exporter.canaries.schedule import Every
from exporter.cli import main


def hasten(seconds: float) -> None:
    for module in (canaries, runs):
        vars(module)["schedule_of"] = lambda _: Every(seconds)
    schedule._LEAST_GRACE = 1.0
    canaries.LOOK_EVERY = 0.1  # type: ignore[misc]
    canaries._READ_EVERY = 0.3
    canaries._SPARE = 1.0
    canaries.WAIT_FOR_TURN = 2.0  # type: ignore[misc]


def kill_at(point: str) -> None:
    def killed(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    async def killed_async(*_: Any, **__: Any) -> None:
        killed()

    placed = CanaryRunner._placed

    async def accepted(*args: Any) -> None:
        await placed(*args)
        killed()

    match point:
        case "intent":
            Account.place = killed_async  # type: ignore[method-assign]
        case "answer":
            CanaryRunner._placed = killed_async  # type: ignore[method-assign]
        case "accepted":
            CanaryRunner._placed = accepted  # type: ignore[method-assign,assignment]


if __name__ == "__main__":
    hasten(float(sys.argv.pop(1)))
    kill_at(sys.argv.pop(1))
    main()
