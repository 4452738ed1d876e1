"""Faults that can be switched on and off while the stand-in runs."""

from __future__ import annotations

import math
import random
from dataclasses import asdict, dataclass, replace
from enum import StrEnum

MAX_SIZE = 256 << 20


class FaultKind(StrEnum):
    """What goes wrong. In brackets: the parameters of `Fault` that matter."""

    LATENCY = "latency"
    """The answer comes late (seconds)."""
    HANG = "hang"
    """No answer ever comes; the connection stays open."""
    RESET = "reset"
    """The connection is reset (RST) in place of an answer."""
    STATUS = "status"
    """An HTTP status with an HTML body (status, retry_after, date, body)."""
    HTML = "html"
    """An HTML page with HTTP 200 (body)."""
    EMPTY = "empty"
    """HTTP 200 with an empty body."""
    TRUNCATED = "truncated"
    """The first half of the real answer, as if it were all."""
    WRONG_TYPES = "wrong_types"
    """The real answer's fields, each with a value of another type."""
    NOT_OBJECT = "not_object"
    """JSON that is a list, null, a number, a text or a boolean (body chooses one)."""
    NAN = "nan"
    """The real answer with NaN for its CallDuration, and a Price that is NaN."""
    HUGE = "huge"
    """The real answer with padding: correct JSON of more than `size` bytes."""
    TRICKLE = "trickle"
    """The real answer byte by byte (seconds, for the whole body)."""
    GZIP_BOMB = "gzip_bomb"
    """A small gzip body that grows to `size` bytes."""
    WRONG_ID = "wrong_id"
    """The real answer for another ReferenceId."""
    REDIRECT = "redirect"
    """A redirect to `location` (status 3xx, else 302)."""
    RAW = "raw"
    """Any body with any status (body, status, content_type, retry_after, date)."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    Attributes:
        kind: what goes wrong.
        probability: share of the matching requests that it hits, 0 to 1.
        account: the only account that it hits; None for all.
        operation: the only operation that it hits, such as `GetSendStatus`; None for all.
        reference_id: the only call that it hits, in upper case; None for all requests.
        count: requests that it still hits; None for no limit.
        seconds: how late (`latency`), or how long the body takes (`trickle`).
        status: HTTP status of `status`, `redirect` and `raw`; 0 for the kind's own default.
        retry_after: the `Retry-After` header of `status` and `raw`.
        date: the `Date` header of `status` and `raw`; None for the right one.
        body: the body of `status`, `html`, `not_object` and `raw`.
        content_type: of `raw`.
        size: bytes, of `huge` and `gzip_bomb`.
        location: where `redirect` leads; None for the same address again, for ever.
    """

    kind: FaultKind
    probability: float = 1.0
    account: str | None = None
    operation: str | None = None
    reference_id: str | None = None
    count: int | None = None
    seconds: float = 1.0
    status: int = 0
    retry_after: str | None = None
    date: str | None = None
    body: str | None = None
    content_type: str = "application/json; charset=utf-8"
    size: int = 1_000_000
    location: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError("probability: expected a number from 0 to 1")
        if self.count is not None and self.count < 1:
            raise ValueError("count: expected a number above 0, or null for no limit")
        if not 0 <= self.seconds < math.inf:
            raise ValueError("seconds: expected a number that is not negative")
        if self.status and not 200 <= self.status <= 599:
            raise ValueError("status: expected 200 to 599")
        if not 0 <= self.size <= MAX_SIZE:
            raise ValueError(f"size: expected 0 to {MAX_SIZE} bytes")
        for name in ("retry_after", "date", "content_type", "location"):
            if any(ord(character) < 32 for character in getattr(self, name) or ""):
                raise ValueError(f"{name}: expected a text of one line")
        for name in ("retry_after", "date", "content_type", "location", "body"):
            # Raises a ValueError of its own where a text can't be sent (a lone surrogate).
            (getattr(self, name) or "").encode()


class Faults:
    """The faults that are switched on, by name."""

    def __init__(self, seed: int = 0) -> None:
        self._faults: dict[str, Fault] = {}
        # Not for secrets, but for the same run with the same seed.
        self._rng = random.Random(f"faults:{seed}")  # noqa: S311

    def set(self, name: str, fault: Fault) -> None:
        """Switch a fault on, in place of one of the same name."""
        self._faults[name] = fault

    def clear(self, name: str | None = None) -> bool:
        """Switch a fault off, or all of them; tells whether there was one."""
        if name is not None:
            return self._faults.pop(name, None) is not None
        found = bool(self._faults)
        self._faults.clear()
        return found

    def __contains__(self, name: str) -> bool:
        return name in self._faults

    def draw(
        self, account: str, operation: str, reference_id: str = ""
    ) -> tuple[Fault | None, Fault | None]:
        """What hits a request: a latency, if any, and one other fault, the first that was set."""
        if not self._faults:
            return None, None
        latency = other = None
        for name, fault in tuple(self._faults.items()):
            late = fault.kind is FaultKind.LATENCY
            if (latency if late else other) is not None or not self._hits(
                fault, account, operation, reference_id
            ):
                continue
            self._spend(name, fault)
            if late:
                latency = fault
            else:
                other = fault
        return latency, other

    def _hits(self, fault: Fault, account: str, operation: str, reference_id: str) -> bool:
        return (
            fault.account in (None, account)
            and fault.operation in (None, operation)
            and fault.reference_id in (None, reference_id)
            and (fault.probability >= 1 or self._rng.random() < fault.probability)
        )

    def _spend(self, name: str, fault: Fault) -> None:
        if fault.count is None:
            return
        if fault.count <= 1:
            del self._faults[name]
        else:
            self._faults[name] = replace(fault, count=fault.count - 1)

    def state(self) -> dict[str, object]:
        """All of them, for JSON."""
        return {name: asdict(fault) for name, fault in self._faults.items()}
