"""Beats of an exporter, at times that are up to the test."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest

from exporter.calls import WatchedCall
from exporter.errors import LedgerError
from exporter.ids import reference_id
from exporter.ledger.records import Claimed, StoredCall
from exporter.ledger.sharing import Member
from exporter.metrics.catalogue import Catalogue
from exporter.replicas.replica import Replica


class Ledger:
    """Stands where `Sharing` does, at a time that is up to the test."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.down = False
        self.held = 0  # by the other exporter
        self.free = 0
        self.late: list[float | None] = []

    def time(self) -> float:
        return self.now

    def beat(self, _: int, peers: str, held: int, __: float, late: float | None) -> list[Member]:
        if self.down:
            raise LedgerError("down")
        self.late.append(late)
        return [Member(1, peers, held, True), Member(2, peers, self.held, True)]

    def claim(self, _: int, names: list[str], ended: list[int]) -> Claimed:
        del names, ended
        taken, self.free = min(1000, self.free), self.free - min(1000, self.free)
        self.now += 0.1
        call = WatchedCall(1, reference_id("any"), 0)
        return Claimed([StoredCall("main", 1, call)] * taken, {})

    def release(self, _: int, rows: Sequence[int]) -> None:
        self.now += len(rows) / 1000


class Poller:
    """Holds calls that are not asked for at the moment."""

    def __init__(self, calls: int) -> None:
        self.calls = {row: WatchedCall(row, reference_id(f"c{row}"), 0) for row in range(calls)}

    def idle_calls(self, most: int) -> list[WatchedCall]:
        return list(islice(self.calls.values(), most))

    def remove(self, row: int) -> None:
        del self.calls[row]

    def wake(self) -> None:
        pass


def _replica(ledger: Ledger, accounts: Any) -> Replica:
    count = sum(len(account.poller.calls) for account in accounts.values())
    stub: Any = SimpleNamespace(database=None, count=count, count_error=lambda: None)
    replica = Replica(stub, stub, accounts, Catalogue(), 12)
    shared: Any = ledger
    replica._sharing = replica._loop = shared
    replica._id = 1
    return replica


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
    ("seconds", "late"), [(0, [0, 0]), (2, [1, 0]), (5, [4, 0]), (8, [None, None])]
)
async def test_an_outage_is_no_silence(seconds: int, late: list[float | None]) -> None:
    """By how much the beat is late that comes after it, the others may have been silent longer."""
    ledger = Ledger()
    replica = _replica(ledger, {})
    await _beats(replica, ledger, 20)
    assert ledger.late == [None, None, None, None, 0]
    ledger.down = True
    await _beats(replica, ledger, seconds)
    ledger.down = False
    await _beats(replica, ledger, 5)
    assert ledger.late[5:] == late


async def test_it_beats_though_there_is_much_to_give_up() -> None:
    ledger, poller = Ledger(), Poller(20_000)
    replica = _replica(ledger, {"main": SimpleNamespace(poller=poller)})
    assert await replica._beat_in_time()
    beaten = ledger.now
    await replica._even_out()
    # A beat is due after four seconds, and a thousand calls take one.
    assert ledger.now - beaten == 4
    assert len(poller.calls) == 16_000
    assert await replica._beat_in_time()


async def test_what_the_others_leave_is_taken_over_at_the_next_look() -> None:
    ledger = Ledger()
    replica = _replica(ledger, {"main": SimpleNamespace(poller=Poller(0))})
    calls: Any = replica._calls

    def take_over(claimed: Claimed, within: float) -> None:
        assert within == 6
        calls.count += len(claimed.calls)

    calls.take_over = take_over
    ledger.held = calls.count = 5000
    ledger.free = 50_000
    assert await replica._beat_in_time()
    await replica._claim()
    assert calls.count == 6000
    ledger.now += 1
    await replica._claim()
    assert ledger.now >= replica._next_beat
    assert calls.count >= 30_000
    assert await replica._beat_in_time()
    await replica._claim()
    assert not ledger.free
