"""When an exporter takes others for dead."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from exporter.errors import LedgerError
from exporter.ledger.sharing import Member
from exporter.metrics.catalogue import Catalogue
from exporter.replicas.replica import Replica


class Ledger:
    """Stands where `Sharing` does, at a time that is up to the test."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.down = False
        self.silent: list[float | None] = []

    def time(self) -> float:
        return self.now

    def beat(self, _: int, peers: str, held: int, silent: float | None, __: float) -> list[Member]:
        if self.down:
            raise LedgerError("down")
        self.silent.append(silent)
        return [Member(1, peers, held, True)]


async def _beats(replica: Replica, ledger: Ledger, seconds: float) -> None:
    end = ledger.now + seconds
    while ledger.now < end:
        if ledger.down:
            with pytest.raises(LedgerError):
                await replica._beat_in_time()
        else:
            await replica._beat_in_time()
        ledger.now += 1


@pytest.mark.parametrize(
    ("late", "silent"), [(0, [12, 12]), (2, [13, 12]), (5, [16, 12]), (8, [None, None])]
)
async def test_an_outage_is_no_silence(late: int, silent: list[float | None]) -> None:
    """By how much the beat is late that comes after it, the others may have been silent longer."""
    ledger = Ledger()
    stub: Any = SimpleNamespace(database=None, count=0)
    replica = Replica(stub, stub, {}, Catalogue(), 12)
    shared: Any = ledger
    replica._sharing = replica._loop = shared
    await _beats(replica, ledger, 20)
    assert ledger.silent == [None, None, None, None, 12]
    ledger.down = True
    await _beats(replica, ledger, late)
    ledger.down = False
    await _beats(replica, ledger, 5)
    assert ledger.silent[5:] == silent
