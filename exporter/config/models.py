"""What a configuration is: its parts, their defaults and their bounds.

Times are in seconds here; a file writes them as durations, such as `15s`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SkipValidation,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)
from pydantic_core import PydanticCustomError

from exporter.config.authorities import Trusting
from exporter.config.calls import CALL_SCHEMA, CallConfig
from exporter.config.canaries import MAX_CANARIES, CanaryConfig
from exporter.config.databases import query_problem
from exporter.config.fields import (
    LEDGER,
    AccountName,
    Amount,
    BaseUrl,
    Count,
    Duration,
    FilePattern,
    LabelName,
    LedgerUrl,
    ProxyUrl,
    Rate,
    Words,
)
from exporter.config.home_assistant import HomeAssistantConfig
from exporter.config.notify import MAX_TARGETS, NotifyConfig
from exporter.secrets import Secret

MAX_ACCOUNTS = 1000
MAX_LABELS = 5
MAX_PATTERNS = 100
MAX_TOKENS = 1000
MAX_QUERIES = 100
MAX_QUERY = 10_000


class _Model(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True
    )


class AccountConfig(_Model):
    """A set of eSMS credentials, and how fast it may be used."""

    name: AccountName
    """The value of the label `account`. Unique."""

    api_key: Secret
    """The ApiKey. Either this or `api_key_file`."""

    secret_key: Secret
    """The SecretKey. Either this or `secret_key_file`."""

    callback_token: Secret | None = None
    """What the path of the provider's callback has to hold; without it, there is no callback."""

    base_url: BaseUrl = "https://voiceapi.esms.vn/MainService.svc/json"
    """Where the API is, without the name of an operation."""

    balance_url: BaseUrl = "https://rest.esms.vn/MainService.svc/json"
    """Where the balance is asked for, without the name of the operation: another host of the
    provider's."""

    proxy_url: ProxyUrl | None = None
    """An HTTP proxy for all requests of this account: `http://USER:PASSWORD@HOST:PORT`, with user
    and password percent-encoded. Either this or `proxy_url_file`. Without it there is none: the
    environment variables `HTTP_PROXY` and `HTTPS_PROXY` are not used."""

    balance_warning: Amount | None = None
    """The balance, in VND, below which it is low."""

    rate_limit: Rate = 20.0
    """Requests per second, at most. Above 0, up to 100000."""

    max_concurrency: Annotated[int, Count(1, 1000)] = 32
    """Requests under way at a time, at most."""


class PollingConfig(_Model):
    """When a call is asked for, and when it is given up."""

    pace: Annotated[Literal["adaptive", "growing"], Words("`adaptive` or `growing`")] = "adaptive"
    """`adaptive` learns how long an account's calls take, and asks when results are likely;
    `growing` asks every `interval`, and for older calls less and less often."""

    # Nobody should poll ten times a second, but tests of a whole life of a call have to.
    interval: Annotated[float, Duration("100ms", "1d")] = 15.0
    """How late results may be known. `adaptive`: 95 % of them are to be known within it, after
    their calls' end, where that takes no more than some 30 requests for a single one. `growing`,
    and `adaptive` before it has learnt: from one poll of a young call to the next."""

    max_interval: Annotated[float, Duration("100ms", "1d")] = 300.0
    """The longest time from one poll of a call to the next. At least `interval`."""

    timeout: Annotated[float, Duration("1ms", "10m")] = 10.0
    """Of one request, from connecting to the last byte."""

    not_found_grace: Annotated[float, Duration("0s", "6d")] = 600.0
    """How long a call may be unknown to the provider before it counts as not found."""

    give_up_after: Annotated[float, Duration("100ms", "6d")] = 259_200.0
    """How long a call is watched. The provider forgets calls after about 7 days."""

    @field_validator("max_interval")
    @classmethod
    def _not_below_interval(cls, value: float, info: ValidationInfo) -> float:
        if value < info.data.get("interval", 0):
            raise PydanticCustomError("expected", "expected at least the value of `interval`")
        return value

    @field_validator("give_up_after")
    @classmethod
    def _not_below_grace(cls, value: float, info: ValidationInfo) -> float:
        if value < info.data.get("not_found_grace", 0):
            raise PydanticCustomError(
                "expected", "expected at least the value of `not_found_grace`"
            )
        return value


class BalanceConfig(_Model):
    """How often the balance of each account is asked for."""

    interval: Annotated[float, Duration("0s", "1d")] = 300.0
    """From one request to the next; 0 to ask for none, else at least 1s."""

    @field_validator("interval")
    @classmethod
    def _not_without_end(cls, value: float) -> float:
        if 0 < value < 1:
            raise PydanticCustomError("expected", "expected 0s, or a duration from 1s to 1d")
        return value


class TokenConfig(_Model):
    """Somebody who may use the HTTP API."""

    name: AccountName
    """Who it is, for the log. Unique."""

    token: Secret
    """What it shows. Either this or `token_file`."""

    accounts: (
        Annotated[tuple[AccountName, ...], Field(min_length=1, max_length=MAX_ACCOUNTS)] | None
    ) = None
    """The accounts whose calls it may watch and see; all of them where this is left out."""


class ApiConfig(_Model):
    """The HTTP API."""

    tokens: Annotated[tuple[TokenConfig, ...], Field(max_length=MAX_TOKENS)] = ()
    """Who may use it; without any, there is no API."""


class CallbackConfig(_Model):
    """What is made of the provider's callbacks, for accounts with a `callback_token`."""

    trust: Annotated[Literal["verify", "accept"], Words("`verify` or `accept`")] = "verify"
    """`verify` asks the provider about the call at once; `accept` takes the callback's word."""

    unknown: Annotated[Literal["watch", "ignore"], Words("`watch` or `ignore`")] = "watch"
    """What becomes of a call that nobody watches yet."""


class SqlConfig(_Model):
    """A query on a database of yours, which returns calls to watch."""

    name: AccountName
    """Its name in metrics: the label `source` is `sql:NAME`. Unique."""

    url: Secret
    """The database, as SQLAlchemy names it, with user and password percent-encoded. Either this or
    `url_file`."""

    query: Annotated[
        str,
        Field(strict=True, min_length=1, max_length=MAX_QUERY),
        Words(f"a query of 1 to {MAX_QUERY} characters"),
    ]
    """Returns `reference_id`, perhaps `account`, and names in `watch.labels`."""

    interval: Annotated[float, Duration("1s", "1d")] = 30.0
    """From the start of one run to the start of the next."""

    timeout: Annotated[float, Duration("1s", "1h")] = 30.0
    """How long the database may work on the query."""

    account: AccountName | None = None
    """The account of rows that name none; may be left out where there is one account."""

    @field_validator("query")
    @classmethod
    def _known_parameters(cls, value: str) -> str:
        if problem := query_problem(value):
            raise PydanticCustomError("expected", "{problem}", {"problem": problem})
        return value


class WatchConfig(_Model):
    """Which calls are watched, and which labels they may carry."""

    labels: Annotated[tuple[LabelName, ...], Field(max_length=MAX_LABELS)] = ()
    """The names of the labels that a watched call may carry."""

    max_label_values: Annotated[int, Count(1, 10_000)] = 100
    """Distinct values of one label in each account. Of more, the least recently used one is counted
    as `other`."""

    max_label_sets: Annotated[int, Count(1, 100_000)] = 1_000
    """Sets of label values in each account. Of more, the least recently used one is counted as the
    set in which every value is `other`."""

    max_calls: Annotated[int, Count(1, 10_000_000)] = 1_000_000
    """Calls of each account that may be watched at a time, from all sources."""

    # Read and checked by hand: see exporter.config.calls.
    calls: Annotated[
        SkipValidation[tuple[CallConfig, ...]],
        WithJsonSchema({"type": "array", "items": CALL_SCHEMA}),
    ] = ()
    """The calls to watch: ids, or mappings with the key `reference_id`."""

    files: Annotated[tuple[FilePattern, ...], Field(max_length=MAX_PATTERNS)] = ()
    """Files with further calls: paths or patterns, relative to the configuration."""

    api: ApiConfig = ApiConfig()
    """The HTTP API, through which programs hand their calls over."""

    callback: CallbackConfig = CallbackConfig()
    """What is made of the provider's callbacks, for accounts with a `callback_token`."""

    sql: Annotated[tuple[SqlConfig, ...], Field(max_length=MAX_QUERIES)] = ()
    """Queries on databases of yours, which return calls to watch."""


class LedgerConfig(_Model):
    """The durable record of calls and totals."""

    url: LedgerUrl = Secret(LEDGER)
    """A file of SQLite; a relative path starts at the working directory. Or a database of
    PostgreSQL, which any number of exporters share; user and password are percent-encoded."""

    keep_finished: Annotated[float, Duration("1s", "10y")] = 2_592_000.0
    """How long a finished call is remembered, so as not to count it again, from when it was last
    named. At least for two runs of every query in `watch.sql`."""

    heartbeat: Annotated[float, Duration("1s", "5m")] = 10.0
    """For how long an exporter may be silent before the others take its calls over, where they
    share the ledger."""


class Config(_Model, Trusting):
    """The configuration of esms-exporter."""

    accounts: Annotated[tuple[AccountConfig, ...], Field(min_length=1, max_length=MAX_ACCOUNTS)]
    """The accounts whose calls are watched."""

    polling: PollingConfig = PollingConfig()
    """When a call is asked for, and when it is given up."""

    balance: BalanceConfig = BalanceConfig()
    """How often the balance of each account is asked for."""

    watch: WatchConfig = WatchConfig()
    """Which calls are watched, and which labels they may carry."""

    ledger: LedgerConfig = LedgerConfig()
    """The durable record of calls and totals."""

    notify: Annotated[tuple[NotifyConfig, ...], Field(max_length=MAX_TARGETS)] = ()
    """Who is told of finished calls, by a POST for each."""

    canaries: Annotated[tuple[CanaryConfig, ...], Field(max_length=MAX_CANARIES)] = ()
    """Calls that are placed on a schedule, and followed to their end. They cost money."""
    home_assistant: Annotated[HomeAssistantConfig | None, Field(title="Home Assistant")] = None
    """What Home Assistant is told of the accounts, through an MQTT broker; without it, nothing."""

    shutdown_timeout: Annotated[float, Duration("100ms", "1h")] = 10.0
    """How long an exporter that was told to stop may take to finish what is under way."""

    @property
    def memory(self) -> float:
        """How long a finished call is remembered, in seconds: over two runs of every query."""
        runs = (2 * (query.interval + query.timeout) for query in self.watch.sql)
        return max([self.ledger.keep_finished, *runs])

    def account_of(self, canary: CanaryConfig) -> str:
        """Return the name of the account that places a canary call."""
        return canary.account or self.accounts[0].name
