"""The canaries of an exporter: placing due calls, and ending their runs.

If exporters share a ledger, the holder of an account's lease places its canary calls. The ledger
guarantees that a run starts once and ends once.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice, takewhile
from typing import Final, NamedTuple

import structlog

from exporter.account import Account
from exporter.calls import WatchedCall
from exporter.canaries.runs import CanaryRunner
from exporter.canaries.schedule import grace, schedule_of
from exporter.config.canaries import CanaryConfig
from exporter.errors import LedgerError
from exporter.esms.answers import Answer
from exporter.esms.client import CallRequest
from exporter.ledger import canary_runs
from exporter.ledger.canary_runs import CanaryResult, NotStarted, Run, State
from exporter.ledger.ledger import Ledger
from exporter.metrics.catalogue import Catalogue
from exporter.polling.stats import Operation
from exporter.supervisor import Spawn

# Seconds for the last poll after the end of `within`, in addition to its timeout.
_LAST_POLL: Final = 5.0
# Checks between reads of the ledger while no run is open.
_READ_EVERY: Final = 5
# Deriving so many due times takes 0.1 s, during which the event loop is blocked.
_MAX_MISSED: Final = 200

_log = structlog.get_logger(__name__)


class CanaryStage(StrEnum):
    """A stage of a canary call: the label `stage`."""

    ACCEPTED = "accepted"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class CanaryNumbers:
    """The numbers of a canary, all from the ledger; times are Unix times, 0 for none."""

    account: str
    success: bool  # whether the last call ended as expected
    last_success: float
    stages: Mapping[CanaryStage, float]  # seconds, of the last call
    runs: Mapping[CanaryResult, int]
    started_at: float = 0.0  # of the last run, as the result
    result: CanaryResult | None = None


class CanaryStatus(NamedTuple):
    """A canary that this exporter runs, and when its next call is due (Unix time)."""

    name: str
    numbers: CanaryNumbers
    due: float


def read_canaries(metrics: Catalogue, canaries: Mapping[str, CanaryNumbers]) -> None:
    """Read the metrics of canaries; `canaries` is a live mapping by name."""

    def each() -> Iterator[tuple[tuple[str, str], CanaryNumbers]]:
        return (((canary.account, name), canary) for name, canary in canaries.items())

    metrics.canary_success.read_each(each, lambda canary: canary.success)
    metrics.canary_last_success.read_each(each, lambda canary: canary.last_success)
    metrics.canary_stages.read_each(each, lambda canary: canary.stages)
    metrics.canary_runs.read_each(each, lambda canary: canary.runs)


class Canaries:
    """The canaries of an exporter.

    Args:
        ledger: must be open before `configure` is called.
        accounts: the accounts that this exporter polls: live mapping, shared by reference.
        metrics: exposes the numbers of the canaries.
        interval: seconds between checks of due times and open runs.
        wait_for_slot: seconds until a request that waits for the rate limiter is withdrawn.
        margin: seconds after the timeout of a request until it counts as lost, for example because
            its exporter was killed.
    """

    def __init__(
        self,
        ledger: Ledger,
        accounts: Mapping[str, Account],
        metrics: Catalogue,
        spawn: Spawn,
        interval: float = 1.0,
        wait_for_slot: float = 30.0,
        margin: float = 30.0,
    ) -> None:
        self._ledger, self._accounts, self._spawn = ledger, accounts, spawn
        self._interval, self._wait_for_slot, self._margin = interval, wait_for_slot, margin
        self._loop = asyncio.get_running_loop()
        self._runner = CanaryRunner(ledger.execute, ledger.clock)
        self._timeout = 0.0  # of a poll
        self._configured: Collection[str] = ()
        self._canaries: dict[str, CanaryConfig] = {}
        self._numbers: dict[str, CanaryNumbers] = {}
        read_canaries(metrics, self._numbers)
        self._checked: dict[str, tuple[float, float]] = {}  # start, end of a time without due calls
        self._kept: set[str] | None = None  # canaries whose schedule has not changed
        self._state: State | None = None
        self._read_at = -math.inf
        self._overdue: dict[int, float] = {}  # when runs were found to be late (loop time)
        self._placing: set[asyncio.Task[None]] = set()
        self._stopping = False

    def configure(
        self, canaries: Iterable[CanaryConfig], accounts: Collection[str], timeout: float
    ) -> None:
        """Apply a configuration, or a change of the accounts that this exporter polls.

        `accounts` are all, including those of other exporters; `timeout` is that of a poll.
        """
        wanted = {canary.name: canary for canary in canaries}
        # Due times before a change of the schedule do not count as missed.
        kept = {
            name
            for name, canary in wanted.items()
            if schedule_of(self._canaries.get(name, canary)) == schedule_of(canary)
        }
        self._kept = kept if self._kept is None else kept & self._kept
        self._timeout, self._canaries, self._configured = timeout, wanted, accounts
        for name, numbers in list(self._numbers.items()):
            if not self._polled(name) or wanted[name].account != numbers.account:
                del self._numbers[name]
        for canary in wanted.values():
            if account := self._accounts.get(canary.account):
                account.stats.of(Operation.MAKE_CALL)  # expose zeros before the first request
        self._state, self._checked, self._read_at = None, {}, -math.inf

    @property
    def statuses(self) -> list[CanaryStatus]:
        never = math.inf, math.inf
        return [
            CanaryStatus(name, numbers, self._checked.get(name, never)[1])
            for name, numbers in self._numbers.items()
        ]

    async def run(self) -> None:
        """Place calls and end runs until cancelled."""
        while True:
            with suppress(LedgerError):  # already counted and logged
                await self._check()
            await asyncio.sleep(self._interval)

    def place_now(self, name: str, due: int) -> None:
        """Place a call by hand, if this exporter polls the account of the canary.

        At most one call is placed for the Unix time `due`, even if several exporters try.
        """
        if self._polled(name) and not self._stopping:
            self._start_placing(self._canaries[name], due, by_hand=True)

    async def stop(self, timeout: float) -> None:
        """Stop placing calls, and wait for requests that are under way."""
        self._stopping = True
        if self._placing:
            await asyncio.wait(self._placing, timeout=timeout)

    async def prune(self, before: float) -> None:
        """Delete runs that ended before a Unix time."""
        await self._ledger.execute(canary_runs.prune, before, self._ledger.clock.now())

    def _polled(self, name: str) -> bool:
        """Whether this exporter polls the account of a canary."""
        return name in self._canaries and self._canaries[name].account in self._accounts

    async def _check(self) -> None:
        if (kept := self._kept) is not None:
            await self._ledger.execute(canary_runs.reset_others, kept)
            if self._kept is kept:  # not reconfigured meanwhile
                self._kept = None
            self._state = None  # its `since` is outdated
        now = self._ledger.clock.mark().at.wall
        for canary, due in list(self._due(now)):
            self._start_placing(canary, due)
        idle = self._state is not None and not self._state.open
        if idle and (not self._canaries or self._loop.time() < self._read_at):
            return
        state = await self._read(now)
        await self._count_missed(state, now)
        await self._process_open_runs(state)

    def _due(self, now: float) -> Iterator[tuple[CanaryConfig, int]]:
        """Yield the due calls of accounts that this exporter polls."""
        if self._state is None or self._stopping:
            return
        for name, row in self._state.canaries.items():
            checked, until = self._checked.get(name, (math.inf, -math.inf))
            if not self._polled(name) or checked <= now < until:
                continue
            canary = self._canaries[name]
            schedule = schedule_of(canary)
            due = schedule.last(now)
            # Skip due times from before the canary was configured.
            if due >= row.since and now - due <= grace(schedule, due):
                yield canary, due
            self._checked[name] = now, next(schedule.after(now), math.inf)

    def _start_placing(self, canary: CanaryConfig, due: int, *, by_hand: bool = False) -> None:
        task = self._spawn(self._place(canary, due, by_hand=by_hand))
        self._placing.add(task)
        task.add_done_callback(self._placing.discard)

    async def _place(self, canary: CanaryConfig, due: int, *, by_hand: bool) -> None:
        async def place(request: CallRequest) -> tuple[Answer, float] | None:
            if (account := self._accounts.get(canary.account)) is None:
                return None
            wait, same = self._wait_for_slot, lambda: self._canaries.get(canary.name) == canary
            return await account.place(request, wait, same)

        try:
            run = await self._runner.place(canary, due, place, by_hand=by_hand)
        except LedgerError as error:
            _log.warning("canary call not started", canary=canary.name, problem=str(error))
            run = None
        else:
            if run is None and by_hand:
                _log.warning("canary call not placed", canary=canary.name, reason="account_busy")
        if run is None:
            self._checked.pop(canary.name, None)  # try again within the grace period
        elif run is not NotStarted.EXISTS:
            self._read_at = -math.inf

    async def _read(self, now: float) -> State:
        """Read the state from the ledger, and update the metrics."""
        names = list(self._canaries)
        self._state = state = await self._ledger.execute(canary_runs.read_state, names, now)
        self._read_at = self._loop.time() + _READ_EVERY * self._interval
        ahead = self._ledger.clock.ahead
        for name, row in state.canaries.items():
            if not self._polled(name):
                continue  # reconfigured meanwhile
            # Only with totals from the ledger: a counter must not restart at 0.
            self._numbers[name] = CanaryNumbers(
                self._canaries[name].account,
                bool(row.success),
                row.last_success_at - ahead if row.last_success_at else 0.0,
                {
                    CanaryStage.ACCEPTED: row.accepted_seconds or 0.0,
                    CanaryStage.FINISHED: row.finished_seconds or 0.0,
                },
                {result: state.totals.get((name, result.value), 0) for result in CanaryResult},
                row.started_at - ahead if row.started_at else 0.0,
                CanaryResult(row.result) if row.result else None,
            )
        return state

    async def _count_missed(self, state: State, now: float) -> None:
        """Count due times whose grace period has passed without a call."""
        for name, row in state.canaries.items():
            if not self._polled(name):
                continue
            schedule = schedule_of(self._canaries[name])
            over = takewhile(
                lambda due: due + grace(schedule, due) < now,  # noqa: B023 - used at once
                schedule.after(row.seen_until),
            )
            if not (due := list(islice(over, _MAX_MISSED))):
                continue
            seen = row.seen_until
            if missed := await self._ledger.execute(canary_runs.count_missed, name, seen, due):
                _log.warning("canary calls missed", canary=name, missed=missed)
            self._read_at = -math.inf

    async def _process_open_runs(self, state: State) -> None:
        """Poll the calls of open runs, and end runs."""
        now = self._ledger.clock.now()
        for run in state.open:
            if run.id in self._runner.placing or await self._runner.finish(run):
                continue
            if run.account in self._configured and run.account not in self._accounts:
                continue  # another exporter polls it
            if run.call_id is not None and run.reference_id is not None:
                since = run.accepted_at or now
                await self._poll(run, WatchedCall(run.call_id, run.reference_id, since), now)
            # Unknown whether the request was sent; it must not be sent twice.
            elif now > run.started_at + self._wait_for_slot + self._timeout + self._margin:
                await self._runner.end(run.id, run.canary, CanaryResult.UNSURE)
        ids = {run.id for run in state.open}
        self._overdue = {run: at for run, at in self._overdue.items() if run in ids}

    async def _poll(self, run: Run, call: WatchedCall, now: float) -> None:
        """Poll a call as usual, and once more when `within` has passed."""
        account = self._accounts.get(run.account)
        if account and not self._stopping:
            if call.id not in account.poller.calls:
                account.poller.add([call])
                account.poller.wake()
            if now >= run.deadline_at and run.id not in self._overdue:
                self._overdue[run.id] = self._loop.time()
                account.poller.poll_now(call.id)
        waited = self._loop.time() - self._overdue.get(run.id, math.inf)
        # Without an exporter that polls the account, the run ends as late.
        last = run.deadline_at + self._timeout + 2 * self._margin
        late = waited > self._timeout + _LAST_POLL or now > last
        # While the ledger fails, the result may be known and not be committed yet.
        if late and not self._ledger.is_pending(call.id):
            await self._runner.end(run.id, run.canary, CanaryResult.LATE)
            if account:
                account.poller.remove(call.id)
