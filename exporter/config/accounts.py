"""The sections `accounts`, `polling` and `balance`."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator
from yarl import URL

from exporter.config.types import (
    BaseUrl,
    Expected,
    Name,
    SecretKey,
    amount,
    count,
    duration,
)
from exporter.config.validation import Section, invalid, invalid_at
from exporter.secrets import Secret


def _proxy_url(value: Secret) -> Secret:
    url = URL(value.reveal())
    if url.scheme not in {"http", "https"} or not url.host or url.path not in {"", "/"}:
        raise ValueError
    if re.search(r"[?#]|@.*@", value.reveal()):
        raise ValueError
    if ":" in (url.user or ""):  # which no proxy could tell from the password's beginning
        raise ValueError
    return value


ProxyUrl = Annotated[
    SecretKey,
    Field(json_schema_extra={"pattern": "^https?://"}),
    AfterValidator(_proxy_url),
    Expected("a URL `http://HOST:PORT`; user and password before the host percent-encoded"),
]


class AccountConfig(Section):
    """A set of eSMS credentials, and how fast it may be used."""

    secrets = ("api_key", "secret_key", "callback_token", "proxy_url")

    name: Name
    """The value of the label `account`. Unique."""

    api_key: SecretKey
    """The ApiKey. Either this or `api_key_file`."""

    secret_key: SecretKey
    """The SecretKey. Either this or `secret_key_file`."""

    callback_token: SecretKey | None = None
    """What the path of the provider's callback has to hold; without it, there is no callback."""

    base_url: BaseUrl = "https://voiceapi.esms.vn/MainService.svc/json"
    """Where the API is, without the name of an operation."""

    balance_url: BaseUrl = "https://rest.esms.vn/MainService.svc/json"
    """Where the balance is requested, without the name of the operation: another host of the
    provider's."""

    proxy_url: ProxyUrl | None = None
    """An HTTP proxy for all requests of this account: `http://USER:PASSWORD@HOST:PORT`, with user
    and password percent-encoded. Either this or `proxy_url_file`. Without it there is none: the
    environment variables `HTTP_PROXY` and `HTTPS_PROXY` are not used."""

    balance_warning: (
        Annotated[
            float,
            amount("an amount in VND: a number above 0, at most 1000000000000000", 1e15),
        ]
        | None
    ) = None
    """The balance, in VND, below which it is low."""

    rate_limit: Annotated[float, amount("a number above 0, at most 100000", 100_000)] = 20.0
    """Requests per second, at most. Above 0, up to 100000."""

    max_concurrency: Annotated[int, count(1, 1000)] = 32
    """Requests under way at a time, at most."""


class PollingConfig(Section):
    """When a call is polled, and when it is given up."""

    pace: Literal["adaptive", "growing"] = "adaptive"
    """`adaptive` learns how long an account's calls take, and polls when results are likely;
    `growing` polls every `interval`, and older calls less and less often."""

    # Nobody should poll ten times a second, but tests of a whole life of a call have to.
    interval: Annotated[float, duration("100ms", "1d")] = 15.0
    """How late results may be known. `adaptive`: 95 % of them are to be known within it, after
    their calls' end, where that takes no more than some 30 requests for a single one. `growing`,
    and `adaptive` before it has learnt: from one poll of a young call to the next."""

    max_interval: Annotated[float, duration("100ms", "1d")] = 300.0
    """The longest time from one poll of a call to the next. At least `interval`."""

    timeout: Annotated[float, duration("1ms", "10m")] = 10.0
    """Of one request, from connecting to the last byte."""

    not_found_grace: Annotated[float, duration("0s", "6d")] = 600.0
    """How long a call may be unknown to the provider before it counts as not found."""

    give_up_after: Annotated[float, duration("100ms", "6d")] = 259_200.0
    """How long a call is watched. The provider forgets calls after about 7 days."""

    @model_validator(mode="after")
    def _in_order(self) -> PollingConfig:
        for lower, upper in (("interval", "max_interval"), ("not_found_grace", "give_up_after")):
            if getattr(self, upper) < getattr(self, lower):
                raise invalid_at(upper, f"expected at least the value of `{lower}`")
        return self


class BalanceConfig(Section):
    """How often the balance of each account is requested."""

    interval: Annotated[float, duration("0s", "1d")] = 300.0
    """From one request to the next; 0 to request none, else at least 1s."""

    @field_validator("interval")
    @classmethod
    def _off_or_at_least_a_second(cls, value: float) -> float:
        if 0 < value < 1:
            raise invalid("expected 0s, or a duration from 1s to 1d")
        return value
