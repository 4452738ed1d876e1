"""All canary calls of an exporter: when they are due, those that have not ended, and what is shown.

Exporters that share a ledger all do the same; the ledger says who places a call, and who asks.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import suppress
from enum import StrEnum
from itertools import islice, takewhile
from typing import Any, Final

import structlog

from exporter.account import Account
from exporter.canaries.results import CanaryResult
from exporter.canaries.runs import WAIT_FOR_TURN, Runs
from exporter.canaries.schedule import grace
from exporter.config import Config
from exporter.config.canaries import CanaryConfig
from exporter.errors import LedgerError
from exporter.ledger.canary_runs import CanaryRuns, NotBegun, Run, State
from exporter.ledger.ledger import Ledger
from exporter.metrics.catalogue import MAKE_CALL, Catalogue
from exporter.metrics.requests import RequestMetrics

LOOK_EVERY: Final = 1.0
"""Seconds after which it is looked whether a call is due."""

_READ_EVERY = 5.0
"""Seconds after which the ledger is read, where nothing has happened here."""

_ASK_EVERY: Final = 5.0
"""Seconds after which a call is asked for again, at most; at least `polling.interval`."""

_SPARE = 30.0
"""Seconds by which a request may last longer than its time-out, before it counts as lost with the
exporter that sent it; and after its time, before a call that cannot be asked for counts as late."""

_MOST_MISSED: Final = 200
"""Due times that are looked at at a time, at most: to derive as many takes a tenth of a second, in
which nothing is polled."""

_log = structlog.get_logger(__name__)


class CanaryStage(StrEnum):
    """A stage of a canary call: the label `stage`."""

    ACCEPTED = "accepted"
    FINISHED = "finished"


class CanaryMetrics:
    """The series of one canary, made at 0."""

    def __init__(self, catalogue: Catalogue, account: str, canary: str) -> None:
        self.success = catalogue.canary_success.labels(account, canary)
        self.runs = {
            result: catalogue.canary_runs.labels(account, canary, result.value)
            for result in CanaryResult
        }
        self.stages = {
            stage: catalogue.canary_stages.labels(account, canary, stage.value)
            for stage in CanaryStage
        }
        self.last_success = catalogue.canary_last_success.labels(account, canary)


class Canaries:
    """The canary calls of an exporter.

    Args:
        ledger: open before `configure`.
        accounts: see `Runs`.
        metrics: what is shown.
        in_background: runs a task; one that fails ends the exporter.
    """

    def __init__(
        self,
        ledger: Ledger,
        accounts: Mapping[str, Account],
        metrics: Catalogue,
        in_background: Callable[[Coroutine[None, None, None]], asyncio.Task[None]],
    ) -> None:
        self._ledger = ledger
        self._accounts = accounts
        self._metrics = metrics
        self._in_background = in_background
        self._loop = asyncio.get_running_loop()
        self._config: Config | None = None
        self._canaries: dict[str, CanaryConfig] = {}
        self._placed_by: dict[str, str] = {}  # the accounts, by name
        self._series: dict[str, CanaryMetrics] = {}
        self._begun: dict[str, int] = {}  # the last due time that was seen to, by name
        self._checked: dict[str, tuple[float, float]] = {}  # when nothing more is due, by name
        self._to_forget = True
        self._anew: set[str] = set()  # whose due times have changed: they begin anew, too
        self._state: State | None = None
        self._read_at = -math.inf
        self._following: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._placing: set[asyncio.Task[None]] = set()
        self._stopping = False

    def configure(self, config: Config) -> None:
        """Go over to a configuration."""
        self._config = config
        wanted = {canary.name: canary for canary in config.canaries}
        placed_by = {name: config.account_of(canary) for name, canary in wanted.items()}
        for name in list(self._series):
            if placed_by.get(name) != self._placed_by[name]:
                del self._series[name]
                self._metrics.remove("canary", name)
        self._placed_by = placed_by
        for canary in wanted.values():
            RequestMetrics(self._metrics, config.account_of(canary), MAKE_CALL)
            # What its new times would have been was not due, and so not missed.
            old = self._canaries.get(canary.name, canary)
            if old.schedule != canary.schedule:
                self._anew.add(canary.name)
        self._canaries, self._state = wanted, None
        self._checked = {}
        self._to_forget = True
        self._read_at = -math.inf

    async def run(self) -> None:
        """Place calls, and follow them, until cancelled."""
        statements = CanaryRuns(self._ledger.database)
        clock = self._ledger.clock.now
        runs = Runs(self._ledger.call, statements, self._accounts, self._metrics, clock)
        while True:
            with suppress(LedgerError):  # counted, and shown, by the ledger
                await self._look(runs, statements)
            await asyncio.sleep(LOOK_EVERY)

    async def stop(self, within: float) -> None:
        """Place no more calls, and wait for those that are being placed."""
        self._stopping = True
        if self._placing:
            await asyncio.wait(self._placing, timeout=within)

    async def prune(self, before: float) -> None:
        """Forget calls that ended before a Unix time.

        Raises:
            LedgerError: the ledger failed.
        """
        statements = CanaryRuns(self._ledger.database)
        await self._ledger.call(statements.prune, before, self._ledger.clock.now())

    # What is to be done now.

    async def _look(self, runs: Runs, statements: CanaryRuns) -> None:
        if self._to_forget:
            # Before it is done: they may change meanwhile.
            anew, self._anew, self._to_forget = self._anew, set(), False
            try:
                await self._ledger.call(statements.forget_others, self._canaries.keys() - anew)
            except LedgerError:
                self._anew |= anew
                self._to_forget = True
                raise
            self._state = None  # what was read before says since when they were known then
        now = time.time()
        for canary, due in list(self._due(now)):
            self._begun[canary.name] = due
            self._begin(self._place(runs, canary, due), self._placing)
        going_on = self._state is not None and self._state.going_on
        if not (self._canaries or going_on) and self._state is not None:
            return
        if self._loop.time() < self._read_at and not going_on:
            return
        await self._read(statements)
        await self._count_missed(statements, now)
        if not self._stopping:
            self._go_on(runs)

    def _due(self, now: float) -> Iterator[tuple[CanaryConfig, int]]:
        """Yield the calls that are to be placed."""
        if self._stopping:
            return
        for name, canary in self._canaries.items():
            past = self._state.past.get(name) if self._state else None
            checked, until = self._checked.get(name, (math.inf, -math.inf))
            if past is None or checked <= now < until:
                continue
            due = canary.schedule.last(now)
            # What was due before it was configured is no business of its.
            in_time = due >= past.since and now - due <= grace(canary.schedule, due)
            if in_time and self._begun.get(name) != due:
                yield canary, due
            else:
                self._checked[name] = now, next(canary.schedule.after(now), math.inf)

    async def _place(self, runs: Runs, canary: CanaryConfig, due: int) -> None:
        try:
            account = self._config.account_of(canary) if self._config else ""
            if account not in self._accounts:
                return
            placed = await runs.place(
                canary, account, due, wanted=lambda: self._canaries.get(canary.name) == canary
            )
        except LedgerError as error:
            _log.warning("canary call not begun", canary=canary.name, problem=str(error))
            placed = None
        if placed is None and self._begun.get(canary.name) == due:
            del self._begun[canary.name]  # while there is time
            self._checked.pop(canary.name, None)
        elif placed is not NotBegun.TAKEN:
            self._read_at = -math.inf

    async def _read(self, statements: CanaryRuns) -> None:
        """Read what the ledger holds, and show it."""
        state: State = await self._ledger.call(statements.look, list(self._canaries), time.time())
        self._state = state
        self._read_at = self._loop.time() + _READ_EVERY
        for name, past in state.past.items():
            if name not in self._canaries:
                continue  # not any more
            # Not before its totals are known: a counter must not begin at 0 again.
            series = self._series.get(name) or CanaryMetrics(
                self._metrics, self._placed_by[name], name
            )
            self._series[name] = series
            series.success.set(bool(past.success))
            ahead = self._ledger.clock.ahead
            series.last_success.set(past.last_success_at - ahead if past.last_success_at else 0)
            series.stages[CanaryStage.ACCEPTED].set(past.accepted_seconds or 0.0)
            series.stages[CanaryStage.FINISHED].set(past.finished_seconds or 0.0)
            for result, shown in series.runs.items():
                shown.value = float(state.totals.get((name, result.value), 0))

    async def _count_missed(self, statements: CanaryRuns, now: float) -> None:
        """Count due times that are over, and at which nobody placed a call."""
        for name, past in self._state.past.items() if self._state else ():
            if (canary := self._canaries.get(name)) is None:
                continue
            schedule = canary.schedule
            over = list(
                islice(
                    takewhile(
                        lambda due: due + grace(schedule, due) < now,  # noqa: B023 - used at once
                        schedule.after(past.seen_until),
                    ),
                    _MOST_MISSED,
                )
            )
            if not over:
                continue
            count = statements.count_missed
            if missed := await self._ledger.call(count, name, past.seen_until, over):
                _log.warning("canary calls missed", canary=name, missed=missed)
            self._read_at = -math.inf

    def _go_on(self, runs: Runs) -> None:
        """See to the calls that have not ended."""
        if self._state is None or self._config is None:
            return
        timeout = self._config.polling.timeout
        now = self._ledger.clock.now()
        for run in self._state.going_on:
            if run.id in runs.placing or run.id in self._following:
                continue
            if run.reference_id is None:
                # Nobody tells whether the request was sent, and it is not sent again.
                if now > run.started_at + WAIT_FOR_TURN + timeout + _SPARE:
                    self._begin(self._end(runs, run, CanaryResult.UNSURE), self._tasks)
            elif now > run.deadline_at + _SPARE + timeout:
                self._begin(self._end(runs, run, CanaryResult.LATE), self._tasks)
            elif not now < run.ask_at <= now + _ASK_EVERY:
                overdue = now >= run.deadline_at
                self._begin(self._follow(runs, run, overdue=overdue), self._tasks)

    async def _follow(self, runs: Runs, run: Run, *, overdue: bool) -> None:
        interval = self._config.polling.interval if self._config else _ASK_EVERY
        self._following.add(run.id)
        try:
            await runs.follow(run, min(_ASK_EVERY, interval), overdue=overdue)
        except LedgerError:
            pass  # counted by the ledger; asked for again
        finally:
            self._following.discard(run.id)

    async def _end(self, runs: Runs, run: Run, result: CanaryResult) -> None:
        self._following.add(run.id)
        try:
            await runs.end(run, result)
        except LedgerError:
            pass  # as above
        finally:
            self._following.discard(run.id)

    def _begin(
        self, work: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]
    ) -> None:  # Any: asyncio's own
        task = self._in_background(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
