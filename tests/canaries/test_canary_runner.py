"""A run of a canary whose writes to the ledger fail."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from exporter.canaries.runs import CanaryRunner
from exporter.errors import LedgerError
from exporter.ledger import canary_runs
from exporter.ledger.clock import LedgerClock
from tests.canaries.scene import by_hand

NOW = 2_000_000_000


@pytest.mark.parametrize(
    ("due", "written", "found"), [(NOW, canary_runs.withdraw, None), (0, canary_runs.end, 1)]
)
async def test_that_a_call_was_not_placed_is_written_once_the_ledger_works(
    due: int, written: Callable[..., object], found: int | None
) -> None:
    failures, writes = [LedgerError("away"), LedgerError("away")], list[Callable[..., object]]()

    async def execute(statements: Callable[..., object], *_: object, **__: object) -> object:
        if statements is canary_runs.begin:
            return 1
        if failures:
            raise failures.pop()
        writes.append(statements)
        return True

    async def not_sent(_: object) -> None:
        return None

    runner = CanaryRunner(execute, LedgerClock(), retry=0.001)
    assert await runner.place(by_hand("weekly", 9), due, not_sent) == found
    assert writes == [written]
    assert not runner.placing
