"""The canaries of an exporter: places the calls that are due, and shows how runs end.

Of exporters that share a ledger, the one that polls an account places its canary calls. They agree
by the ledger: a run is begun once, and ends once.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice, takewhile
from typing import Final

import structlog

from exporter.account import Account
from exporter.calls import WatchedCall
from exporter.canaries.runs import CanaryRunner
from exporter.canaries.schedule import grace, schedule_of
from exporter.config import Config
from exporter.config.canaries import CanaryConfig
from exporter.errors import LedgerError
from exporter.esms.answers import Answer
from exporter.esms.client import CallRequest
from exporter.ledger.canary_runs import CanaryResult, CanaryRuns, NotBegun, Run, State
from exporter.ledger.ledger import Ledger
from exporter.metrics.catalogue import Catalogue
from exporter.metrics.reading import Rows
from exporter.polling.stats import Operation

WAIT_FOR_TURN: Final = 30.0
"""Seconds that a request waits for its turn, before the right to send it is given up."""

LOOK_EVERY: Final = 1.0
"""Seconds after which due times, and the runs that have not ended, are checked."""

_READ_EVERY = 5.0
"""Seconds after which the ledger is read, where no run is open."""

_SPARE = 30.0
"""Seconds by which a request may last longer than its time-out, before it counts as lost with the
exporter that sent it."""

_LAST_POLL = 5.0
"""Seconds, beside its time-out, that the poll may take that follows the end of `within`."""

_MAX_MISSED: Final = 200
"""Due times that are checked at a time, at most: to derive as many takes a tenth of a second, in
which nothing is polled."""

_log = structlog.get_logger(__name__)


class CanaryStage(StrEnum):
    """A stage of a canary call: the label `stage`."""

    ACCEPTED = "accepted"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class CanaryNumbers:
    """What metrics show of one canary; all of it is in the ledger.

    Attributes:
        account: the account that places its calls.
        success: whether the last call ended as expected.
        last_success: when one last did (Unix time); 0 before that.
        stages: seconds that each stage of the last call took; 0 before that.
        runs: how many calls ended with each result.
    """

    account: str
    success: bool
    last_success: float
    stages: Mapping[CanaryStage, float]
    runs: Mapping[CanaryResult, int]


def read_canaries(metrics: Catalogue, canaries: Mapping[str, CanaryNumbers]) -> None:
    """Have the metrics of canaries read at each scrape.

    Args:
        metrics: the metrics.
        canaries: by name: live mapping, shared by reference.
    """

    def each(read: Callable[[CanaryNumbers], Rows[float]]) -> Callable[[], Rows[float]]:
        return lambda: (
            ((canary.account, name, *labels), value)
            for name, canary in canaries.items()
            for labels, value in read(canary)
        )

    metrics.canary_success.read_from(each(lambda canary: [((), canary.success)]))
    metrics.canary_last_success.read_from(each(lambda canary: [((), canary.last_success)]))
    metrics.canary_stages.read_from(
        each(lambda canary: (((stage.value,), seconds) for stage, seconds in canary.stages.items()))
    )
    metrics.canary_runs.read_from(
        each(lambda canary: (((result.value,), number) for result, number in canary.runs.items()))
    )


class Canaries:
    """The canaries of an exporter.

    Args:
        ledger: open before `configure`.
        accounts: those that are polled here: live mapping, shared by reference.
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
        self._in_background = in_background
        self._loop = asyncio.get_running_loop()
        self._config: Config | None = None
        self._canaries: dict[str, CanaryConfig] = {}
        self._placed_by: dict[str, str] = {}  # the accounts, by name
        self._polled: set[str] = set()  # whose account is polled here
        self._numbers: dict[str, CanaryNumbers] = {}
        read_canaries(metrics, self._numbers)
        self._begun: dict[str, int] = {}  # the last due time that was seen to, by name
        self._checked: dict[str, tuple[float, float]] = {}  # when nothing more is due, by name
        self._to_forget = True
        self._anew: set[str] = set()  # whose due times have changed: they begin anew, too
        self._state: State | None = None
        self._read_at = -math.inf
        self._overdue: dict[int, float] = {}  # when runs were found to be late (time of the loop)
        self._placing: set[asyncio.Task[None]] = set()
        self._stopping = False

    def configure(self, config: Config) -> None:
        """Go over to a configuration, or to other accounts that are polled here."""
        self._config = config
        wanted = {canary.name: canary for canary in config.canaries}
        placed_by = {name: config.account_of(canary) for name, canary in wanted.items()}
        self._polled = {name for name, account in placed_by.items() if account in self._accounts}
        for name, numbers in list(self._numbers.items()):
            if placed_by.get(name) != numbers.account or name not in self._polled:
                del self._numbers[name]
        self._placed_by = placed_by
        for canary in wanted.values():
            if account := self._accounts.get(placed_by[canary.name]):
                account.stats.of(Operation.MAKE_CALL)
            # What its new times would have been was not due, and so not missed.
            old = self._canaries.get(canary.name, canary)
            if schedule_of(old) != schedule_of(canary):
                self._anew.add(canary.name)
        self._canaries, self._state = wanted, None
        self._checked = {}
        self._to_forget = True
        self._read_at = -math.inf

    async def run(self) -> None:
        """Place calls, and follow runs to their end, until cancelled."""
        statements = CanaryRuns(self._ledger.database)
        runner = CanaryRunner(self._ledger.call, statements, self._ledger.clock.now)
        while True:
            with suppress(LedgerError):  # counted, and shown, by the ledger
                await self._look(runner, statements)
            await asyncio.sleep(LOOK_EVERY)

    async def stop(self, timeout: float) -> None:
        """Place no more calls, and wait for those that are being placed."""
        self._stopping = True
        if self._placing:
            await asyncio.wait(self._placing, timeout=timeout)

    async def prune(self, before: float) -> None:
        """Forget runs that ended before a Unix time.

        Raises:
            LedgerError: the ledger failed.
        """
        statements = CanaryRuns(self._ledger.database)
        await self._ledger.call(statements.prune, before, self._ledger.clock.now())

    # What is to be done now.

    async def _look(self, runner: CanaryRunner, statements: CanaryRuns) -> None:
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
            task = self._in_background(self._place(runner, canary, due))
            self._placing.add(task)
            task.add_done_callback(self._placing.discard)
        open_runs = self._state is not None and self._state.open
        if not (self._canaries or open_runs) and self._state is not None:
            return
        if self._loop.time() < self._read_at and not open_runs:
            return
        await self._read(statements)
        await self._count_missed(statements, now)
        await self._follow(runner)

    def _due(self, now: float) -> Iterator[tuple[CanaryConfig, int]]:
        """Yield the calls that are to be placed by accounts that are polled here."""
        if self._stopping:
            return
        for name in self._polled:
            canary = self._canaries[name]
            past = self._state.past.get(name) if self._state else None
            checked, until = self._checked.get(name, (math.inf, -math.inf))
            if past is None or checked <= now < until:
                continue
            due = schedule_of(canary).last(now)
            # Skip due times from before the canary was configured.
            in_time = due >= past.since and now - due <= grace(schedule_of(canary), due)
            if in_time and self._begun.get(name) != due:
                yield canary, due
            else:
                self._checked[name] = now, next(schedule_of(canary).after(now), math.inf)

    async def _place(self, runner: CanaryRunner, canary: CanaryConfig, due: int) -> None:
        name = self._placed_by[canary.name]

        async def place(request: CallRequest) -> tuple[Answer, float] | None:
            if (account := self._accounts.get(name)) is None:
                return None
            placed = await account.place(
                request, WAIT_FOR_TURN, lambda: self._canaries.get(canary.name) == canary
            )
            if placed:
                answer, seconds = placed
                requests = account.stats.of(Operation.MAKE_CALL)
                requests.count(answer.outcome, answer.code, seconds)
            return placed

        try:
            run = await runner.place(canary, name, due, place)
        except LedgerError as error:
            _log.warning("canary call not begun", canary=canary.name, problem=str(error))
            run = None
        if run is None and self._begun.get(canary.name) == due:
            del self._begun[canary.name]  # while there is time
            self._checked.pop(canary.name, None)
        elif run is not NotBegun.BEGUN:
            self._read_at = -math.inf

    async def _read(self, statements: CanaryRuns) -> None:
        """Read what the ledger holds, and show it."""
        state: State = await self._ledger.call(statements.look, list(self._canaries), time.time())
        self._state = state
        self._read_at = self._loop.time() + _READ_EVERY
        for name, past in state.past.items():
            if name not in self._polled:
                continue  # not any more
            # Not before its totals are known: a counter must not begin at 0 again.
            ahead = self._ledger.clock.ahead
            self._numbers[name] = CanaryNumbers(
                self._placed_by[name],
                bool(past.success),
                past.last_success_at - ahead if past.last_success_at else 0.0,
                {
                    CanaryStage.ACCEPTED: past.accepted_seconds or 0.0,
                    CanaryStage.FINISHED: past.finished_seconds or 0.0,
                },
                {result: state.totals.get((name, result.value), 0) for result in CanaryResult},
            )

    async def _count_missed(self, statements: CanaryRuns, now: float) -> None:
        """Count due times that are over, and at which no exporter placed a call."""
        for name, past in self._state.past.items() if self._state else ():
            if (canary := self._canaries.get(name)) is None or name not in self._polled:
                continue
            schedule = schedule_of(canary)
            over = list(
                islice(
                    takewhile(
                        lambda due: due + grace(schedule, due) < now,  # noqa: B023 - used at once
                        schedule.after(past.seen_until),
                    ),
                    _MAX_MISSED,
                )
            )
            if not over:
                continue
            count = statements.count_missed
            if missed := await self._ledger.call(count, name, past.seen_until, over):
                _log.warning("canary calls missed", canary=name, missed=missed)
            self._read_at = -math.inf

    async def _follow(self, runner: CanaryRunner) -> None:
        """Poll the calls of open runs, and end runs."""
        if self._state is None or self._config is None:
            return
        timeout = self._config.polling.timeout
        configured = {account.name for account in self._config.accounts}
        now = self._ledger.clock.now()
        for run in self._state.open:
            if run.id in runner.placing or await runner.finish(run):
                continue
            if run.account in configured and run.account not in self._accounts:
                continue  # another exporter polls it
            if run.call_id is None:
                # Not known whether the request was sent, and it is not sent again.
                if now > run.started_at + WAIT_FOR_TURN + timeout + _SPARE:
                    await runner.end(run, CanaryResult.UNSURE)
                continue
            account = self._accounts.get(run.account)
            if account is not None and not self._stopping:
                self._poll(account, run, now)
            late = self._loop.time() - self._overdue.get(run.id, math.inf) > timeout + _LAST_POLL
            # Where no exporter polls the account, it is late in the end.
            if late or now > run.deadline_at + timeout + 2 * _SPARE:
                await runner.end(run, CanaryResult.LATE)
                if account is not None:
                    account.poller.remove(run.call_id)
        self._overdue = {
            run.id: self._overdue[run.id] for run in self._state.open if run.id in self._overdue
        }

    def _poll(self, account: Account, run: Run, now: float) -> None:
        """Have a call polled as any other, and once more when `within` has passed."""
        if run.call_id is None or run.reference_id is None:
            return
        poller = account.poller
        if run.call_id not in poller.calls:
            poller.add(WatchedCall(run.call_id, run.reference_id, run.accepted_at or now))
            poller.wake()
        if now >= run.deadline_at and run.id not in self._overdue:
            self._overdue[run.id] = self._loop.time()
            poller.poll_now(run.call_id)
