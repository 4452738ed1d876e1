"""One canary call, from the intent to place it to its end."""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, Protocol
from zoneinfo import ZoneInfo

import structlog

from exporter.account import Account
from exporter.calls import CallState, Finished, GiveUpPolicy, WatchedCall, key_named, verdict
from exporter.canaries.results import CanaryResult, after_end, after_placing
from exporter.canaries.schedule import grace
from exporter.config.canaries import CanaryConfig
from exporter.errors import LedgerError
from exporter.esms.client import CallRequest, PlacedCall
from exporter.ids import ReferenceId
from exporter.ledger.canary_runs import CanaryRuns, Intent, NotBegun, Run
from exporter.metrics.catalogue import MAKE_CALL, Catalogue
from exporter.metrics.requests import RequestMetrics

WAIT_FOR_TURN: Final = 30.0
"""Seconds that a request waits for its turn, before the right to send it is given up."""

_WRITE_AGAIN: Final = 1.0
"""Seconds after which it is tried again to write how a call went."""

_ALL_PATIENCE: Final = GiveUpPolicy(math.inf, math.inf)

_log = structlog.get_logger(__name__)


class Call(Protocol):
    """Runs a statement of the ledger in its thread; raises `LedgerError`."""

    # Any: whatever the statement takes and returns
    async def __call__(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Run it."""


def request_id(canary: str, due: int, account: str) -> str:
    """Return the id with which the provider refuses to place the same call twice (code 124).

    Derived, so that it is the same whoever places the call that is due then.
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
    """Return what the provider is asked for."""
    return CallRequest(
        canary.phone,
        request_id(canary.name, due, account),
        canary.recording,
        canary.template,
        canary.variables,
    )


class Runs:
    """Places canary calls, and follows them.

    Args:
        call: runs statements of the ledger.
        statements: what is to be run.
        accounts: who places calls, and asks for them; whoever changes them has it seen here.
        metrics: where requests are counted.
        clock: the ledger's, by which every time of a run is told but the one when it is due.
        told: told of each stage that a call reaches: its row, the stage, and more about it.
    """

    def __init__(
        self,
        call: Call,
        statements: CanaryRuns,
        accounts: Mapping[str, Account],
        metrics: Catalogue,
        clock: Callable[[], float],
        told: Callable[[int, str, Mapping[str, object]], None] = lambda *_: None,
    ) -> None:
        self._call = call
        self._statements = statements
        self._accounts = accounts
        self._metrics = metrics
        self._clock = clock
        self._told = told
        self.placing: set[int] = set()  # rows of calls whose request may be under way here

    async def place(
        self,
        canary: CanaryConfig,
        name: str,
        due: int,
        *,
        by_hand: bool = False,
        wanted: Callable[[], bool] = lambda: True,
    ) -> int | NotBegun | None:
        """Place a call, if nobody else has.

        Args:
            canary: which.
            name: of the account.
            due: when it is due (Unix time).
            by_hand: somebody asks for it.
            wanted: whether it is still to be placed, asked while it waits for its turn.

        Returns:
            Its row; why it may not be placed; None where there was no turn in time, and it may
            still be placed.

        Raises:
            LedgerError: nothing was placed; or, with a broken connection to the ledger, nobody
                will place it.
        """
        account, now = self._accounts[name], self._clock()
        request = call_request(canary, name, due)
        key = key_named(canary.expect_key)
        intent = Intent(
            canary.name,
            due,
            name,
            request.request_id,
            canary.expect,
            key.value if key else None,
            now,
            now + canary.within,
            canary.max_per_day,
            day_of(due, canary.zone),
            by_hand,
        )
        row = await self._call(self._statements.begin, intent)
        if isinstance(row, NotBegun):
            if row is NotBegun.LIMITED:
                _log.warning("canary call not placed", canary=canary.name, reason="max_per_day")
            return row
        self.placing.add(row)
        try:
            done = await account.place(request, WAIT_FOR_TURN, wanted)
            if done is None:
                _log.info("canary call has to wait", canary=canary.name, account=name)
                return await self._give_back(canary, row, due, by_hand=by_hand)
            await self._placed(canary.name, name, row, *done)
        finally:
            self.placing.discard(row)
        return int(row)

    async def _give_back(
        self, canary: CanaryConfig, row: int, due: int, *, by_hand: bool
    ) -> int | None:
        """Give up the right to place a call that was not sent; see `place`."""
        if by_hand or time.time() <= due + grace(canary.schedule, due):
            await self._call(self._statements.withdraw, row)
            return None
        await self._call(self._statements.end, row, CanaryResult.MISSED, self._clock())
        return row

    async def _placed(
        self, canary: str, account: str, row: int, placed: PlacedCall, seconds: float
    ) -> None:
        """Write what came of the request; until that can be done."""
        answer = placed.answer
        if account in self._accounts:  # or the series of one that has gone would come back
            requests = RequestMetrics(self._metrics, account, MAKE_CALL)
            requests.count(answer.outcome, answer.code, seconds)
        result = after_placing(answer, sent=placed.sent)
        while True:
            try:
                if result is None:
                    reference_id = answer.reference_id or ""
                    accepted = self._statements.accept, row, reference_id, self._clock(), seconds
                    if not await self._call(*accepted):
                        _log.warning("canary call accepted too late", canary=canary)
                        return
                else:
                    await self._call(
                        self._statements.end, row, result, self._clock(), code=answer.code
                    )
                break
            except LedgerError:
                await asyncio.sleep(_WRITE_AGAIN)
        if result is None:
            _log.info(
                "canary call accepted",
                canary=canary,
                account=account,
                reference_id=answer.reference_id,
            )
            self._told(row, "accepted", {"reference_id": answer.reference_id, "seconds": seconds})
        else:
            about = {"code": answer.code, "message": answer.message}
            _log.warning("canary call ended", canary=canary, result=result.value, **about)
            self._told(row, result.value, about)

    async def follow(self, run: Run, apart: float, *, overdue: bool) -> None:
        """Ask once what became of a call, and write it if it has ended.

        Args:
            run: a call that the provider has accepted.
            apart: seconds for which nobody else is to ask.
            overdue: the time in which it has to have finished is over.

        Raises:
            LedgerError: the ledger failed.
        """
        now = self._clock()
        account = self._accounts.get(run.account)
        if account is None or run.reference_id is None:
            return
        if not await self._call(self._statements.take_turn, run.id, now, now + apart):
            return
        reference_id = ReferenceId(run.reference_id)
        answer = await account.look_up(reference_id, apart)
        if answer is None:
            return
        now = self._clock()
        since = run.accepted_at or now
        asked = WatchedCall(run.id, reference_id, since, CallState.NEW, since)
        decided = verdict(asked, answer, now, _ALL_PATIENCE)
        if isinstance(decided, Finished):
            account.poller.count_odd_values(asked, decided)
            result = after_end(decided, run.expect, run.expect_key)
            seconds = max(0.0, now - since)
            await self.end(run, result, status=decided.status.value, seconds=seconds)
        elif overdue:
            await self.end(run, CanaryResult.LATE)

    async def end(
        self,
        run: Run,
        result: CanaryResult,
        *,
        status: str | None = None,
        seconds: float | None = None,
    ) -> None:
        """Write how a call has ended, if nobody has.

        Raises:
            LedgerError: the ledger failed.
        """
        written = await self._call(
            self._statements.end, run.id, result, self._clock(), status=status, seconds=seconds
        )
        if not written:
            return
        log = _log.info if result is CanaryResult.SUCCESS else _log.warning
        log("canary call ended", canary=run.canary, result=result.value, status=status)
        self._told(run.id, result.value, {"status": status, "seconds": seconds})
