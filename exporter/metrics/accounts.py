"""The metrics of one account and of its polls."""

from __future__ import annotations

from typing import Final

from exporter.calls import CallState, OddField
from exporter.esms.codes import CODES, OTHER_CODE, Outcome
from exporter.metrics.catalogue import (
    AUTH_CODES,
    GET_SEND_STATUS,
    CallbackOutcome,
    Catalogue,
)
from exporter.metrics.families import Value

# Looked up once: Python 3.11 takes as long for a member of an enumeration as for a call.
_OK: Final = Outcome.OK
_NOT_FOUND: Final = Outcome.NOT_FOUND
_AUTH: Final = Outcome.AUTH


class AccountMetrics:
    """The series of one account and of its polls, each looked up once; all begin at 0."""

    def __init__(self, catalogue: Catalogue, account: str) -> None:
        self.requests = {
            outcome: catalogue.requests.labels(account, GET_SEND_STATUS, outcome.value)
            for outcome in Outcome
        }
        self.result_codes = {
            code: catalogue.result_codes.labels(account, GET_SEND_STATUS, code)
            for code in (*CODES, OTHER_CODE)
        }
        self.odd_values = {
            field: catalogue.odd_values.labels(account, field.value) for field in OddField
        }
        self.request_duration = catalogue.request_duration.labels(account, GET_SEND_STATUS)
        self.auth_failures: dict[str, Value] = {
            code: catalogue.auth_failures.labels(account, code) for code in AUTH_CODES
        }
        self.authorized = catalogue.authorized.labels(account)
        self.paused_until = catalogue.paused_until.labels(account)
        self.last_success = catalogue.last_success.labels(account)
        self.lag = catalogue.lag.labels(account)
        self.watched = {
            state: catalogue.watched.labels(account, state.value) for state in CallState
        }
        self.oldest = catalogue.oldest.labels(account)
        self.callbacks = {
            outcome: catalogue.callbacks.labels(account, outcome.value)
            for outcome in CallbackOutcome
        }

    def answered(self, outcome: Outcome, code: str | None, duration: float, wall: float) -> None:
        """Count an answer, or what came instead of it.

        Args:
            outcome: what the request came to.
            code: the label of its result code, if there was one.
            duration: of the request, in seconds.
            wall: Unix time.
        """
        self.requests[outcome].value += 1
        self.request_duration.observe(duration)
        if code is not None:
            self.result_codes[code].value += 1
            if outcome is _AUTH:
                self.auth_failures[code].value += 1
        if outcome is _OK or outcome is _NOT_FOUND:
            self.last_success.value = wall
