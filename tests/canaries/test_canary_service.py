"""Canary calls of an exporter in this process, whose wall clock is the test's."""

from __future__ import annotations

import asyncio
import math
import sqlite3
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from exporter.app import App
from exporter.canaries.canaries import Canaries
from exporter.config import load_config
from exporter.ledger.canary_runs import Intent, begin
from exporter.ledger.clock import Moment
from exporter.simulator import Fault, FaultKind, Simulator
from tests.canaries.scene import ACCOUNT, NO_STATUS, PHONE, Placed, configured, rows, simulator
from tests.samples import samples, value
from tests.waiting import DEADLINE, until

RECORDING = "recording: '1', max_per_day: 144, within: 60s"
HOUR = 3600.0
NOON = 1_800_000_000.0  # a multiple of ten minutes


class Clock:
    """The clocks of the machine: they go on by themselves, and one of them can be set."""

    def __init__(self, now: float) -> None:
        self.set(now)

    def __call__(self) -> Moment:
        steady = time.monotonic()
        return Moment(steady + self._offset, steady, "a boot")

    def set(self, now: float) -> None:
        self._offset = now - time.monotonic()


@pytest.fixture
def clock() -> Clock:
    return Clock(NOON - 100)


class Scene:
    """An exporter, and the provider that it calls."""

    def __init__(self, folder: Path, clock: Clock, provider: Simulator, service: App) -> None:
        self.config, self.clock = folder / "config.yaml", clock
        self.provider = provider
        self.placed = Placed(provider)
        self.service = service

    def total(self, result: str) -> float:
        labels = {"account": "main", "canary": "hourly", "result": result}
        return value(self.service.metrics, "esms_canary_runs_total", **labels)

    @property
    def success(self) -> float:
        return value(self.service.metrics, "esms_canary_success", account="main", canary="hourly")

    def rows(self, query: str) -> list[Any]:  # Any: of several types
        return rows(self.config.parent, query)

    async def at(self, now: float, **totals: float) -> None:
        """Set the clock, and wait until runs have come to this."""
        self.clock.set(now)
        await until(lambda: all(self.total(result) == n for result, n in totals.items()))

    async def change(self, old: str, new: str) -> None:
        """Replace a text in the configuration, and have it reloaded."""
        self.config.write_text(self.config.read_text().replace(old, new))
        await self.service.reload()


@asynccontextmanager
async def scene(folder: Path, clock: Clock, canary: str = RECORDING) -> AsyncIterator[Scene]:
    async with simulator() as provider:
        config = configured(folder, provider.url, canary)
        there = Scene(folder, clock, provider, await started(config, clock))
        # What was due before it was configured would not be placed.
        await until(lambda: bool(samples(there.service.metrics, "esms_canary_runs_total")))
        try:
            yield there
        finally:
            await there.service.stop()
            assert there.service.supervisor.failure is None


@pytest_asyncio.fixture
async def there(tmp_path: Path, clock: Clock) -> AsyncIterator[Scene]:
    async with scene(tmp_path, clock) as there:
        yield there


async def started(config: Path, clock: Clock) -> App:
    canaries = partial(Canaries, interval=0.05, wait_for_slot=0.5, margin=0.5)
    service = App(lambda: load_config(config), clocks=clock, canaries=canaries)
    await service.open()
    await service.start()
    return service


async def test_a_call_is_placed_when_it_is_due(there: Scene) -> None:
    await asyncio.sleep(0.5)
    assert there.placed.codes == []
    await there.at(NOON + 1, success=1)
    assert there.success == 1
    assert len(there.placed.codes) == 1
    await until(lambda: there.service.canaries.statuses[0][1].result is not None)
    ((name, run, due),) = there.service.canaries.statuses
    assert (name, run.result, due) == ("hourly", "success", NOON + 600)
    assert NOON <= run.started_at < NOON + 60
    assert [request["Phone"] for request in there.placed.requests] == [PHONE]
    metrics, stage = there.service.metrics, "esms_canary_stage_duration_seconds"
    assert all(value(metrics, stage, stage=name) > 0 for name in ("accepted", "finished"))
    assert value(metrics, "esms_canary_last_success_timestamp_seconds") > 0
    assert value(metrics, "esms_api_requests_total", operation="make_call", outcome="ok") == 1
    assert value(metrics, "esms_calls_total") == value(metrics, "esms_calls_watched") == 0


async def test_a_clock_that_is_set_calls_nobody_twice(there: Scene) -> None:
    await there.at(NOON + 1, success=1)
    there.clock.set(NOON - 10)
    await asyncio.sleep(0.3)
    there.clock.set(NOON + 5)
    await asyncio.sleep(0.3)
    assert len(there.placed.codes) == 1
    # Leapt over: 12:10 and 12:20, which nobody makes up for; and 12:30 is placed.
    await there.at(NOON + 1801, success=2, missed=2)
    # What was wrongly leapt over is placed when its time comes.
    await there.at(NOON + 601, success=3)
    assert there.total("missed") == 2
    assert len(there.placed.codes) == 3


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_call_is_not_late_because_a_clock_was_set(there: Scene, *, restarted: bool) -> None:
    there.provider.faults.set("x", NO_STATUS)
    there.clock.set(NOON + 1)
    await until(lambda: there.placed.codes == ["100"])
    await asyncio.sleep(0.5)
    there.clock.set(NOON + 300)
    await asyncio.sleep(0.5)
    if restarted:
        await there.service.stop()
        there.clock.set(NOON + 300_000)
        there.service = await started(there.config, there.clock)
    there.provider.faults.clear()
    await until(lambda: there.total("success") == 1)
    assert there.total("late") == 0


async def test_a_call_that_does_not_finish_is_late(tmp_path: Path, clock: Clock) -> None:
    async with scene(tmp_path, clock, "recording: '1', max_per_day: 9, within: 10s") as there:
        config = there.service.config
        assert config
        short = config.canaries[0].model_copy(update={"within": 1.0})
        there.service.canaries.configure((short,), ["main"], 1.0)
        there.provider.faults.set("x", NO_STATUS)
        clock.set(NOON + 1)
        await until(lambda: there.total("late") == 1)
        assert there.success == 0
        assert len(there.placed.codes) == 1


async def test_a_result_that_waits_for_the_ledger_is_not_late(tmp_path: Path, clock: Clock) -> None:
    async with scene(tmp_path, clock) as there:
        service = there.service.ledger
        with closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as ledger:
            ledger.execute(
                "CREATE TRIGGER full BEFORE UPDATE OF result ON calls WHEN NEW.result = 'success' "
                "BEGIN SELECT RAISE(ABORT, 'full'); END"
            )
            clock.set(NOON + 1)
            await until(lambda: service.problem is not None)
            ledger.execute("UPDATE canary_runs SET deadline_at = 0")
            errors = service.errors
            await until(lambda: service.errors > errors)  # runs are checked meanwhile
            ledger.execute("DROP TRIGGER full")
        await until(lambda: there.total("success") == 1)
        assert there.total("late") == 0


async def test_a_paused_account_places_nothing(there: Scene) -> None:
    there.service.accounts["main"].poller.allow_until(0.0)
    there.clock.set(NOON + 1)
    await until(lambda: bool(there.rows("SELECT 1 FROM canary_runs")))
    await there.at(NOON + 61, missed=1)
    assert there.placed.codes == []
    assert not there.rows("SELECT 1 FROM canary_runs WHERE result IS NOT 'missed'")


async def test_a_canary_comes_and_goes_with_the_configuration(there: Scene) -> None:
    await there.at(NOON + 1, success=1)
    canaries = there.config.read_text().partition("canaries:")[2]
    await there.change(f"canaries:{canaries}", "# none")
    assert not samples(there.service.metrics, "esms_canary_runs_total")
    there.clock.set(NOON + HOUR + 1)
    await asyncio.sleep(0.5)
    assert len(there.placed.codes) == 1
    # A minute is not over, and yet it is not placed.
    there.clock.set(NOON + HOUR + 30)
    await there.change("# none", f"canaries:{canaries}")
    await asyncio.sleep(0.5)
    # What was due while it was not configured was not missed; its totals are there again.
    assert (there.total("success"), there.total("missed")) == (1, 0)
    await there.at(NOON + HOUR + 601, success=2)


async def test_a_canary_shows_the_account_that_places_it(there: Scene) -> None:
    await there.at(NOON + 1, success=1)
    await there.change("name: main", "name: hotline")

    def shown() -> dict[tuple[str, ...], float]:
        runs = samples(there.service.metrics, "esms_canary_runs_total", result="success")
        return {tuple(run.labels.values()): run.value for run in runs}

    await until(lambda: shown() == {("hotline", "hourly", "success"): 1})


async def test_other_times_were_not_missed_before_they_were_configured(there: Scene) -> None:
    there.clock.set(NOON - 50)
    await there.change("every: 10m", "every: 1h")
    since = f"SELECT 1 FROM canaries WHERE since >= {NOON - 50}"
    await until(lambda: bool(there.rows(since)))
    await there.at(NOON + 1, success=1)
    there.clock.set(NOON + 3500)
    seen = f"SELECT 1 FROM canaries WHERE seen_until = {NOON}"
    await until(lambda: bool(there.rows(seen)))
    await there.change("every: 1h", "every: 10m")
    since = f"SELECT 1 FROM canaries WHERE since >= {NOON + 3500}"
    await until(lambda: bool(there.rows(since)))
    await asyncio.sleep(0.3)
    assert there.total("missed") == 0
    await there.at(NOON + HOUR + 1, success=2)
    assert there.total("missed") == 0


async def test_a_ledger_that_cannot_be_written_places_nothing(there: Scene) -> None:
    ledger = there.config.with_name("ledger.db")
    aside = there.config.with_name("aside.db")
    ledger.rename(aside)
    ledger.write_bytes(b"another file")
    there.clock.set(NOON + 1)
    await asyncio.sleep(1)
    assert there.placed.codes == []
    aside.rename(ledger)
    await until(lambda: there.total("success") == 1)
    assert len(there.placed.codes) == 1


async def test_the_end_waits_for_an_answer(tmp_path: Path, clock: Clock) -> None:
    async with scene(tmp_path, clock) as there:
        there.provider.faults.set("x", Fault(FaultKind.LATENCY, seconds=0.5))
        clock.set(NOON + 1)
        await until(lambda: there.provider.traffic.open == 1)
    assert there.placed.codes == ["100"]
    ((reference_id,),) = rows(tmp_path, "SELECT reference_id FROM canary_runs")
    assert reference_id


async def test_what_was_missed_for_long_is_counted_in_parts(there: Scene) -> None:
    await there.at(NOON + 72 * HOUR + 1, missed=432)


async def test_a_canary_that_goes_while_others_are_forgotten_is_forgotten(there: Scene) -> None:
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        go_on.wait(DEADLINE)

    config = there.service.config
    assert config
    holding = asyncio.create_task(there.service.ledger.call(hold))
    await until(held.is_set)
    timeout = config.polling.timeout
    there.service.canaries.configure(config.canaries, ["main"], timeout)
    await asyncio.sleep(0.5)  # the others are being forgotten
    there.service.canaries.configure((), ["main"], timeout)
    go_on.set()
    await holding
    await until(lambda: there.rows("SELECT since FROM canaries") == [(None,)])


async def test_a_call_that_waits_is_placed_with_the_keys_and_the_number_of_then(
    there: Scene,
) -> None:
    poller = there.service.accounts["main"].poller
    poller.allow_until(0.0)
    there.clock.set(NOON + 1)
    await until(lambda: bool(there.rows("SELECT 1 FROM canary_runs")))
    there.provider.put_account(replace(ACCOUNT, api_key="key-new"))
    await there.change("key-main", "key-new")
    await there.change(PHONE, "0987654321")
    poller.allow_until(math.inf)
    await until(lambda: there.total("success") == 1)
    assert there.placed.codes == ["100"]
    assert [request["Phone"] for request in there.placed.requests] == ["0987654321"]


async def test_an_account_that_goes_while_it_places_a_call_leaves_no_series(there: Scene) -> None:
    there.provider.faults.set("x", Fault(FaultKind.LATENCY, seconds=1.0))
    there.clock.set(NOON + 1)
    await until(lambda: there.provider.traffic.open == 1)
    await there.change("name: main", "name: other")
    accepted = "SELECT 1 FROM canary_runs WHERE reference_id IS NOT NULL"
    assert not there.rows(accepted)
    await until(lambda: bool(there.rows(accepted)))
    await asyncio.sleep(0.1)
    requests = samples(there.service.metrics, "esms_api_requests_total")
    assert {request.labels["account"] for request in requests} == {"other"}


@pytest.mark.parametrize(
    ("canary", "results"),
    [
        (f"{RECORDING}, expect_key: '2'", {"failure": 2}),
        ("recording: '9', max_per_day: 144", {"refused": 2}),
        (
            "template: '1', variables: [Trung, '20000'], max_per_day: 1",
            {"success": 1, "limited": 1},
        ),
    ],
)
async def test_what_a_run_comes_to(
    tmp_path: Path, clock: Clock, canary: str, results: dict[str, int]
) -> None:
    async with scene(tmp_path, clock, canary) as there:
        for due in (NOON, NOON + 600):
            clock.set(due + 1)
            ended = f"SELECT 1 FROM canary_runs WHERE due_at = {due} AND result IS NOT NULL"
            await until(lambda: bool(rows(tmp_path, ended)))  # noqa: B023 - used at once
        await until(lambda: all(there.total(result) == n for result, n in results.items()))
        assert there.success == ("success" in results)
        if "limited" in results:
            assert there.placed.codes == ["100"]
            assert there.placed.requests[0]["VariableListStr"] == "Trung||20000"


async def test_runs_survive_a_restart_and_what_was_due_meanwhile_is_missed(there: Scene) -> None:
    await there.at(NOON + 1, success=1)
    await there.service.stop()
    there.clock.set(NOON + 3001)
    there.service = await started(there.config, there.clock)
    await until(lambda: there.total("missed") == 4)
    await until(lambda: there.total("success") == 2)
    assert there.success == 1
    assert len(set(there.placed.request_ids)) == len(there.placed.requests) == 2


async def test_a_run_whose_exporter_died_before_its_request_is_unsure_and_not_begun_again(
    there: Scene,
) -> None:
    due, now = int(NOON), there.service.ledger.clock.now()
    begun = now - 100
    intent = Intent("hourly", due, "main", "x", "answered", None, begun, now, 9, (0, 2e9))
    await there.service.ledger.execute(begin, intent)
    await there.at(NOON + 1, unsure=1)
    await asyncio.sleep(0.3)
    assert there.placed.codes == []
