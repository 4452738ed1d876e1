"""The ledger as the event loop sees it: groups, and what happens while it cannot be written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Self

import pytest
import pytest_asyncio
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from exporter.backoff import ExponentialBackoff
from exporter.calls import CallState, Finished, PollAgain, Result, Status
from exporter.config.databases import database_url
from exporter.errors import LedgerError
from exporter.ids import ReferenceId
from exporter.ledger.calls import list_sources
from exporter.ledger.clock import Clocks
from exporter.ledger.ledger import Ledger
from exporter.ledger.types import BATCH_SIZE, Committed, NewCall, Observation, StoredCall
from exporter.secrets import Secret
from tests.ledger.machine import Machine
from tests.waiting import deadline, until

BUSY = Finished(Result.SUCCESS, Status.BUSY)
QUEUED = PollAgain(CallState.QUEUED)


class Bench:
    """A ledger, and what it said was committed."""

    def __init__(self, clocks: Clocks | None = None, health_check: float = 5.0) -> None:
        self.commits: list[float] = []
        self.groups: list[list[Observation]] = []
        self.counted = 0.0
        soon = ExponentialBackoff(0.05, 30.0)
        self.ledger = Ledger(clocks, self.commits.append, soon, health_check)
        self.ledger.subscribe(self._committed)

    def _committed(self, group: Iterable[Observation], committed: Committed) -> None:
        self.groups.append(list(group))
        self.counted += len(committed.finished)

    @property
    def states(self) -> list[tuple[str, str]]:
        return [
            (observation.call.reference_id, type(observation.verdict).__name__)
            for group in self.groups
            for observation in group
        ]

    async def push(self, *names: str) -> list[StoredCall]:
        calls = [NewCall("main", ReferenceId(name), {}) for name in names]
        now, watch = self.ledger.clock.now(), self.ledger.store.watch
        batches = [calls[n : n + BATCH_SIZE] for n in range(0, len(calls), BATCH_SIZE)]
        return [one for b in batches for one in (await self.ledger.call(watch, None, b, now)).added]

    def observe(self, stored: StoredCall, found: Finished | PollAgain) -> None:
        self.ledger.record("main", stored.call, found, stored.call.first_watched + 1)

    @asynccontextmanager
    async def running(self, url: str) -> AsyncIterator[Self]:
        """Open the ledger, and commit until the end; then what is left."""
        await self.ledger.open(url)
        running = asyncio.create_task(self.ledger.run())
        yield self
        self.ledger.close_soon()
        async with deadline():
            await running
        await self.ledger.close()


@pytest_asyncio.fixture
async def bench(url: str) -> AsyncIterator[Bench]:
    async with Bench().running(url) as bench:
        yield bench


async def test_what_is_observed_at_the_same_time_is_one_group(bench: Bench) -> None:
    a, b, c = await bench.push("a", "b", "c")
    bench.observe(a, BUSY)
    bench.observe(b, QUEUED)
    await asyncio.sleep(0.02)
    bench.observe(c, BUSY)
    await until(lambda: bool(bench.groups))
    assert len(bench.groups) == 1
    assert sorted(bench.states) == [("a", "Finished"), ("b", "PollAgain"), ("c", "Finished")]
    assert bench.counted == 2
    assert len(bench.commits) == 1


async def test_a_state_that_has_not_changed_is_not_written(bench: Bench) -> None:
    (a,) = await bench.push("a")
    bench.observe(a, PollAgain(CallState.NEW))
    await asyncio.sleep(0.2)
    assert bench.groups == []
    # But one that goes back, while the other waits to be written, is.
    bench.observe(a, QUEUED)
    bench.observe(a, PollAgain(CallState.NEW))
    await until(lambda: bool(bench.groups))
    assert [group[0].verdict for group in bench.groups] == [PollAgain(CallState.NEW)]


@contextmanager
def broken(url: str) -> Iterator[None]:
    """Take away what every commit needs."""
    engine = create_engine(database_url(Secret(url)), poolclass=NullPool)
    with engine.begin() as other:
        other.exec_driver_sql("ALTER TABLE calls RENAME TO hidden")
    yield
    with engine.begin() as other:
        other.exec_driver_sql("ALTER TABLE hidden RENAME TO calls")


async def test_a_ledger_that_fails_delays_but_loses_nothing(bench: Bench, url: str) -> None:
    a, b, c = await bench.push("a", "b", "c")
    with broken(url):
        bench.observe(a, BUSY)
        bench.observe(b, QUEUED)
        await until(lambda: bench.ledger.problem is not None)
        # Newer states replace older ones, but nothing undoes a finish.
        bench.observe(a, QUEUED)
        bench.observe(b, BUSY)
        bench.observe(c, QUEUED)
        await until(lambda: bench.ledger.errors >= 2)
        assert bench.groups == []
        with pytest.raises(LedgerError, match="failed"):
            await bench.push("d")
    await until(lambda: bench.counted == 2)
    assert bench.ledger.problem is None
    assert {name: kind for name, kind in bench.states} == {  # noqa: C416 - the last one counts
        "a": "Finished",
        "b": "Finished",
        "c": "PollAgain",
    }


async def test_closing_writes_what_was_observed(url: str) -> None:
    async with Bench().running(url) as bench:
        for stored in await bench.push(*(f"c{number}" for number in range(BATCH_SIZE + 1))):
            bench.observe(stored, BUSY)
    assert [len(group) for group in bench.groups] == [BATCH_SIZE, 1]
    assert bench.counted == BATCH_SIZE + 1
    with pytest.raises(LedgerError, match="not open"):
        _ = bench.ledger.store


async def test_who_comes_while_it_is_closed_is_told(path: Path) -> None:
    ledger = Bench().ledger
    await ledger.open(f"sqlite:///{path}")
    closing = asyncio.create_task(ledger.close())
    await asyncio.sleep(0)
    with pytest.raises(LedgerError, match="not open"):
        await ledger.execute(list_sources)
    await closing


def put_another_in_its_place(path: Path) -> Path:
    aside = path.rename(path.with_name("aside.db"))
    path.touch()
    return aside


async def test_an_idle_ledger_is_looked_at(path: Path) -> None:
    async with Bench(health_check=0.05).running(f"sqlite:///{path}") as bench:
        aside = put_another_in_its_place(path)
        await until(lambda: bench.ledger.problem is not None)
        assert "was replaced by another file" in (bench.ledger.problem or "")
        await asyncio.to_thread(aside.rename, path)
        await until(lambda: bench.ledger.problem is None)
        assert bench.groups == []


@pytest.mark.parametrize("set_by", [4 * 86_400.0, -4 * 86_400.0])
async def test_a_clock_that_is_set_is_known_after_a_reboot_that_follows_at_once(
    path: Path, machine: Machine, set_by: float
) -> None:
    async with Bench(machine).running(f"sqlite:///{path}") as bench:
        for name in "ab":
            (stored,) = await bench.push(name)
            bench.observe(stored, BUSY)
            await until(lambda: len(bench.groups) == "ab".index(name) + 1)  # noqa: B023 - at once
        machine.pass_time(10.0)
        machine.wall += set_by
        began = bench.ledger.clock.now()
    machine.restart(after=10.0)
    async with Bench(machine).running(f"sqlite:///{path}") as again:
        # Where the clock went back, only that no time has passed can be told.
        assert again.ledger.clock.now() == pytest.approx(began + 10.0, abs=10.1)
