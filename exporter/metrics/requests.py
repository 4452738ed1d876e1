"""The series of requests that are no polls."""

from __future__ import annotations

from exporter.esms.codes import CODES, OTHER_CODE, Outcome
from exporter.metrics.catalogue import Catalogue


class RequestMetrics:
    """The series of one account's requests of one operation, made at 0.

    Args:
        catalogue: where they are.
        account: its name.
        operation: the value of the label `operation`.
    """

    def __init__(self, catalogue: Catalogue, account: str, operation: str) -> None:
        self._requests = {
            outcome: catalogue.requests.labels(account, operation, outcome.value)
            for outcome in Outcome
        }
        self._codes = {
            code: catalogue.result_codes.labels(account, operation, code)
            for code in (*CODES, OTHER_CODE)
        }
        self._duration = catalogue.request_duration.labels(account, operation)

    def count(self, outcome: Outcome, code: str | None, seconds: float) -> None:
        """Count a request: what it came to, the code that came with it, how long it took."""
        self._requests[outcome].value += 1
        self._duration.observe(seconds)
        if code is not None:
            self._codes[code].value += 1
