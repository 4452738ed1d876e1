"""What Home Assistant is told of an account and of a call. Pure.

`null` is what is not known; Home Assistant shows it so.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, Final

from exporter.account import AccountStatus
from exporter.calls import Result
from exporter.esms.codes import Outcome
from exporter.ledger.records import CallRecord
from exporter.recent_results import Recent

# Pauses of an account that is reached: it was answered.
_REACHED: Final = frozenset({Outcome.AUTH, Outcome.THROTTLED})


def state(status: AccountStatus, recent: Recent, watched: int, balance: float | None) -> bytes:
    """Return the state of all entities of an account.

    Args:
        status: how it stands.
        recent: what has become of its calls lately.
        watched: how many of them have not finished.
        balance: in VND, if it is known.
    """
    success = sum(minute.success for minute in recent.minutes)
    known = success + sum(minute.failure for minute in recent.minutes)
    failure = recent.failures[0] if recent.failures else None
    told = {
        "credentials": _switch(None if status.authorized is None else not status.authorized),
        "connectivity": _switch(_reached(status)),
        # As the alerts have it: what the provider never told says nothing of the calls.
        "success_ratio": round(100 * success / known, 2) if known else None,
        "watched": watched,
        **{f"{result}_today": recent.of_result(result) for result in Result},
        "last_failure": _time(failure.finished_at) if failure else None,
        "failure": {
            "reference_id": failure.reference_id,
            "result": failure.result.value,
            "status": failure.status.value,
        }
        if failure
        else {},
        **({} if balance is None else {"balance": balance}),
    }
    return _json(told)


def finished(call: CallRecord) -> bytes:
    """Return what is told of a call that has finished."""
    return _json(
        {
            "event_type": call.result,
            "account": call.account,
            "reference_id": call.reference_id,
            "status": call.status,
            "labels": call.labels,
            "duration": call.duration,
            "key": call.key,
            "finished_at": _time(call.finished_at or 0.0),
        }
    )


def _reached(status: AccountStatus) -> bool | None:
    if status.paused is not None:
        return status.paused in _REACHED
    return True if status.authorized is not None or status.last_success else None


def _switch(on: bool | None) -> str | None:  # noqa: FBT001 - a value, not an option
    return None if on is None else "ON" if on else "OFF"


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def _json(told: dict[str, Any]) -> bytes:  # Any: JSON
    return json.dumps(told, separators=(",", ":")).encode()
