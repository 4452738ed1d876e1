"""Steps of a canary run: intent, request, end. Used by the exporter and the command `canary`."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, TypeAlias
from zoneinfo import ZoneInfo

import structlog

from exporter.calls import KEYS, Result, Status
from exporter.canaries.schedule import grace, schedule_of
from exporter.config.canaries import CanaryConfig
from exporter.errors import LedgerError
from exporter.esms.answers import Answer
from exporter.esms.client import CallRequest
from exporter.esms.codes import Outcome
from exporter.ids import ReferenceId
from exporter.ledger import canary_runs
from exporter.ledger.canary_runs import CanaryResult, Intent, NotStarted, Run
from exporter.ledger.clock import LedgerClock
from exporter.ledger.types import DELETED

Place: TypeAlias = Callable[[CallRequest], Awaitable[tuple[Answer, float] | None]]
"""Places a call; returns the answer and its delay in seconds, or None if nothing was sent."""

Execute: TypeAlias = Callable[..., Awaitable[Any]]  # Any: the result of the statements
"""Runs a function of `canary_runs` in the ledger; raises `LedgerError`."""

_log = structlog.get_logger(__name__)


def request_id(canary: str, due: int, account: str) -> str:
    """Return the `RequestId` of a call, which the provider accepts only once (code 124).

    It is derived from the arguments, so that every exporter sends the same id.
    """
    text = f"{canary}\n{due}\n{account}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def day_of(moment: float, zone: ZoneInfo) -> tuple[float, float]:
    """Return the start and the end of the day of a moment; Unix times."""
    # If midnight occurs twice, the day starts with the first one.
    local = datetime.fromtimestamp(moment, zone)
    start = local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    end = start + timedelta(days=1)  # local time: a day may have 23 or 25 hours
    return start.timestamp(), end.timestamp()


def call_request(canary: CanaryConfig, due: int) -> CallRequest:
    return CallRequest(
        canary.phone,
        request_id(canary.name, due, canary.account),
        canary.recording,
        canary.template,
        canary.variables,
    )


def after_placing(answer: Answer) -> CanaryResult | None:
    """Return the result of a run whose request failed; None if the call was accepted."""
    if answer.outcome is Outcome.OK:
        return None
    if not answer.sent:
        return CanaryResult.UNREACHABLE
    # Without a code, the call may have been placed in spite of the failure.
    refused = answer.code is not None and answer.outcome is not Outcome.BAD_RESPONSE
    return CanaryResult.REFUSED if refused else CanaryResult.UNSURE


def after_finish(run: Run) -> CanaryResult | None:
    """Return the result of a run whose call has finished; None if it has not."""
    if run.call_result is None or run.call_result == DELETED:
        return None
    if run.call_result == Result.UNKNOWN:
        return CanaryResult.LATE  # the exporter gave up polling the call
    answered = run.call_status == Status.ANSWERED
    good = answered if run.expect == "answered" else run.call_status != Status.REJECTED
    if run.expect_key is not None:
        good = good and run.call_key == run.expect_key
    return CanaryResult.SUCCESS if good else CanaryResult.FAILURE


class CanaryRunner:
    """Starts and ends runs; its methods raise `LedgerError`.

    Calls `report` for each stage of a run, with details; writes an outcome again after `retry`
    seconds if the ledger fails.
    """

    def __init__(
        self,
        execute: Execute,
        clock: LedgerClock,
        report: Callable[[str, Mapping[str, object]], None] = lambda *_: None,
        retry: float = 1.0,
    ) -> None:
        self._execute, self._clock, self._report = execute, clock, report
        self._retry = retry
        self.placing: set[int] = set()  # runs whose request is under way in this process

    async def place(
        self, canary: CanaryConfig, due: int, place: Place, *, by_hand: bool = False
    ) -> int | NotStarted | None:
        """Place a call, unless another exporter has started the run.

        `due` is a Unix time by the machine's clock; `by_hand`: by a command or a button.
        Return the row of the run; the reason why it was not started; or None if nothing was sent,
        and the call may still be placed.
        """
        request, now = call_request(canary, due), self._clock.now()
        key = KEYS.get(canary.expect_key or "")
        intent = Intent(
            canary.name,
            due,
            canary.account,
            request.request_id,
            canary.expect,
            key.value if key else None,
            now,
            now + canary.within,
            canary.max_per_day,
            day_of(due, canary.zone),
            by_hand,
        )
        run: int | NotStarted = await self._execute(canary_runs.begin, intent)
        if isinstance(run, NotStarted):
            if run is NotStarted.LIMITED:
                _log.warning("canary call not placed", canary=canary.name, reason="max_per_day")
            return run
        self.placing.add(run)
        try:
            placed = await place(request)
            if placed is None:
                _log.info("canary call delayed", canary=canary.name, account=canary.account)
            while True:  # until the ledger works
                try:
                    if placed is None:
                        return await self._not_placed(canary, due, run, by_hand=by_hand)
                    await self._placed(canary, run, *placed)
                    break
                except LedgerError:
                    await asyncio.sleep(self._retry)
        finally:
            self.placing.discard(run)
        return run

    async def _not_placed(
        self, canary: CanaryConfig, due: int, run: int, *, by_hand: bool
    ) -> int | None:
        """Withdraw a run whose request was not sent; end it if the grace period has passed."""
        late = self._clock.mark().at.wall > due + grace(schedule_of(canary), due)
        if late and not by_hand:
            await self.end(run, canary.name, CanaryResult.MISSED)
            return run
        await self._execute(canary_runs.withdraw, run)
        return None

    async def _placed(self, canary: CanaryConfig, run: int, answer: Answer, seconds: float) -> None:
        if result := after_placing(answer):
            await self.end(run, canary.name, result, code=answer.code, message=answer.message)
            return
        reference_id = ReferenceId(answer.reference_id or "")
        accepted = canary_runs.accept, run, reference_id, self._clock.now(), seconds
        if await self._execute(*accepted):
            _log.info(
                "canary call accepted",
                canary=canary.name,
                account=canary.account,
                reference_id=reference_id,
            )
            self._report("accepted", {"reference_id": reference_id, "seconds": seconds})
        else:
            _log.warning("canary call accepted too late", canary=canary.name)

    async def finish(self, run: Run) -> bool:
        """End a run if its call has finished; return whether it has."""
        if (result := after_finish(run)) is None or run.finished_at is None:
            return False
        since = run.accepted_at or run.started_at
        seconds = None if result is CanaryResult.LATE else max(0.0, run.finished_at - since)
        await self.end(run.id, run.canary, result, status=run.call_status, seconds=seconds)
        return True

    async def end(
        self, run: int, canary: str, result: CanaryResult, *, message: str = "", **about: Any
    ) -> None:
        """Store the result of a run, unless it has ended before; see `canary_runs.end`."""
        if await self._execute(canary_runs.end, run, result, self._clock.now(), **about):
            about["message"] = message
            about = {name: value for name, value in about.items() if value not in (None, "")}
            if result is CanaryResult.SUCCESS:
                _log.info("canary call ended", canary=canary, result=result.value, **about)
            else:
                _log.warning("canary call ended", canary=canary, result=result.value, **about)
            self._report(result.value, about)
