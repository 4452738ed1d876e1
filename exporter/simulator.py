"""A simulated eSMS API for the demo, tests and benchmarks.

It does not import the rest of the exporter, because it replaces another company's service. Field
names, codes and the mix of strings and numbers follow the provider's documentation
(https://developers.esms.vn, "Hàm lấy trạng thái cuộc gọi" for GetSendStatus). The provider has two
hosts, for calls and for messages; here, both are one: their operations differ in a parameter.
"""

from __future__ import annotations

import asyncio
import functools
import gzip
import json
import math
import random
import re
import socket
import ssl
import struct
import time
import uuid
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, field, replace
from enum import IntEnum, StrEnum
from functools import partial
from typing import Annotated, Any, Final, Self, TypeAlias

from aiohttp import web
from aiohttp.typedefs import Handler
from pydantic import ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from yarl import URL

# Errors do not quote the input, which may be a secret.
_CONFIG: Final = ConfigDict(extra="forbid", hide_input_in_errors=True)
NotEmpty = Annotated[str, Field(min_length=1)]
NotNegative = Annotated[float, Field(ge=0)]
Header = Annotated[str, StringConstraints(pattern="^[ -~]*$")]
Fields: TypeAlias = Mapping[str, object]

# Calls.

TEMPLATES: Final = ("1", "2", "3")
"""Ids of existing templates and recordings."""

_PRICE_PER_MINUTE: Final = 700.0  # VND per started minute of a random call
_ANSWERED: Final = "ANSWERED"


class SendStatus(IntEnum):
    """The field `SendStatus`."""

    AWAITING_APPROVAL = 1
    QUEUED = 2
    REJECTED = 4
    FINISHED = 5
    SENT = 7


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Plan:
    """The course of a call; times in seconds. By default, it is answered and finished at once.

    A call is first not found (code 105), then in SendStatus 1, 2 and 7, then finished.
    """

    unknown_for: NotNegative = 0.0
    approval: NotNegative = 0.0
    queued: NotNegative = 0.0
    sent: NotNegative = 0.0
    rejected: bool = False  # the approval ends in SendStatus 4, without the later states
    sent_result: int | bool | str = 1
    call_status: str = _ANSWERED
    duration: int | float = 13  # invalid values are allowed, for tests
    ivr: str = ""
    price: NotNegative = 0.0  # VND, taken from the account's balance when the call is placed
    # A message in place of a call, with this number of receivers; 0 for a call.
    receivers: Annotated[int, Field(ge=0)] = 0
    failed: Annotated[int, Field(ge=0)] = 0  # receivers that do not get the message

    @property
    def ends_after(self) -> float:
        """Seconds from placing the call to its last state."""
        return sum(seconds for seconds, _ in self._stages)

    @property
    def _stages(self) -> list[tuple[float, SendStatus | None]]:
        before = [(self.unknown_for, None), (self.approval, SendStatus.AWAITING_APPROVAL)]
        after = [(self.queued, SendStatus.QUEUED), (self.sent, SendStatus.SENT)]
        return before + ([] if self.rejected else after)

    def status(self, age: float) -> SendStatus | None:
        """Return the state at an age in seconds; None while the id is not found."""
        for seconds, status in self._stages:
            if age < seconds:
                return status
            age -= seconds
        return SendStatus.REJECTED if self.rejected else SendStatus.FINISHED


@dataclass(frozen=True, slots=True)
class Call:
    """A call of an account, placed at a time of the provider's clock in seconds."""

    account: str
    reference_id: str
    placed_at: float
    plan: Plan

    def finished(self, now: float) -> bool:
        return now - self.placed_at >= self.plan.ends_after

    def answer(self, now: float = math.inf) -> dict[str, object] | None:
        """Return the fields of the response to its look-up; None while the id is not found."""
        plan = self.plan
        status = plan.status(now - self.placed_at)
        if status is None:
            return None
        finished = status is SendStatus.FINISHED
        if plan.receivers:
            ended = finished or status is SendStatus.REJECTED
            failed = plan.receivers if status is SendStatus.REJECTED else plan.failed
            return {
                "CodeResponse": "100",
                "SMSID": self.reference_id,
                "SendFailed": failed if ended else 0,
                "SendStatus": int(status),
                "SendSuccess": plan.receivers - failed if ended else 0,
                "TotalPrice": plan.price,
                "TotalReceiver": plan.receivers,
                "TotalSent": plan.receivers,
            }
        return {
            "CallDuration": plan.duration if finished else 0,
            "CallStatus": plan.call_status if finished else "",
            "CodeResponse": "100",
            "Ivr": plan.ivr if finished else "",
            "ReferenceId": self.reference_id,
            "SendStatus": int(status),
            "SentResult": plan.sent_result if finished else 0,
        }


def draw_plan(rng: random.Random) -> Plan:
    """Return a random plan: most calls are answered, a third of those with a key press."""
    # The provider documents two spellings of "no answer", and SentResult does not follow from
    # CallStatus.
    no_answer = rng.choice(("NOANSWERED", "NO ANSWER")), rng.randint(0, 1)
    ends = ((_ANSWERED, 1), no_answer, ("BUSY", 1), ("FAILED", 0), ("", 0))
    call_status, sent_result = rng.choices(ends, (62, 20, 8, 5, 5))[0]
    rejected = rng.random() < 0.02
    answered = call_status == _ANSWERED and not rejected
    duration = min(600, 1 + int(rng.expovariate(1 / 22))) if answered else 0
    return Plan(
        # Most ids are found at once; the others need `not_found_grace`.
        unknown_for=rng.uniform(0, 2) if rng.random() < 0.3 else 0,
        approval=rng.uniform(0, 4),
        queued=rng.uniform(0, 10),
        sent=rng.uniform(3, 30) + duration,
        rejected=rejected,
        sent_result=sent_result,
        call_status=call_status,
        duration=duration,
        ivr=rng.choice("11111222390*#") if answered and rng.random() < 0.35 else "",
        price=_PRICE_PER_MINUTE * math.ceil(duration / 60),
    )


def draw_message_plan(rng: random.Random) -> Plan:
    """Return a random plan of a message: most reach their one receiver."""
    receivers = 1 if rng.random() < 0.9 else rng.randint(2, 200)
    return Plan(
        approval=rng.uniform(0, 2),
        queued=rng.uniform(0, 5),
        sent=rng.uniform(1, 20),
        rejected=rng.random() < 0.02,
        receivers=receivers,
        failed=sum(rng.random() < 0.08 for _ in range(receivers)),
        price=470.0 * receivers,
    )


# The provider. No I/O; times are parameters.

# "a RequestId blocks for 24 h" (api/README.md).
_REQUEST_ID_BLOCKS: Final = 24 * 3600.0
_PHONE: Final = re.compile(r"(?:0|\+?84)[1-9][0-9]{8,9}")
# A GUID whose dashes are optional: the documented SMSID lacks one.
_ID: Final = re.compile(r"(?:[0-9A-F]-?){31}[0-9A-F]")
# The documented ids of messages: the same, with a number at the end.
_MESSAGE_ID: Final = re.compile(r"(?:[0-9A-F]-?){32}[0-9]{1,4}")


class Operation(StrEnum):
    """Operations, named as in the URL."""

    GET_SEND_STATUS = "GetSendStatus"
    GET_MESSAGE_STATUS = "GetSendStatus?RefId="  # the same path on another host of the provider
    MAKE_CALL_RECORD = "MakeCallRecord_V2"
    MAKE_CALL_TEMPLATE = "MakeCallTemplate_V2"
    GET_BALANCE = "GetBalance_json"


class AccountState(StrEnum):
    """Whether requests of an account are answered, or why all are refused."""

    OK = "ok"
    REVOKED = "revoked"
    IP_BLOCKED = "ip_blocked"
    LOCKED = "locked"


_REFUSALS: Final = {
    AccountState.REVOKED: ("101", "Authorize Failed"),
    AccountState.IP_BLOCKED: ("140", "IP not in whitelist"),
    AccountState.LOCKED: ("143", "Account is locked"),
}


@dataclass(frozen=True, slots=True, config=_CONFIG)
class Account:
    """A set of accepted credentials."""

    name: NotEmpty
    api_key: NotEmpty = field(repr=False)
    secret_key: NotEmpty = field(repr=False)
    # Requests per second, rounded up; None for no limit.
    tps: Annotated[float, Field(gt=0)] | None = None
    state: AccountState = AccountState.OK
    balance: Annotated[float, Field(allow_inf_nan=False)] = 1_000_000  # VND


@dataclass(frozen=True, slots=True)
class Reply:
    """A response: its result code, which is also the outcome in counters, and its body."""

    code: str
    fields: Fields


def normalize_id(reference_id: str) -> str:
    """Return an id in the provider's notation: upper case, without blanks."""
    return "".join(reference_id.split()).upper()


def _id_in(params: Mapping[str, str]) -> str:
    return normalize_id(params.get("RefId") or params.get("ReferenceId", ""))


def _count_recent(times: deque[float], now: float) -> int:
    """Remove times older than a second, and return how many are left."""
    while times and times[0] <= now - 1.0:
        times.popleft()
    return len(times)


class Provider:
    """Accounts, calls and responses; see `Simulator` for the arguments.

    Attributes:
        accounts: by name.
        calls: by account name and normalized id; if there are too many, the oldest are removed.
    """

    def __init__(
        self,
        accounts: Iterable[Account] = (),
        *,
        seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
        speed: float = 1.0,
        find_unknown_ids: bool = False,
        draw: Callable[[random.Random], Plan] = draw_plan,
        max_calls: int = 1_000_000,
    ) -> None:
        self.accounts: dict[str, Account] = {}
        self.calls: dict[tuple[str, str], Call] = {}
        self._recent: defaultdict[str, deque[float]] = defaultdict(deque)
        self._request_ids: dict[tuple[str, str], float] = {}  # times of use, the oldest first
        self._seed, self._clock, self._speed = seed, clock, speed
        self._find_unknown_ids, self._draw, self._max_calls = find_unknown_ids, draw, max_calls
        # Seeded, so that runs are repeatable; not used for secrets.
        self._rng = random.Random(f"calls:{seed}")  # noqa: S311
        for account in accounts:
            self.put_account(account)

    @property
    def now(self) -> float:
        """Seconds of the clock of calls."""
        return self._clock() * self._speed

    def account_of(self, api_key: str) -> Account | None:
        return next((it for it in self.accounts.values() if it.api_key == api_key), None)

    def put_account(self, account: Account) -> None:
        """Add or replace an account; raise `ValueError` if another one has the same key."""
        other = self.account_of(account.api_key)
        if other is not None and other.name != account.name:
            raise ValueError(f"api_key: the account {other.name} has the same key")
        self.accounts[account.name] = account

    def add_call(self, account: str, reference_id: str, plan: Plan | None = None) -> Call:
        """Place a call now, with a given or a random plan; replaces a call with the same id.

        Raise `ValueError` if the account does not exist, or the id is blank.
        """
        if account not in self.accounts:
            raise ValueError(f"account: expected one of {', '.join(self.accounts)}")
        if not (reference_id := normalize_id(reference_id)):
            raise ValueError("reference_id: expected text that is not blank")
        if plan is None:
            plan = self._draw(self._rng_of(reference_id))
        call = Call(account, reference_id, self.now, plan)
        self.calls[account, reference_id] = call
        if len(self.calls) > self._max_calls:
            del self.calls[next(iter(self.calls))]
        return call

    def answer(
        self, operation: Operation, account: Account | None, params: Mapping[str, str]
    ) -> Reply:
        """Respond to a request of the account with its `ApiKey`."""
        if account is None or params.get("SecretKey") != account.secret_key:
            return _refused(operation, *_REFUSALS[AccountState.REVOKED], _id_in(params))
        if account.state is not AccountState.OK:
            return _refused(operation, *_REFUSALS[account.state], _id_in(params))
        if account.tps is not None:
            recent, now = self._recent[account.name], self._clock()
            if _count_recent(recent, now) >= account.tps:
                return _refused(operation, "160", "TPS limit exceeded", _id_in(params))
            recent.append(now)
        match operation:
            case Operation.GET_SEND_STATUS | Operation.GET_MESSAGE_STATUS:
                return self._status(operation, account, _id_in(params))
            case Operation.GET_BALANCE:
                fields = {"Balance": round(account.balance), "CodeResponse": "100", "UserID": 9999}
                return Reply("100", fields)
            case _:
                return self._place(operation, account, params)

    def _status(self, operation: Operation, account: Account, reference_id: str) -> Reply:
        of_message = operation is Operation.GET_MESSAGE_STATUS
        if not reference_id:
            return _refused(operation, "851", "ReferenceId is required")
        call = self.calls.get((account.name, reference_id))
        if call is None and self._find_unknown_ids:
            pattern = _MESSAGE_ID if of_message else _ID
            if pattern.fullmatch(reference_id):
                plan = draw_message_plan(self._rng_of(reference_id)) if of_message else None
                call = self.add_call(account.name, reference_id, plan)
        fields = None if call is None else call.answer(self.now)
        if call is None or fields is None or bool(call.plan.receivers) != of_message:
            return _refused(operation, "105", "ReferenceId not found", reference_id)
        return Reply("100", fields)

    def _place(self, operation: Operation, account: Account, params: Mapping[str, str]) -> Reply:
        plan = self._draw(self._rng)
        # The provider's pages of the two operations spell the name differently.
        request_id = (params.get("RequestID") or params.get("RequestId", "")).strip()
        if params.get("TemplateId", "").strip() not in TEMPLATES:
            if operation is Operation.MAKE_CALL_RECORD:
                return _refused(operation, "106", "Record not found")
            return _refused(operation, "104", "Template not found")
        if not _PHONE.fullmatch(params.get("Phone", "").strip()):
            return _refused(operation, "108", "Phone number invalid")
        # The balance must cover a call of unknown duration.
        if account.balance < max(plan.price, _PRICE_PER_MINUTE):
            return _refused(operation, "103", "Balance not enough")
        if request_id and self._is_repeated(account.name, request_id):
            return _refused(operation, "124", "RequestId already exists")
        self.put_account(replace(account, balance=account.balance - plan.price))
        # As documented: lower case with a trailing blank, while GetSendStatus shows upper case.
        reference_id = str(uuid.UUID(int=self._rng.getrandbits(128), version=4))
        self.add_call(account.name, reference_id, plan)
        return Reply("100", {"CodeResult": "100", "SMSID": reference_id + " "})

    def _rng_of(self, reference_id: str) -> random.Random:
        return random.Random(f"{self._seed}:{reference_id}")  # noqa: S311 - as above

    def _is_repeated(self, account: str, request_id: str) -> bool:
        used, now, key = self._request_ids, self.now, (account, request_id)
        while used and used[oldest := next(iter(used))] <= now - _REQUEST_ID_BLOCKS:
            del used[oldest]
        repeated = key in used
        used.setdefault(key, now)
        return repeated


def _refused(operation: Operation, code: str, message: str, reference_id: str = "") -> Reply:
    """Return an error response in the format of the operation (api/examples).

    The messages of 101 and 104 are documented; the others are invented.
    """
    if operation is Operation.GET_MESSAGE_STATUS:
        return Reply(code, {"CodeResponse": code, "SMSID": reference_id})
    error = {"ErrorMessage": message}
    if operation is Operation.GET_BALANCE:
        return Reply(code, {"Balance": 0, "CodeResponse": code, **error})
    if operation is Operation.GET_SEND_STATUS or code == "101":
        return Reply(code, {"CodeResult": code, "CountRegenerate": 0, **error})
    return Reply(code, {"CodeResult": code, **error})


# Faults, which can be turned on and off while the API runs.

_JSON: Final = "application/json; charset=utf-8"
_HTML: Final = "text/html; charset=utf-8"
# WCF's error page, which replaces the JSON response.
_ERROR_PAGE: Final = (
    "<!DOCTYPE html><html><head><title>Request Error</title></head><body>"
    "<p>The server encountered an error processing the request.</p></body></html>"
)


class FaultKind(StrEnum):
    """Kind of a fault; in brackets, the parameters of `Fault` that it uses."""

    LATENCY = "latency"  # a late response (seconds); may be combined with another fault
    HANG = "hang"  # no response; the connection stays open
    RESET = "reset"  # the connection is reset (RST)
    STATUS = "status"  # an HTTP status with an HTML body (status, retry_after, date, body)
    HTML = "html"  # an HTML page with HTTP 200 (body)
    EMPTY = "empty"  # HTTP 200 with an empty body
    TRUNCATED = "truncated"  # the first half of the real response, with a matching length
    WRONG_TYPES = "wrong_types"  # the real response with values of wrong types
    NOT_OBJECT = "not_object"  # JSON that is not an object (body, else `[]`)
    NAN = "nan"  # the real response with NaN as CallDuration and Price
    HUGE = "huge"  # the real response with `size` bytes of padding, still valid JSON
    TRICKLE = "trickle"  # the real response in small pieces (seconds, for the whole body)
    GZIP_BOMB = "gzip_bomb"  # a small gzip body that decompresses to `size` bytes
    WRONG_ID = "wrong_id"  # the real response for another ReferenceId
    # Oddities of the provider's documentation, of the real response. Others are fields of a `Plan`:
    # `SentResult` as a boolean or text, and an empty `CallStatus`.
    TEXT_NUMBERS = "text_numbers"  # numbers as text
    NUMERIC_CODE = "numeric_code"  # its code as a number
    MOVED_CODE = "moved_code"  # its code in `CodeResult` for `CodeResponse`, or the reverse
    RESPELLED_ID = "respelled_id"  # its id in lower case, with a blank at the end
    MISSING_FIELDS = "missing_fields"  # without some fields (fields, else all but the code)
    REDIRECT = "redirect"  # a redirect (location, status)
    RAW = "raw"  # any body with any status (body, status, retry_after, date)


@dataclass(frozen=True, slots=True, config=_CONFIG)
class Fault:
    """A fault, and the requests that it affects; None matches all requests."""

    kind: FaultKind
    probability: Annotated[float, Field(ge=0, le=1)] = 1.0  # share of the matching requests
    account: str | None = None
    operation: str | None = None  # such as `GetSendStatus`
    reference_id: str | None = None  # in upper case
    count: Annotated[int, Field(ge=1)] | None = None  # remaining requests to affect
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    status: Annotated[int, Field(ge=200, le=599)] | None = None
    retry_after: Header | None = None
    date: Header | None = None  # None for the current time
    body: str | None = None
    size: Annotated[int, Field(ge=0, le=256 << 20)] = 1_000_000  # bytes
    location: Header | None = None  # None for an endless redirect to the same URL
    fields: tuple[str, ...] = ()  # names of fields of the response


class Faults:
    """The active faults by name."""

    def __init__(self, seed: int = 0) -> None:
        self.active: dict[str, Fault] = {}
        # Seeded, so that runs are repeatable; not used for secrets.
        self._rng = random.Random(f"faults:{seed}")  # noqa: S311

    def set(self, name: str, fault: Fault) -> None:
        """Turn on a fault, replacing one of the same name."""
        self.active[name] = fault

    def clear(self, name: str | None = None) -> None:
        for each in [name] if name else list(self.active):
            self.active.pop(each, None)

    def draw(
        self, account: str, operation: str, reference_id: str = ""
    ) -> tuple[Fault | None, Fault | None]:
        """Return the faults of a request: at most one latency and one other, the oldest first."""
        hits: dict[bool, Fault] = {}
        for name, fault in tuple(self.active.items()):
            is_latency = fault.kind is FaultKind.LATENCY
            if (
                is_latency in hits
                or fault.account not in (None, account)
                or fault.operation not in (None, operation)
                or fault.reference_id not in (None, reference_id)
                or (fault.probability < 1 and self._rng.random() >= fault.probability)
            ):
                continue
            hits[is_latency] = fault
            if fault.count == 1:
                del self.active[name]
            elif fault.count is not None:
                self.active[name] = replace(fault, count=fault.count - 1)
        return hits.get(True), hits.get(False)


# Kinds with a body of their own: the status if the fault has none, the type and the body.
_BODIES: Final = {
    FaultKind.STATUS: (500, _HTML, _ERROR_PAGE),
    FaultKind.HTML: (200, _HTML, _ERROR_PAGE),
    FaultKind.REDIRECT: (302, _HTML, _ERROR_PAGE),
    FaultKind.NOT_OBJECT: (200, _JSON, "[]"),
    FaultKind.RAW: (200, _JSON, ""),
    FaultKind.EMPTY: (200, _JSON, ""),
}
_OTHER_ID: Final = "00000000-0000-4000-8000-000000000000"
_ID_FIELDS: Final = frozenset({"ReferenceId", "SMSID"})
_CODE_FIELDS: Final = {"CodeResponse": "CodeResult", "CodeResult": "CodeResponse"}
# Kinds that change the fields of the real response.
_CHANGES: Final[Mapping[FaultKind, Callable[[Fields, Fault], Fields]]] = {
    FaultKind.WRONG_TYPES: lambda fields, _: {
        name: {"value": value} if isinstance(value, str) else [value]
        for name, value in fields.items()
    },
    FaultKind.NAN: lambda fields, _: {
        **fields,
        **dict.fromkeys(("CallDuration", "Price", "TotalPrice", "SendSuccess"), math.nan),
    },
    FaultKind.HUGE: lambda fields, fault: {**fields, "Padding": "x" * fault.size},
    FaultKind.WRONG_ID: lambda fields, _: {
        **fields,
        **dict.fromkeys(fields.keys() & _ID_FIELDS, _OTHER_ID),
    },
    FaultKind.TEXT_NUMBERS: lambda fields, _: {name: str(value) for name, value in fields.items()},
    FaultKind.NUMERIC_CODE: lambda fields, _: {
        name: int(str(value)) if name in _CODE_FIELDS else value for name, value in fields.items()
    },
    FaultKind.MOVED_CODE: lambda fields, _: {
        _CODE_FIELDS.get(name, name): value for name, value in fields.items()
    },
    FaultKind.RESPELLED_ID: lambda fields, _: {
        name: f"{value} ".lower() if name in _ID_FIELDS else value for name, value in fields.items()
    },
    FaultKind.MISSING_FIELDS: lambda fields, fault: {
        name: value
        for name, value in fields.items()
        if (name not in fault.fields if fault.fields else name in _CODE_FIELDS)
    },
}


def _to_json(fields: Fields) -> bytes:
    """Return the body of a response, compact like WCF's."""
    return json.dumps(fields, separators=(",", ":")).encode()


@functools.lru_cache(maxsize=2)
def _gzip_bomb(size: int) -> bytes:
    return gzip.compress(_to_json({"CodeResponse": "100", "Padding": "x" * size}))


async def _respond(
    fault: Fault, request: web.Request, answer: Callable[[], Fields]
) -> web.StreamResponse:
    """Respond to a request with a fault; `answer` returns the real response."""
    kind, status, headers = fault.kind, fault.status or 200, {"Content-Type": _JSON}
    if kind is FaultKind.TRICKLE:
        return await _trickle(request, _to_json(answer()), fault.seconds)
    if kind in {FaultKind.HANG, FaultKind.RESET}:
        if kind is FaultKind.RESET and request.transport is not None:
            connection: socket.socket = request.transport.get_extra_info("socket")
            # With a linger time of 0, the kernel sends a RST in place of a FIN.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            request.transport.abort()
        # Until the client disconnects or the server stops, which cancels the request.
        await asyncio.Event().wait()
    if kind in _BODIES:
        usual, headers["Content-Type"], text = _BODIES[kind]
        status, body = fault.status or usual, (fault.body or text).encode()
    elif kind is FaultKind.GZIP_BOMB:
        headers["Content-Encoding"], body = "gzip", _gzip_bomb(fault.size)
    elif kind is FaultKind.TRUNCATED:
        body = _to_json(answer())
        body = body[: len(body) // 2]
    else:
        body = _to_json(_CHANGES[kind](answer(), fault))
    more = {"Retry-After": fault.retry_after, "Date": fault.date}
    if kind is FaultKind.REDIRECT:
        more["Location"] = fault.location or request.path_qs
    headers |= {name: value for name, value in more.items() if value is not None}
    return web.Response(status=status, headers=headers, body=body)


async def _trickle(request: web.Request, body: bytes, seconds: float) -> web.StreamResponse:
    """Send a body in small pieces over some seconds."""
    response = web.StreamResponse(headers={"Content-Type": _JSON})
    response.content_length = len(body)
    await response.prepare(request)
    step = max(1, -(-len(body) // 50))
    for at in range(0, len(body), step):
        await asyncio.sleep(seconds * step / len(body))
        await response.write(body[at : at + step])
    return response


# The server, with a control API.

_BASE_PATH: Final = "/MainService.svc/json"
_CONTROL_PATH: Final = "/_simulator"
# Seconds for open requests to finish when the server stops.
_SHUTDOWN_TIMEOUT: Final = 0.05
# Host in URLs of a server that listens on all interfaces.
_REACHABLE: Final = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - not bound
_COOKIE: Final = "ASP.NET_SessionId=1m2a3d4e5u6p; path=/; HttpOnly"

ACCOUNT: Final = TypeAdapter(Account)
_FAULT: Final = TypeAdapter(Fault)
_PLAN: Final = TypeAdapter(Plan)
_OBJECT: Final = TypeAdapter(dict[str, Any])  # a JSON object with fields of the models above
_OBJECTS: Final = TypeAdapter(list[dict[str, Any]])
_CREDENTIALS: Final = TypeAdapter(dict[str, str])

# Operation, account name or `-`, parameters, response.
Listener = Callable[[Operation, str, Mapping[str, str], Reply], None]


class Traffic:
    """Counters of requests.

    Attributes:
        requests: number by account, operation and outcome: the result code, or the kind of the
            fault that changed the response.
        peak_rate: maximum number of requests within one second, by account.
        peak_open: maximum number of concurrent requests, by account.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.requests: Counter[tuple[str, str, str]] = Counter()
        self.peak_rate: Counter[str] = Counter()
        self.peak_open: Counter[str] = Counter()
        self._open: Counter[str] = Counter()
        self._recent: defaultdict[str, deque[float]] = defaultdict(deque)

    @property
    def open(self) -> int:
        return self._open.total()

    @contextmanager
    def request(self, account: str) -> Iterator[None]:
        """Count a request of an account, which is open for the duration of the block."""
        now, recent = self._clock(), self._recent[account]
        recent.append(now)
        self._open[account] += 1
        self.peak_rate[account] = max(self.peak_rate[account], _count_recent(recent, now))
        self.peak_open[account] = max(self.peak_open[account], self._open[account])
        try:
            yield
        finally:
            self._open[account] -= 1

    def total(self, account: str | None = None, outcome: str | None = None) -> int:
        """Return the number of requests of an account (None: all) with an outcome (None: any)."""
        return sum(
            count
            for (name, _, result), count in self.requests.items()
            if account in (None, name) and outcome in (None, result)
        )


class Simulator:
    """A simulated eSMS API on its own socket, for as long as its context lasts.

    Args:
        seed: the same seed and requests cause the same calls and faults.
        host: the address to listen on; empty for all interfaces.
        port: 0 for any free port.
        find_unknown_ids: whether GetSendStatus treats unknown, well-formed ids as calls, placed at
            the first request with a plan derived from seed and id; otherwise it returns 105.
        draw: returns the plans of calls without one.
        speed: speed of the clock of calls, as a multiple of real time.

    Attributes:
        origin: scheme, host and port; set after the start, as the two URLs below it.
        url: the `base_url` of the API.
        control_url: the base URL of the control API.
    """

    def __init__(
        self,
        *,
        accounts: Iterable[Account] = (),
        seed: int = 0,
        host: str = "127.0.0.1",
        port: int = 0,
        ssl_context: ssl.SSLContext | None = None,
        find_unknown_ids: bool = False,
        draw: Callable[[random.Random], Plan] = draw_plan,
        speed: float = 1.0,
    ) -> None:
        self.provider = Provider(
            accounts, seed=seed, speed=speed, find_unknown_ids=find_unknown_ids, draw=draw
        )
        self.put_account, self.add_call = self.provider.put_account, self.provider.add_call
        self.faults, self.traffic = Faults(seed), Traffic()
        self.origin = self.url = self.control_url = ""
        self._host, self._port, self._ssl = host, port, ssl_context
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None
        self._listeners: list[Listener] = []
        self._control_routes = [
            web.get(f"{_CONTROL_PATH}/state", self._get_state),
            web.get(f"{_CONTROL_PATH}/calls", self._get_calls),
            web.post(f"{_CONTROL_PATH}/calls", self._add_calls),
            web.put(f"{_CONTROL_PATH}/accounts/{{name}}", self._put_account),
            web.put(f"{_CONTROL_PATH}/faults/{{name}}", self._put_fault),
            web.delete(f"{_CONTROL_PATH}/faults/{{name}}", self._delete_faults),
            web.delete(f"{_CONTROL_PATH}/faults", self._delete_faults),
        ]

    def subscribe(self, listener: Listener) -> None:
        """Call `listener` for each request that reaches the provider, with the response."""
        self._listeners.append(listener)

    @property
    def control_paths(self) -> list[str]:
        return [f"{route.method:7}{route.path}" for route in self._control_routes]

    async def start(self) -> None:
        """Start to listen; raise `OSError` if the address is not available."""
        app = web.Application(middlewares=[self._errors], client_max_size=64 << 20)
        for operation in set(Operation) - {Operation.GET_MESSAGE_STATUS}:
            method = "POST" if operation is Operation.GET_BALANCE else "GET"
            handler = partial(self._answer, operation)
            app.router.add_route(method, f"{_BASE_PATH}/{operation}", handler)
        app.router.add_routes(self._control_routes)
        # Cancel the request of a client that disconnects, so that none hangs forever.
        self._runner = runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=_SHUTDOWN_TIMEOUT
        )
        await runner.setup()
        assert runner.server is not None  # noqa: S101 - since the set-up
        self._server = await asyncio.get_running_loop().create_server(
            runner.server, self._host or None, self._port, ssl=self._ssl
        )
        # An IPv4 address has two parts, an IPv6 one four. With port 0, each family gets a port;
        # `origin` uses the first one.
        self._port = min((one.getsockname() for one in self._server.sockets), key=len)[1]
        host = _REACHABLE.get(self._host, self._host)
        scheme = "http" if self._ssl is None else "https"
        self.origin = str(URL.build(scheme=scheme, host=host, port=self._port))
        self.url, self.control_url = self.origin + _BASE_PATH, self.origin + _CONTROL_PATH

    async def stop(self) -> None:
        """Stop listening, and abort open requests."""
        runner, self._runner = self._runner, None
        if self._server is not None:
            await close_server(self._server)
        if runner is not None:
            await runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    # The API.

    async def _answer(self, operation: Operation, request: web.Request) -> web.StreamResponse:
        """Respond like the provider: HTTP 200, with errors in the body."""
        if operation is Operation.GET_BALANCE:
            try:
                params = _CREDENTIALS.validate_json(await request.read())
            except ValidationError:
                raise web.HTTPBadRequest from None
        else:
            params = dict(request.query)
        if operation is Operation.GET_SEND_STATUS and "RefId" in params:
            operation = Operation.GET_MESSAGE_STATUS
        reference_id = _id_in(params)
        account = self.provider.account_of(params.get("ApiKey", ""))
        name = "-" if account is None else account.name
        with self.traffic.request(name):
            latency, fault = self.faults.draw(name, operation, reference_id)
            if latency is not None:
                await asyncio.sleep(latency.seconds)

            def answer() -> Reply:
                # Look up the account again, because it may have changed during the latency.
                account = self.provider.account_of(params.get("ApiKey", ""))
                reply = self.provider.answer(operation, account, params)
                for listener in self._listeners:
                    listener(operation, name, params, reply)
                return reply

            if fault is not None:
                self.traffic.requests[name, operation, fault.kind] += 1
                return await _respond(fault, request, lambda: answer().fields)
            reply = answer()
            self.traffic.requests[name, operation, reply.code] += 1
            headers = {"Content-Type": _JSON, "Set-Cookie": _COOKIE}
            return web.Response(headers=headers, body=_to_json(reply.fields))

    @web.middleware
    async def _errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Return errors as JSON in the control API, and as WCF's error page otherwise."""
        is_control = request.path.startswith(_CONTROL_PATH)
        try:
            return await handler(request)
        except web.HTTPException as error:
            status, reason = error.status, error.reason
        except ValueError as error:
            if not is_control:
                raise
            status, reason = 400, describe(error)
        if is_control:
            return web.json_response({"error": reason, "paths": self.control_paths}, status=status)
        return web.Response(status=status, text=_ERROR_PAGE, content_type="text/html")

    # The control API.

    async def _get_state(self, _: web.Request) -> web.Response:
        accounts = {
            name: {key: value for key, value in asdict(account).items() if not key.endswith("_key")}
            for name, account in self.provider.accounts.items()
        }
        traffic = self.traffic
        return web.json_response(
            {
                "accounts": accounts,
                "faults": {name: asdict(fault) for name, fault in self.faults.active.items()},
                "calls": len(self.provider.calls),
                "requests": {" ".join(key): n for key, n in sorted(traffic.requests.items())},
                "peak_rate": traffic.peak_rate,
                "peak_open": traffic.peak_open,
                "open": traffic.open,
            }
        )

    async def _get_calls(self, request: web.Request) -> web.Response:
        now, account = self.provider.now, request.query.get("account")
        return web.json_response(
            [
                {"account": it.account, "finished": it.finished(now), "last_answer": it.answer()}
                for it in self.provider.calls.values()
                if account in (None, it.account)
            ]
        )

    async def _add_calls(self, request: web.Request) -> web.Response:
        calls = _OBJECTS.validate_json(await request.read())
        accounts = list(self.provider.accounts)
        default = accounts[0] if len(accounts) == 1 else ""
        for call in calls:
            account, reference_id = call.pop("account", default), call.pop("reference_id", "")
            # A call without a plan gets one derived from the seed.
            plan = _PLAN.validate_python(call) if call else None
            self.add_call(str(account), str(reference_id), plan)
        return web.json_response({"added": len(calls)})

    async def _put_account(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        old = self.provider.accounts.get(name)
        changes = _OBJECT.validate_json(await request.read())
        fields = {**(asdict(old) if old else {}), **changes, "name": name}
        self.put_account(ACCOUNT.validate_python(fields))
        return web.json_response({"account": name})

    async def _put_fault(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        # The name of a fault is its kind by default.
        fields = {"kind": name, **_OBJECT.validate_json(await request.read() or b"{}")}
        self.faults.set(name, _FAULT.validate_python(fields))
        return web.json_response({"fault": name})

    async def _delete_faults(self, request: web.Request) -> web.Response:
        self.faults.clear(request.match_info.get("name"))
        return web.json_response({"faults": list(self.faults.active)})


async def close_server(server: asyncio.Server) -> None:
    """Stop to listen. Connections that asyncio is just accepting are closed, too.

    `Server.close` alone would lose their sockets, unclosed (CPython issue 109564).
    """
    for listener in server.sockets:
        asyncio.get_running_loop().remove_reader(listener.fileno())
    await asyncio.sleep(0)
    server.close()


def describe(error: ValueError) -> str:
    """Describe an invalid input on one line, without quoting it."""
    if not isinstance(error, ValidationError):
        return str(error)
    problems = ((".".join(map(str, it["loc"])), it["msg"]) for it in error.errors())
    return "; ".join(f"{place}: {problem}" if place else problem for place, problem in problems)
