"""The configuration: its top level, and the function that loads a file."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, PrivateAttr, field_validator, model_validator

from exporter.config.canaries import MAX_CANARIES, CanaryConfig
from exporter.config.databases import LedgerConfig, SqlConfig
from exporter.config.document import Problems, Value, YamlMapping, YamlSequence, load_mapping
from exporter.config.files import FileProblemError, NamedFiles, system_tls
from exporter.config.targets import MAX_TARGETS, HomeAssistantConfig, NotifyConfig
from exporter.config.validation import (
    MAX_ACCOUNTS,
    BaseUrl,
    Expected,
    KindName,
    LoadContext,
    Name,
    SecretKey,
    Section,
    Switch,
    amount,
    check_url,
    count,
    duration,
    invalid,
    invalid_at,
    text,
    validate,
)
from exporter.config.watch import ApiConfig, CallbackConfig, CallConfig, TokenConfig, WatchConfig
from exporter.ids import Kind
from exporter.secrets import Secret

__all__ = [
    "AccountConfig",
    "ApiConfig",
    "BalanceConfig",
    "CallConfig",
    "CallbackConfig",
    "CanaryConfig",
    "Config",
    "HomeAssistantConfig",
    "LedgerConfig",
    "MetricsConfig",
    "NamedFiles",
    "NotifyConfig",
    "PollingConfig",
    "SqlConfig",
    "TokenConfig",
    "WatchConfig",
    "json_schema",
    "load_config",
]

MAX_FILE: Final = 64 << 20


def _proxy_url(value: Secret) -> Secret:
    url = check_url(value.reveal(), "http", "https", without="?#", path=False)
    # The proxy would take a colon in the user as the start of the password.
    if value.reveal().count("@") > 1 or ":" in (url.user or ""):
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

    default_kind: KindName = Kind.CALL
    """The kind of calls without a `kind`: `call`, or `message` for an account that sends messages
    (Voice OTP, SMS, Zalo and Viber)."""

    codes: dict[ResultCode, CodeClass] = Field(default_factory=dict, max_length=MAX_CODES)
    """Classes of result codes that differ from the default, or that are new: `auth` (pause the
    account: the credentials are refused), `throttled` (slow the account down), `not_found` (poll
    the call again within `not_found_grace`) or `api_error` (poll the call again, with back-off)."""

    balance_warning: Annotated[float, amount(10**15, "an amount in VND: ")] | None = None
    """Threshold in VND below which the balance is low."""

    rate_limit: Annotated[float, amount(100_000)] = 20.0
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


class MetricsConfig(Section):
    """What `/metrics` exposes."""

    exemplars: Switch = False
    """Add OpenMetrics exemplars to the metrics of finished calls and messages: the id of the
    newest call or message that a series counts. Everybody who can read `/metrics` sees these
    ids."""


class Config(Section):
    """The configuration of esms-exporter."""

    accounts: Annotated[tuple[AccountConfig, ...], Field(min_length=1, max_length=MAX_ACCOUNTS)]
    """The accounts whose calls are watched."""

    polling: PollingConfig = PollingConfig()
    """When calls are polled, and when to give up."""

    balance: BalanceConfig = BalanceConfig()
    """How often the balance of each account is requested."""

    watch: WatchConfig = WatchConfig()
    """Which calls are watched, and the names of their labels."""

    ledger: LedgerConfig = LedgerConfig()
    """The durable record of calls and totals."""

    metrics: MetricsConfig = MetricsConfig()
    """What `/metrics` exposes."""

    notify: Annotated[tuple[NotifyConfig, ...], Field(max_length=MAX_TARGETS)] = ()
    """Webhooks that receive a POST request for each finished call."""

    canaries: Annotated[tuple[CanaryConfig, ...], Field(max_length=MAX_CANARIES)] = ()
    """Test calls that the exporter places on a schedule. They cost money."""

    home_assistant: Annotated[HomeAssistantConfig | None, Field(title="Home Assistant")] = None
    """Publish accounts and finished calls to Home Assistant, through an MQTT broker. Off by
    default."""

    shutdown_timeout: Annotated[float, duration("100ms", "1h")] = 10.0
    """Grace period at shutdown, to finish what is in progress."""

    _tls: ssl.SSLContext | None = PrivateAttr(default=None)

    def model_post_init(self, context: Any) -> None:  # Any: as pydantic declares it
        """Keep the certificate authorities of the load context."""
        if isinstance(context, LoadContext):
            self._tls = context.tls

    @property
    def tls(self) -> ssl.SSLContext | None:
        """The certificate authorities that servers are verified against; None for the default."""
        return self._tls

    @property
    def retention(self) -> float:
        """Seconds to keep a finished call: `keep_finished` or two runs of the slowest query."""
        runs = (2 * (query.interval + query.timeout) for query in self.watch.sql)
        return max([self.ledger.keep_finished, *runs])


def load_config(
    path: Path, environ: Mapping[str, str] = os.environ, files: NamedFiles | None = None
) -> Config:
    """Read a YAML configuration file; `files` records the files that it names.

    Raises a `ConfigError` with all problems, in the order of the file.
    """
    problems, files = Problems(str(path)), files or NamedFiles()
    document = load_mapping(path, MAX_FILE, environ, problems, "accounts")
    if not document:
        problems.add(0, (), "is empty; expected a mapping with the key `accounts`")
        problems.fail()
    watch = document.get("watch")
    labels = watch.get("labels") if isinstance(watch, YamlMapping) else None
    context = LoadContext(
        path.parent,
        problems,
        files,
        _texts(document.get("accounts"), "name"),
        _texts(labels or YamlSequence()),
    )
    try:
        context.tls = system_tls(files)
    except FileProblemError as error:
        problems.add(0, ("SSL_CERT_FILE",), str(error))
    return validate(Config, document, context)


def _texts(items: Value, key: str | None = None) -> frozenset[str] | None:
    """Return the items of a list, or the value of `key` in each item; None unless all are text."""
    if not isinstance(items, YamlSequence):
        return None
    if key:
        items = YamlSequence(
            item.get(key) if isinstance(item, YamlMapping) else None for item in items
        )
    texts = [item for item in items if isinstance(item, str)]
    return frozenset(texts) if len(texts) == len(items) else None


def json_schema() -> dict[str, object]:
    """Return the JSON Schema (draft 2020-12) of the file before `${NAME}` is replaced."""
    schema: dict[str, object] = Config.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
