"""How a canary call ends: pure."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from exporter.calls import Finished, Status
from exporter.esms.answers import Answer
from exporter.esms.codes import Outcome


class CanaryResult(StrEnum):
    """What became of a canary call that was due: the label `result` of `esms_canary_runs_total`."""

    SUCCESS = "success"  # finished as expected
    FAILURE = "failure"  # finished otherwise
    LATE = "late"  # placed, and not finished in time
    REFUSED = "refused"  # the provider refused to place it
    UNREACHABLE = "unreachable"  # no connection to the provider: not placed
    UNSURE = "unsure"  # nobody knows whether it was placed
    MISSED = "missed"  # nobody was there to place it in time
    LIMITED = "limited"  # `max_per_day` was reached


TELLING: Final = frozenset(CanaryResult) - {CanaryResult.MISSED, CanaryResult.LIMITED}
"""Results that say something of the provider: `esms_canary_success` is about the last of them."""


def after_placing(answer: Answer, *, sent: bool) -> CanaryResult | None:
    """Return how a call has ended that was to be placed; None where it goes on.

    Args:
        answer: of the request that places it, or the failure that came instead of one.
        sent: whether the request may have reached the provider.
    """
    if answer.outcome is Outcome.OK:
        return None
    if not sent:
        return CanaryResult.UNREACHABLE
    # With a code it was the provider who refused; anything else may have come after the call was
    # placed.
    refused = answer.code is not None and answer.outcome is not Outcome.BAD_RESPONSE
    return CanaryResult.REFUSED if refused else CanaryResult.UNSURE


def after_end(finished: Finished, expect: str, expect_key: str | None) -> CanaryResult:
    """Return whether a call that was placed has ended as expected.

    Args:
        finished: how it ended.
        expect: `answered` or `finished`.
        expect_key: the key that was to be pressed, as `Key` names it; None for any or none.
    """
    status = finished.status
    good = status is Status.ANSWERED if expect == "answered" else status is not Status.REJECTED
    if expect_key is not None:
        good = good and finished.key is not None and finished.key.value == expect_key
    return CanaryResult.SUCCESS if good else CanaryResult.FAILURE
