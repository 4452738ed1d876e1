"""What requests and answers of the HTTP API hold: models, from which its OpenAPI is made."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    create_model,
    model_validator,
)
from pydantic_core import PydanticCustomError

from exporter.calls import CallState, Key, Result, Status
from exporter.config.types import MAX_LABEL_VALUE, Expected
from exporter.esms.codes import Outcome
from exporter.ids import ID_PATTERN, ReferenceId, reference_id
from exporter.ledger.listing import MAX_PAGE
from exporter.ledger.records import CallRecord

MAX_CALLS: Final = 10_000
"""In one request."""

_BLANK: Final = r"[ \t\r\n]*"


MAX_KEYS: Final = 100
"""Keys of a mapping that are looked at one by one; beyond, their number is told."""


def _few_keys(value: object) -> object:
    if isinstance(value, dict) and len(value) > MAX_KEYS:
        raise PydanticCustomError("expected", f"expected at most {MAX_KEYS} keys")
    return value


class _Body(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _bounded(cls, value: object) -> object:
        return _few_keys(value)


class Envelope(_Body):
    """The body of `POST /calls`, whose calls have not been looked at."""

    calls: Annotated[list[Any], Field(max_length=MAX_CALLS)]  # Any: whatever was sent


ID_SCHEMA: Final = {"pattern": f"^{_BLANK}{ID_PATTERN}{_BLANK}$"}


def _reference_id(text: str) -> ReferenceId:
    try:
        return reference_id(text)
    except ValueError as error:
        raise PydanticCustomError("expected", f"expected an id; the text {error}") from None


_ReferenceId = Annotated[str, Field(json_schema_extra=ID_SCHEMA), AfterValidator(_reference_id)]
_LabelValue = Annotated[
    str,
    Field(max_length=MAX_LABEL_VALUE, pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$"),
    Expected(f"text of at most {MAX_LABEL_VALUE} characters, and no control characters"),
]


class Requests(NamedTuple):
    """The models of requests, as the configuration wants them.

    Attributes:
        call: one call of the body of `POST /calls`.
        calls: the whole body.
        query: the parameters of `GET /calls`.
    """

    call: type[BaseModel]
    calls: type[BaseModel]
    query: type[BaseModel]


def requests(accounts: tuple[str, ...], labels: tuple[str, ...]) -> Requests:
    """Make the models of requests; takes milliseconds, and each needs some 90 kB.

    Args:
        accounts: the accounts that may be named; where it is one, it may be left out.
        labels: the names in `watch.labels`.
    """
    account = _one_of(accounts, "the name of one of the accounts")
    label = _one_of(labels, "one of the names in `watch.labels`")
    state = _one_of(
        (*(state.value for state in CallState), "finished", "watched"),
        "a state, `finished`, or `watched` for all that have not",
    )
    result = _one_of([result.value for result in Result], "a result")
    values: Any = dict.__class_getitem__((label, _LabelValue))  # Any: made at run time
    # Each name once, at most; the validator keeps from looking at all of a million.
    few = Field(max_length=len(labels)), BeforeValidator(_few_keys)
    call = create_model(
        "NewCall",
        __base__=_Body,
        __doc__="A call to watch.",
        reference_id=(_ReferenceId, Field(description="The id that the provider gave the call.")),
        account=(
            account,
            Field(
                default=accounts[0] if len(accounts) == 1 else ...,
                description="The account that placed it.",
            ),
        ),
        labels=(
            Annotated[values, *few],
            Field(default_factory=dict, description="Values of names in `watch.labels`."),
        ),
    )
    return Requests(
        call,
        create_model(
            "NewCalls",
            __base__=_Body,
            __doc__="Calls to watch.",
            calls=(
                Annotated[list[call], Field(max_length=MAX_CALLS)],
                Field(description="All of them are taken in, or none."),
            ),
        ),
        create_model(
            "Query",
            __base__=_Body,
            account=(account | None, Field(default=None, description="Calls of this account.")),
            state=(state | None, Field(default=None, description="Calls in this state.")),
            result=(result | None, Field(default=None, description="Calls with this result.")),
            after=(
                _digits(18, 0, 10**18 - 1, "what `next` held"),
                Field(default=0, description="Where to go on: `next` of the page before."),
            ),
            limit=(
                _digits(4, 1, MAX_PAGE, f"a number from 1 to {MAX_PAGE}"),
                Field(default=100, description="Calls on a page, at most."),
            ),
        ),
    )


def _one_of(names: Sequence[str], words: str) -> Any:  # Any: a type that is made at run time
    known = frozenset(names)

    def check(value: str) -> str:
        if value not in known:
            raise ValueError
        return value

    schema: dict[str, Any] = {"type": "string"}
    if names:
        schema["enum"] = list(names)
    return Annotated[str, AfterValidator(check), WithJsonSchema(schema), Expected(words)]


def _digits(length: int, least: int, most: int, words: str) -> Any:  # Any: as above
    def read(value: object) -> object:
        if isinstance(value, str) and value.isascii() and value.isdigit():
            return int(value) if len(value) <= length else None
        return value if isinstance(value, int) else None

    return Annotated[int, Field(ge=least, le=most), BeforeValidator(read), Expected(words)]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Accepted(_Answer):
    """What became of the calls of a request: they are in the ledger."""

    added: int
    """Calls that were not known, and are watched now."""

    known: int
    """Calls that are watched already, or have finished."""


class Call(_Answer):
    """A call that is watched, or has finished."""

    account: str
    reference_id: str
    """As it was first written."""

    labels: dict[str, str]
    state: CallState | Literal["finished"]
    """Where it stood at the last answer."""

    first_watched: datetime
    result: Result | None = None
    """How it ended: did the carrier deliver it."""

    status: Status | None = None
    """What the callee did."""

    duration: float | None = None
    """Of an answered call, in seconds."""

    key: Key | None = None
    """The first key that the callee pressed."""

    finished_at: datetime | None = None
    """When its result was known."""


class CallDetails(Call):
    """A call, and how it is polled."""

    polls: int | None = None
    """How often the provider was asked for it, since the exporter started; null once finished."""

    last_polled: datetime | None = None
    """When the provider was last asked for it, to the second; null before the first time since the
    exporter started, and once it has finished."""

    next_due: datetime | None = None
    """When it is asked for next; null while it is, and once it has finished."""


class Page(_Answer):
    """Some of the calls, in the order in which they were added.

    Each page looks at a bounded part of the ledger: one before the last may hold few calls, or
    none.
    """

    calls: list[Call]
    next: str | None
    """For `after`; null on the last page, and only there."""


class AccountStatus(_Answer):
    """How an account is doing."""

    name: str
    authorized: bool | None
    """Whether the last answer accepted the credentials; null before one could tell."""

    paused: Outcome | None
    """Why it is not polled now."""

    paused_until: datetime | None
    watched: dict[CallState, int]
    """Calls by state."""

    overdue: int
    """Calls that are due and not asked for yet."""

    lag_seconds: float
    """For how long the first of them has been due."""


class ExporterStatus(_Answer):
    """How the exporter is doing."""

    version: str
    ready: bool
    problems: list[str]
    """Why it is not ready."""

    watched: int
    """Calls of all accounts, also of those that the token does not see."""

    accounts: list[AccountStatus]


def when(timestamp: float | None) -> datetime | None:
    """Return a Unix time as a time of day in UTC."""
    return None if timestamp is None else datetime.fromtimestamp(timestamp, UTC)


def as_call(record: CallRecord) -> dict[str, Any]:  # Any: as the ledger holds it
    """Return the fields of `Call`."""
    return {
        **record._asdict(),
        "labels": dict(record.labels),
        "first_watched": when(record.first_watched),
        "finished_at": when(record.finished_at),
    }
