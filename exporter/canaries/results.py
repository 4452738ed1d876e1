"""How a canary run ends. Pure."""

from __future__ import annotations

from exporter.calls import Result, Status
from exporter.esms.answers import Answer
from exporter.esms.codes import Outcome
from exporter.ledger.canary_runs import CanaryResult, Run
from exporter.ledger.types import DELETED


def after_placing(answer: Answer) -> CanaryResult | None:
    """Return how a run ends by the outcome of its request; None where the call is accepted.

    Args:
        answer: of the request that places it, or the failure that came instead of one.
    """
    if answer.outcome is Outcome.OK:
        return None
    if not answer.sent:
        return CanaryResult.UNREACHABLE
    # With a code it was the provider who refused; anything else may have come after the call was
    # placed.
    refused = answer.code is not None and answer.outcome is not Outcome.BAD_RESPONSE
    return CanaryResult.REFUSED if refused else CanaryResult.UNSURE


def after_finish(run: Run) -> CanaryResult | None:
    """Return how a run ends by the result of its call; None while there is none."""
    if run.call_result is None or run.call_result == DELETED:
        return None
    if run.call_result == Result.UNKNOWN:
        return CanaryResult.LATE  # the call was given up
    answered = run.call_status == Status.ANSWERED
    good = answered if run.expect == "answered" else run.call_status != Status.REJECTED
    if run.expect_key is not None:
        good = good and run.call_key == run.expect_key
    return CanaryResult.SUCCESS if good else CanaryResult.FAILURE
