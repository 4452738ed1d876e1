"""Accounts of the stand-in provider."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class AccountState(StrEnum):
    """Whether an account may do anything, and with which code it is refused if not."""

    OK = "ok"
    REVOKED = "revoked"
    IP_BLOCKED = "ip_blocked"
    LOCKED = "locked"


@dataclass(frozen=True, slots=True)
class Account:
    """A set of credentials that the stand-in knows.

    Attributes:
        name: how the control API and the counters name it.
        api_key: `ApiKey` of its requests.
        secret_key: `SecretKey` of its requests.
        tps: requests allowed per second, a fraction counting as a whole one; None for no limit.
        state: `ok`, or the reason for which every request is refused.
        http_429: requests over the limit get HTTP 429 instead of code 160.
        retry_after: the `Retry-After` header of such a 429, seconds or an HTTP date.
        balance: VND.
        user_id: `UserID` of GetBalance.
    """

    name: str
    api_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    tps: float | None = None
    state: AccountState = AccountState.OK
    http_429: bool = False
    retry_after: str | None = None
    balance: float = 1_000_000
    user_id: int = 9999

    def __post_init__(self) -> None:
        for name in ("name", "api_key", "secret_key"):
            if not getattr(self, name):
                raise ValueError(f"{name}: expected a text that is not empty")
        retry_after = self.retry_after or ""
        if not (retry_after.isascii() and retry_after.isprintable()):
            raise ValueError("retry_after: expected seconds or an HTTP date")
        if self.tps is not None and not self.tps > 0:
            raise ValueError("tps: expected a number above 0, or null for no limit")
