"""Placing a call: what the parameters of MakeCall* are checked for, and what they do to a plan."""

from __future__ import annotations

import random
import re
import uuid
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta, timezone

from exporter.simulator.life import Plan
from exporter.simulator.mix import Mix
from exporter.simulator.replies import Operation

# "a RequestId blocks for 24 h" (api/README.md).
REQUEST_ID_BLOCKS = 24 * 3600.0
# The provider's clock: Vietnam has had no daylight saving time since 1975.
VIETNAM = timezone(timedelta(hours=7))
_PHONE = re.compile(r"(?:0|\+?84)[1-9][0-9]{8,9}")
_MAX_RETRIES = 10


def complaint(
    operation: Operation, params: Mapping[str, str], *, templates: frozenset[str]
) -> str | None:
    """The code with which a call is refused for its own parameters; None where they will do.

    Args:
        operation: one of the two MakeCall operations.
        params: the query.
        templates: ids of templates, or of recordings, that exist.
    """
    if params.get("TemplateId", "").strip() not in templates:
        return "106" if operation is Operation.MAKE_CALL_RECORD else "104"
    if not _PHONE.fullmatch(params.get("Phone", "").strip()):
        return "108"
    return None


class RequestIds:
    """The callers' own ids of their requests, which must not be repeated within 24 hours."""

    def __init__(self) -> None:
        # In the order of their times, so that the oldest are dropped first.
        self._used: dict[tuple[str, str], float] = {}

    def repeated(self, account: str, params: Mapping[str, str], now: float) -> bool:
        """Whether the id was used within 24 hours; if not, it is now.

        Args:
            account: whose request it is.
            params: the query; the two pages of MakeCall* spell the id's name differently.
            now: seconds of the clock in which calls live.
        """
        used = self._used
        while used and used[oldest := next(iter(used))] <= now - REQUEST_ID_BLOCKS:
            del used[oldest]
        key = account, (params.get("RequestID") or params.get("RequestId") or "").strip()
        if not key[1]:
            return False
        if key in used:
            return True
        used[key] = now
        return False


def planned(mix: Mix, rng: random.Random, params: Mapping[str, str], today: datetime) -> Plan:
    """What becomes of a call that was placed with these parameters.

    `MaxRetry` and `WaitRetry` (seconds; the provider names no unit) make it last longer, and so
    does a `SendDate` (yyyy/MM/dd hh:mm:ss, Vietnam) that is still to come.
    """
    plan = mix.retried(
        mix.draw(rng),
        rng,
        retries=min(_MAX_RETRIES, _whole(params.get("MaxRetry", ""))),
        wait=_whole(params.get("WaitRetry", "")),
    )
    return replace(plan, queued=plan.queued + _seconds_until(params.get("SendDate", ""), today))


def new_id(rng: random.Random) -> str:
    """A new `SMSID`: lower case here, upper case in the answer of GetSendStatus, as documented."""
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def _whole(text: str) -> int:
    return int(text) if re.fullmatch(r"[0-9]{1,6}", text.strip()) else 0


def _seconds_until(text: str, today: datetime) -> float:
    try:
        date = datetime.strptime(text.strip(), "%Y/%m/%d %H:%M:%S").replace(tzinfo=VIETNAM)
    except ValueError:
        # Which code the provider has for a malformed date is not documented: it calls at once.
        return 0.0
    return max(0.0, (date - today).total_seconds())
