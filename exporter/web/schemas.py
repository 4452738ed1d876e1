"""Models of requests and responses of the HTTP API, and the OpenAPI document made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from http import HTTPStatus
from importlib.resources import files
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeVar

import yaml
from aiohttp import web
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic.json_schema import models_json_schema

import exporter
from exporter.calls import CallState, Key, Result, Status
from exporter.config.validation import MAX_LABEL_VALUE, KnownAccount, KnownLabel
from exporter.esms.codes import Outcome
from exporter.ids import ID_PATTERN, Kind, reference_id
from exporter.ledger.calls import FINISHED, MAX_PAGE, WATCHED
from exporter.ledger.history import EventKind
from exporter.ledger.notifications import NotificationState

MAX_CALLS: Final = 10_000
"""Calls in a request."""

MAX_PROBLEMS: Final = 100
"""Problems that a response lists."""

# With more problems than this, building the list takes too long: none are shown.
_MAX_LISTED: Final = 50_000

_MESSAGES: Final = {
    "missing": "missing required key",
    "extra_forbidden": "unknown key",
    "model_type": "expected an object",
    "dict_type": "expected an object",
    "list_type": "expected a list",
    "string_type": "expected text",
    "string_too_long": "expected at most {max_length} characters",
    "string_pattern_mismatch": "expected text without control characters",
    "too_long": "expected at most {max_length} items",
    "int_parsing": "expected a whole number",
    "greater_than_equal": "expected at least {ge}",
    "less_than_equal": "expected at most {le}",
    "literal_error": "expected {expected}",
    "json_invalid": "the body is not JSON: {error}",
    "value_error": "{error}",
}


class Scope(NamedTuple):
    """The names that a request may use: the validation context of its models."""

    accounts: tuple[str, ...]
    labels: tuple[str, ...]
    token: str = ""  # the name of the token of the request


# Requests.


_BLANK: Final = r"[ \t\r\n]*"
_ID_SCHEMA: Final = {"type": "string", "pattern": f"^{_BLANK}{ID_PATTERN}{_BLANK}$"}
_NO_CONTROL: Final = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$"
_LabelValue = Annotated[str, Field(max_length=MAX_LABEL_VALUE, pattern=_NO_CONTROL)]


class _Request(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )


R = TypeVar("R", bound=_Request)


class NewCall(_Request):
    """A call to watch."""

    reference_id: Annotated[
        str, Field(json_schema_extra={**_ID_SCHEMA}), AfterValidator(reference_id)
    ]
    """The id that the provider gave the call."""

    account: KnownAccount
    """The account that placed the call."""

    labels: dict[KnownLabel, _LabelValue] = Field(default_factory=dict)
    """Values of names in `watch.labels`."""

    kind: Annotated[Kind, Field(strict=False)] | None = None
    """`message` for a message: a Voice OTP, an SMS, a Zalo or Viber message. Default: the
    `default_kind` of the account."""

    @model_validator(mode="before")
    @classmethod
    def _only_account(cls, value: Any, info: ValidationInfo[Scope]) -> Any:  # Any: JSON
        """Default to the only account, if there is only one."""
        only = isinstance(value, dict) and len(info.context.accounts) == 1
        return {"account": info.context.accounts[0], **value} if only else value


class NewCalls(_Request):
    """Calls to watch."""

    calls: Annotated[list[NewCall], Field(max_length=MAX_CALLS)]
    """Either all of them are added, or none."""


class ListQuery(_Request):
    """The filters and the position of a listing; all are optional."""

    account: KnownAccount = ""
    """Only calls, or notifications of calls, of this account."""

    after: Annotated[int, Field(ge=0, le=10**18 - 1, strict=False)] = 0
    """Where to continue: `next` of the previous page."""

    limit: Annotated[int, Field(ge=1, le=MAX_PAGE, strict=False)] = 100
    """Maximum number of items on a page."""


class CallsQuery(ListQuery):
    """The parameters of `GET /calls`."""

    state: Literal[(*map(str, CallState), FINISHED, WATCHED)] = ""  # type: ignore[valid-type] # a str
    """Calls in this state; `watched` is every state but `finished`."""

    result: Literal[tuple(map(str, Result))] = ""  # type: ignore[valid-type] # a str
    """Calls with this result."""


class NotificationsQuery(ListQuery):
    """The parameters of `GET /notifications`."""

    target: Annotated[str, Field(max_length=64, pattern=_NO_CONTROL)] = ""
    """Notifications for this target."""

    state: Literal[tuple(map(str, NotificationState))] = ""  # type: ignore[valid-type] # a str
    """Notifications in this state."""


# Responses.


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, from_attributes=True, use_attribute_docstrings=True)


class Accepted(_Answer):
    """The calls of a request are in the ledger."""

    added: int
    """Number of calls that were new and are now watched."""

    known: int
    """Number of calls that were already watched or had finished."""


class Call(_Answer):
    """A call that is watched, or has finished."""

    account: str
    reference_id: str
    """As it was written in the first request or file."""

    labels: Annotated[dict[str, str], BeforeValidator(dict)]
    state: CallState | Literal["finished"]
    """State of the call in the last answer."""

    first_watched: datetime
    result: Result | None = None
    """How the call ended: whether the carrier delivered it."""

    status: Status | None = None
    """What the callee did."""

    duration: float | None = None
    """Duration of an answered call, in seconds."""

    key: Key | None = None
    """The first key that the callee pressed."""

    finished_at: datetime | None = None
    """When the exporter received the result."""

    kind: Kind = Kind.CALL
    """`call` or `message`."""

    delivered: int | None = None
    """Number of receivers of a finished message that got it."""

    failed: int | None = None
    """Number of receivers of a finished message that did not get it."""


class HistoryEvent(_Answer):
    """An event in the history of a call."""

    at: datetime
    event: EventKind
    """`watched`: the call was added. `state`: a poll changed its state. `callback`: the provider
    called back. `finished`: the result is known. `delivered`, `failed`, `gave_up`, `retried`: a
    notification was delivered, an attempt failed, the exporter gave it up, or it is sent again by
    hand."""

    subject: str
    """The state, the outcome of the callback, the result, or the target."""

    detail: str | None
    """The status of a finished call, or what the target answered."""


class CallDetails(Call):
    """A call, how it is polled, and its history."""

    polls: int | None = None
    """Number of polls since the exporter started; null once finished."""

    last_polled: datetime | None = None
    """Time of the last poll since the exporter started, to the second; null before the first one,
    and once finished."""

    next_due: datetime | None = None
    """Time of the next poll; null during a poll, and once finished."""

    price: float | None = None
    """Price in VND, where the provider reports one."""

    history: list[HistoryEvent]
    """Its events, oldest first. With `ledger.history: false`, only those of the call itself."""


class Page(_Answer):
    """A page of calls, in the order in which they were added.

    Each page covers a bounded part of the ledger, so that any page may have few calls or none.
    """

    calls: list[Call]
    next: str | None
    """Value of `after` for the next page; null on the last page only."""


class Notification(_Answer):
    """A notification of a finished call that is not delivered."""

    id: int
    target: str
    account: str
    reference_id: str
    state: NotificationState
    """`given_up`: it is sent again only by hand."""

    attempts: int
    """Number of attempts, including one in progress."""

    last_answer: str | None
    """Outcome and problem of the last attempt; null before the first one."""

    next_due: datetime | None
    """Time of the next attempt, or the time limit of one in progress; null once given up."""

    give_up_at: datetime
    """When it is given up, or was given up."""


class NotificationPage(_Answer):
    """A page of notifications, in the order of their ids.

    Each page covers a bounded part of the ledger, so that any page may have few notifications or
    none.
    """

    notifications: list[Notification]
    next: str | None
    """Value of `after` for the next page; null on the last page only."""


class AccountStatus(_Answer):
    """The state of an account."""

    name: str
    authorized: bool | None
    """Whether the last answer accepted the credentials; null before the first answer."""

    paused: Outcome | None
    """Why the account is not polled now; null while it is polled."""

    paused_until: datetime | None
    watched: dict[CallState, int]
    """Number of open calls in each state."""

    messages: dict[CallState, int]
    """Number of open messages in each state; empty for an account without messages."""

    overdue: int
    """Number of calls and messages that are due but not polled yet."""

    lag_seconds: Annotated[float, Field(validation_alias="lag")]
    """Seconds since the oldest of them was due."""


class ExporterStatus(_Answer):
    """The state of the exporter."""

    version: str
    ready: bool
    problems: list[str]
    """Why it is not ready; empty while it is."""

    watched: int
    """Open calls and messages of all accounts, including those that the token does not cover."""

    accounts: list[AccountStatus]
    """The accounts that this exporter polls."""

    standby: dict[str, str] = {}
    """The accounts that other exporters poll, with the name of the exporter."""


class ItemProblem(_Answer):
    """One thing that is wrong with a request."""

    pointer: str
    """JSON Pointer to the invalid value, or `/` and the name of a parameter."""

    detail: str
    """What is wrong and what was expected."""


class ProblemDetails(_Answer):
    """An error (RFC 9457) of the type `about:blank`."""

    title: str
    """The phrase of the HTTP status."""

    status: int
    """The HTTP status."""

    detail: str
    """What happened and what to do."""

    errors: list[ItemProblem] | None = None
    """The first 100 problems of the request; empty if there are more than 50,000."""


class ProblemError(Exception):
    """Fails a request to the API with problem details; `errors` are about parts of it."""

    def __init__(
        self,
        status: int,
        detail: str,
        errors: Sequence[ItemProblem] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        title = HTTPStatus(status).phrase
        details = ProblemDetails(
            title=title, status=status, detail=detail, errors=list(errors) or None
        )
        self.response = web.Response(
            status=status,
            body=details.model_dump_json(exclude_none=True).encode() + b"\n",
            content_type="application/problem+json",
            headers=headers,
        )


def validate(model: type[R], request: bytes | dict[str, str], scope: Scope) -> R:
    """Validate the JSON body or the parameters of a request; raise `ProblemError` if invalid."""
    try:
        if isinstance(request, bytes):
            return model.model_validate_json(request, context=scope)
        return model.model_validate(request, context=scope)
    except ValidationError as error:
        count = error.error_count()
        details = error.errors(include_url=False) if count <= _MAX_LISTED else []
        problems = []
        for detail in details[:MAX_PROBLEMS]:
            message = _MESSAGES.get(detail["type"], detail["msg"])
            # A JSON Pointer (RFC 6901) with keys as the client sent them. For an invalid key,
            # pydantic appends `[key]`.
            parts = (str(part)[:64] for part in detail["loc"] if part != "[key]")
            pointer = "".join(f"/{part.replace('~', '~0').replace('/', '~1')}" for part in parts)
            message = message.format_map(detail.get("ctx", {}))
            problems.append(ItemProblem(pointer=pointer, detail=message))
        status = 413 if any(detail["type"] == "too_long" for detail in details) else 400
        text = f"{count} problem{'s' * (count != 1)} in the request"
        text += "; no call was added" if isinstance(request, bytes) else ""
        raise ProblemError(status, text, problems) from None


def openapi(scope: Scope, external_path: str = "") -> dict[str, Any]:  # Any: JSON
    """Return the OpenAPI document for clients that may use the names in `scope`."""
    document: dict[str, Any] = yaml.safe_load((files(__package__) / "openapi.yaml").read_text())
    document["info"]["version"] = exporter.__version__
    if external_path:
        document["servers"] = [{"url": external_path}]
    queries: dict[str, type[ListQuery]] = {"calls": CallsQuery, "notifications": NotificationsQuery}
    bodies = NewCalls, Accepted, Page, CallDetails, NotificationPage, ExporterStatus, ProblemDetails
    shown: list[type[BaseModel]] = [*bodies, *queries.values()]
    _, schemas = models_json_schema(
        [(model, "serialization") for model in shown],
        ref_template="#/components/schemas/{model}",
    )
    models = schemas["$defs"]
    call = models["NewCall"]
    account, labels = call["properties"]["account"], call["properties"]["labels"]
    account["enum"] = list(scope.accounts)
    if len(scope.accounts) == 1:
        call["required"].remove("account")
    labels["maxProperties"] = len(scope.labels)
    if scope.labels:
        labels["propertyNames"] = {"enum": list(scope.labels)}
    for path, model in queries.items():
        query = models.pop(model.__name__)["properties"]
        query["account"]["enum"] = list(scope.accounts)
        for schema in query.values():
            del schema["default"]
        document["paths"][f"/api/v1/{path}"]["get"]["parameters"] = [
            {
                "name": name,
                "in": "query",
                "description": schema.pop("description"),
                "schema": schema,
            }
            for name, schema in query.items()
        ]
    document["components"]["schemas"] = {"ReferenceId": _ID_SCHEMA, **models}
    return document
