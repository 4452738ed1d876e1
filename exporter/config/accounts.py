"""The sections `accounts`, `polling` and `balance`."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

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
    text,
)
from exporter.config.validation import Section, invalid, invalid_at
from exporter.secrets import Secret


def _proxy_url(value: Secret) -> Secret:
    url = URL(value.reveal())
    if url.scheme not in {"http", "https"} or not url.host or url.path not in {"", "/"}:
        raise ValueError
    if re.search(r"[?#]|@.*@", value.reveal()):
        raise ValueError
    if ":" in (url.user or ""):  # the proxy would end the user at the colon
        raise ValueError
    return value


ProxyUrl = Annotated[
    SecretKey,
    Field(json_schema_extra={"pattern": "^https?://"}),
    AfterValidator(_proxy_url),
    Expected("a URL `http://HOST:PORT`; user and password before the host percent-encoded"),
]


MAX_CODES: Final = 100


def _not_success(code: str) -> str:
    if code == "100":
        raise ValueError
    return code


ResultCode = Annotated[
    str,
    text("result codes of 1 to 8 digits other than 100", "^[0-9]{1,8}$", check=_not_success),
]
CodeClass = Literal["auth", "not_found", "throttled", "api_error"]


class AccountConfig(Section):
    """A set of eSMS credentials, with its rate limit."""

    secrets = ("api_key", "secret_key", "callback_token", "proxy_url")

    name: Name
    """The value of the label `account`. Unique."""

    api_key: SecretKey
    """The ApiKey of eSMS. Either this or `api_key_file`."""

    secret_key: SecretKey
    """The SecretKey of eSMS. Either this or `secret_key_file`."""

    callback_token: SecretKey | None = None
    """Token in the path of the provider's callback. Without it, callbacks are off."""

    base_url: BaseUrl = "https://voiceapi.esms.vn/MainService.svc/json"
    """The URL of the API, without the name of the operation."""

    message_url: BaseUrl = "https://rest.esms.vn/MainService.svc/json"
    """The URL of the API for messages, without the name of the operation. The provider has a
    separate host for them."""

    balance_url: BaseUrl = "https://rest.esms.vn/MainService.svc/json"
    """The URL of the API for balances, without the name of the operation. The provider has a
    separate host for it."""

    proxy_url: ProxyUrl | None = None
    """An HTTP proxy for all requests of this account: `http://USER:PASSWORD@HOST:PORT`, with user
    and password percent-encoded. Either this or `proxy_url_file`. The environment variables
    `HTTP_PROXY` and `HTTPS_PROXY` are not used."""

    codes: dict[ResultCode, CodeClass] = Field(default_factory=dict, max_length=MAX_CODES)
    """Classes of result codes that differ from the default, or that are new: `auth` (pause the
    account: the credentials are refused), `throttled` (slow the account down), `not_found` (poll
    the call again within `not_found_grace`) or `api_error` (poll the call again, with back-off)."""

    balance_warning: (
        Annotated[
            float,
            amount("an amount in VND: a number above 0, at most 1000000000000000", 1e15),
        ]
        | None
    ) = None
    """The balance is low below this amount, in VND."""

    rate_limit: Annotated[float, amount("a number above 0, at most 100000", 100_000)] = 20.0
    """Maximum number of requests per second."""

    max_concurrency: Annotated[int, count(1, 1000)] = 32
    """Maximum number of concurrent requests."""


class PollingConfig(Section):
    """When calls are polled, and when to give up."""

    pace: Literal["adaptive", "growing"] = "adaptive"
    """`adaptive` learns how long the calls of an account take, and polls when results are likely.
    `growing` polls new calls every `interval`, and older calls less often."""

    # 100 ms is for tests.
    interval: Annotated[float, duration("100ms", "1d")] = 15.0
    """`adaptive`: the target delay. 95 % of results should be known within this time after the end
    of the call, if about 30 polls per call are enough. `growing`, and `adaptive` until it has
    learnt: the interval between polls of a new call."""

    max_interval: Annotated[float, duration("100ms", "1d")] = 300.0
    """Maximum interval between polls of a call. At least `interval`."""

    timeout: Annotated[float, duration("1ms", "10m")] = 10.0
    """Timeout of a request, from connecting to the last byte of the response."""

    not_found_grace: Annotated[float, duration("0s", "6d")] = 600.0
    """A call that the provider does not know for this long finishes as `not_found`."""

    give_up_after: Annotated[float, duration("100ms", "6d")] = 259_200.0
    """A call without a result after this time finishes as `expired`. The provider forgets calls
    after about 7 days."""

    @model_validator(mode="after")
    def _in_order(self) -> PollingConfig:
        for lower, upper in (("interval", "max_interval"), ("not_found_grace", "give_up_after")):
            if getattr(self, upper) < getattr(self, lower):
                raise invalid_at(upper, f"expected at least the value of `{lower}`")
        return self


class BalanceConfig(Section):
    """How often the balance of each account is requested."""

    interval: Annotated[float, duration("0s", "1d")] = 300.0
    """Interval between requests, at least 1s. `0` turns requests off."""

    @field_validator("interval")
    @classmethod
    def _off_or_at_least_a_second(cls, value: float) -> float:
        if 0 < value < 1:
            raise invalid("expected 0s, or a duration from 1s to 1d")
        return value
