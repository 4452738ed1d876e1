"""A status page with something of everything, always the same."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta, timezone
from functools import cache
from heapq import nlargest

from exporter.account import AccountStatus
from exporter.calls import CallbackOutcome, CallState, Key, Result, Status
from exporter.canaries.canaries import CanaryNumbers
from exporter.esms.codes import Outcome
from exporter.ledger.canary_runs import CanaryResult
from exporter.ledger.history import CallEvent, EventKind
from exporter.ledger.outbox import DeliveryAction
from exporter.ledger.types import FinishedCall
from exporter.notify.dispatcher import TargetStatus
from exporter.notify.target import Delivery, DeliveryOutcome
from exporter.polling.stats import Balance
from exporter.recent_results import RecentResults
from exporter.web.schemas import CallDetails, HistoryEvent
from exporter.web.status_page import (
    AccountView,
    CallView,
    SourceView,
    StatusView,
    Viewer,
    redacted_lines,
)

VIETNAM = timezone(timedelta(hours=7), "+07")
NOW = datetime(2025, 3, 14, 7, 32, 20, tzinfo=UTC).timestamp()
RATES = {"main": 9.0, "hotline": 2.5}
BALANCES = {"main": Balance(4_812_350, NOW - 74), "hotline": Balance(36_693, NOW - 209)}
KNOWN = Viewer(None)

FAILED = Delivery(DeliveryOutcome.HTTP_ERROR, DeliveryAction.RETRY, problem="HTTP status 503")
_MIX = (
    (Result.SUCCESS, Status.ANSWERED, 74),
    (Result.SUCCESS, Status.NO_ANSWER, 15),
    (Result.SUCCESS, Status.BUSY, 5),
    (Result.FAILURE, Status.FAILED, 3),
    (Result.FAILURE, Status.BUSY, 2),
    (Result.UNKNOWN, Status.EXPIRED, 1),
)


def midnight(at: float) -> float:
    day = datetime.fromtimestamp(at, VIETNAM).replace(hour=0, minute=0, second=0, microsecond=0)
    return day.timestamp()


def reference_id(chance: random.Random) -> str:
    text = f"{chance.getrandbits(128):032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


@cache
def histories() -> RecentResults:
    """Make a day of calls, so many a minute of each account."""
    made, chance = RecentResults(midnight), random.Random(5)
    made.load(RATES, [], midnight(NOW) - 1)
    for account, rate in RATES.items():
        at = midnight(NOW)
        while (at := at + chance.expovariate(rate / 60)) < NOW:
            # For some minutes of the last hour, most calls fail.
            bad = NOW - 1500 < at < NOW - 1140 and chance.random() < 0.5
            result, status, _ = chance.choices(_MIX, [share for *_, share in _MIX])[0]
            if bad:
                result, status = Result.FAILURE, Status.FAILED
            waited = chance.uniform(20, 240)
            name = reference_id(chance)
            call = FinishedCall(account, name, result, status, None, None, {}, at - waited, at)
            made.add(call)
    return made


def account(name: str, **changes: object) -> AccountStatus:
    values: dict[str, object] = {
        "name": name,
        "authorized": True,
        "watched": dict(zip(CallState, (3, 0, 12, 41, 0, 2), strict=True)),
        "overdue": 0,
        "lag": 0.0,
        "paused": None,
        "paused_until": None,
        "last_success": NOW - 2,
    }
    return AccountStatus(**{**values, **changes})  # type: ignore[arg-type] # a table of tests


def sample(viewer: Viewer = KNOWN) -> StatusView:
    """Return the page that the documentation shows."""
    made = histories()
    accounts = (
        account("main"),
        account("hotline", watched=dict(zip(CallState, (0, 0, 4, 9, 0, 0), strict=True))),
        account(
            "old-keys",
            authorized=False,
            watched={CallState.NEW: 1},
            paused=Outcome.AUTH,
            paused_until=NOW + 207,
            code="101",
            message="Authorize Failed",
            last_success=0.0,
        ),
    )
    recents = [(one, made.recent(one.name, NOW)) for one in accounts]
    failures = (call for _, recent in recents for call in recent.failures)
    trouble = "calls/today.csv:17: [15].campaign: expected at most 128 characters"
    return StatusView(
        NOW,
        (),
        [AccountView(one, recent, BALANCES.get(one.name)) for one, recent in recents],
        nlargest(8, failures, key=lambda call: call.finished_at),
        [
            SourceView("api", NOW - 1, 0, failing=False, problems=()),
            SourceView("config", NOW - 26_000, 1, failing=False, problems=()),
            SourceView(
                "files",
                NOW - 312,
                1,
                failing=True,
                problems=redacted_lines(trouble) if viewer.authenticated else (),
            ),
            SourceView("sql:orders", NOW - 11, 0, failing=False, problems=()),
        ],
        NOW - 26_000,
        (),
        viewer,
        [
            (
                "main-hourly",
                CanaryNumbers("main", True, NOW - 1900, {}, {}, NOW - 1940, CanaryResult.SUCCESS),
                NOW + 1660,
            ),
            ("main-nightly", CanaryNumbers("main", False, 0.0, {}, {}), NOW + 40_000),
        ],
        [
            TargetStatus("home-assistant", 0, 0.0, paused=False),
            TargetStatus("crm", 214, NOW - 95, True, (NOW - 12, FAILED)),
        ],
        {"exporter-b:21": ["spring", "summer"]},
        searched=[
            name
            for name in ("main", "hotline", "old-keys", "spring", "summer")
            if viewer.sees(name)
        ],
    )


def sample_call() -> CallView:
    """Return the page of a call, with something of everything."""
    row, began, ended = 1, NOW - 200, NOW - 40
    history = [
        CallEvent(row, began, EventKind.WATCHED),
        CallEvent(row, began + 20, EventKind.STATE, CallState.QUEUED),
        CallEvent(row, began + 120, EventKind.CALLBACK, CallbackOutcome.HINT),
        CallEvent(row, ended, EventKind.FINISHED, Result.FAILURE, Status.BUSY),
        CallEvent(row, ended + 2, EventKind.FAILED, "crm", "HTTP status 503"),
        CallEvent(row, ended + 32, EventKind.DELIVERED, "crm", "HTTP status 204"),
    ]
    call = CallDetails(
        account="main",
        reference_id="8D1F2A3B-4C5D-6E7F-8091-A2B3C4D5E6F7",
        labels={"campaign": "otp"},
        state="finished",
        first_watched=datetime.fromtimestamp(began, UTC),
        result=Result.FAILURE,
        status=Status.BUSY,
        duration=13.0,
        key=Key.STAR,
        finished_at=datetime.fromtimestamp(ended, UTC),
        price=1420.5,
        history=[HistoryEvent.model_validate(event) for event in history],
    )
    return CallView(NOW, KNOWN, ["main", "hotline"], call)
