"""One canary run: its intent, its request, its end. The exporter and the command share it."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, Protocol
from zoneinfo import ZoneInfo

import structlog

from exporter.calls import key_named
from exporter.canaries.results import after_finish, after_placing
from exporter.canaries.schedule import grace, schedule_of
from exporter.config.canaries import CanaryConfig
from exporter.errors import LedgerError
from exporter.esms.answers import Answer
from exporter.esms.client import CallRequest
from exporter.ids import ReferenceId
from exporter.ledger.canary_runs import CanaryResult, CanaryRuns, Intent, NotBegun, Run

_RETRY_EVERY: Final = 1.0
"""Seconds after which a write that failed is tried again."""

Place = Callable[[CallRequest], Awaitable[tuple[Answer, float] | None]]
"""Places a call; returns the outcome, and the seconds that it took; None where nothing was sent."""

_log = structlog.get_logger(__name__)


class RunStatement(Protocol):
    """Runs a statement of the ledger in its thread; raises `LedgerError`."""

    # Any: whatever the statement takes and returns
    async def __call__(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Run it."""


def request_id(canary: str, due: int, account: str) -> str:
    """Return the id with which the provider refuses to place the same call twice (code 124).

    It is derived, so that it is the same whichever exporter places the call.
    """
    text = f"{canary}\n{due}\n{account}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def day_of(moment: float, zone: ZoneInfo) -> tuple[float, float]:
    """Return the beginning and the end of the day that a moment is in; Unix times."""
    # Without its fold: where midnight comes twice, the day begins with the first one.
    local = datetime.fromtimestamp(moment, zone)
    start = local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    end = start + timedelta(days=1)  # by the local calendar: it may have 23 or 25 hours
    return start.timestamp(), end.timestamp()


def call_request(canary: CanaryConfig, account: str, due: int) -> CallRequest:
    """Return the request that places a canary's call."""
    return CallRequest(
        canary.phone,
        request_id(canary.name, due, account),
        canary.recording,
        canary.template,
        canary.variables,
    )


class CanaryRunner:
    """Begins runs, and ends them.

    Args:
        ledger: runs statements.
        statements: those of runs.
        clock: of the ledger, for every time but the one at which a run is due.
        report: called with each stage of a run: its row, the stage, and details.
    """

    def __init__(
        self,
        ledger: RunStatement,
        statements: CanaryRuns,
        clock: Callable[[], float],
        report: Callable[[int, str, Mapping[str, object]], None] = lambda *_: None,
    ) -> None:
        self._ledger = ledger
        self._statements = statements
        self._clock = clock
        self._report = report
        self.placing: set[int] = set()  # runs whose request may be under way here

    async def place(
        self,
        canary: CanaryConfig,
        account: str,
        due: int,
        place: Place,
        *,
        by_hand: bool = False,
    ) -> int | NotBegun | None:
        """Place a call, if no other exporter has.

        Args:
            canary: which.
            account: places the call.
            due: when it is due (Unix time).
            place: sends the request.
            by_hand: it is placed on command.

        Returns:
            The row of the run; why it may not be placed; None where nothing was sent, and the call
            may still be placed.

        Raises:
            LedgerError: nothing was placed; or, with a broken connection to the ledger, it will
                never be.
        """
        request, now = call_request(canary, account, due), self._clock()
        key = key_named(canary.expect_key)
        intent = Intent(
            canary.name,
            due,
            account,
            request.request_id,
            canary.expect,
            key.value if key else None,
            now,
            now + canary.within,
            canary.max_per_day,
            day_of(due, canary.zone),
            by_hand,
        )
        run = await self._ledger(self._statements.begin, intent)
        if isinstance(run, NotBegun):
            if run is NotBegun.LIMITED:
                _log.warning("canary call not placed", canary=canary.name, reason="max_per_day")
            return run
        self.placing.add(run)
        try:
            placed = await place(request)
            if placed is None:
                _log.info("canary call has to wait", canary=canary.name, account=account)
                if not by_hand and time.time() > due + grace(schedule_of(canary), due):
                    await self._end(run, CanaryResult.MISSED)
                    return int(run)
                await self._ledger(self._statements.withdraw, run)
                return None
            await self._placed(canary.name, account, run, *placed)
        finally:
            self.placing.discard(run)
        return int(run)

    async def _placed(
        self, canary: str, account: str, run: int, answer: Answer, seconds: float
    ) -> None:
        """Write the outcome of the request, however long the ledger fails."""
        result = after_placing(answer)
        reference_id = ReferenceId(answer.reference_id or "")
        while True:
            try:
                if result is not None:
                    await self._end(run, result, code=answer.code)
                elif not await self._ledger(
                    self._statements.accept, run, reference_id, self._clock(), seconds
                ):
                    _log.warning("canary call accepted too late", canary=canary)
                    return
                break
            except LedgerError:
                await asyncio.sleep(_RETRY_EVERY)
        if result is None:
            about: dict[str, object] = {"reference_id": reference_id}
            _log.info("canary call accepted", canary=canary, account=account, **about)
            self._report(run, "accepted", {**about, "seconds": seconds})
        else:
            about = {"code": answer.code, "message": answer.message}
            _log.warning("canary call ended", canary=canary, result=result.value, **about)
            self._report(run, result.value, about)

    async def finish(self, run: Run) -> bool:
        """End a run whose call has finished; returns whether it has.

        Raises:
            LedgerError: the ledger failed.
        """
        if (result := after_finish(run)) is None or run.finished_at is None:
            return False
        since = run.accepted_at or run.started_at
        seconds = None if result is CanaryResult.LATE else max(0.0, run.finished_at - since)
        await self.end(run, result, status=run.call_status, seconds=seconds)
        return True

    async def end(
        self,
        run: Run,
        result: CanaryResult,
        *,
        status: str | None = None,
        seconds: float | None = None,
    ) -> None:
        """Write how a run has ended, if it has not ended before.

        Raises:
            LedgerError: the ledger failed.
        """
        if not await self._end(run.id, result, status=status, seconds=seconds):
            return
        log = _log.info if result is CanaryResult.SUCCESS else _log.warning
        log("canary call ended", canary=run.canary, result=result.value, status=status)
        self._report(run.id, result.value, {"status": status, "seconds": seconds})

    async def _end(self, run: int, result: CanaryResult, **about: Any) -> bool:  # Any: of `end`
        return bool(await self._ledger(self._statements.end, run, result, self._clock(), **about))
