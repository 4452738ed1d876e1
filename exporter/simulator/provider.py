"""The simulated provider: accounts, calls and responses. No I/O; times are parameters.

Field names, codes and the mix of strings and numbers follow the provider's documentation
(https://developers.esms.vn, "Hàm lấy trạng thái cuộc gọi" for GetSendStatus).
"""

from __future__ import annotations

import math
import random
import re
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field, replace
from enum import IntEnum, StrEnum
from typing import Annotated, Final

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

# Errors do not quote the input, which may be a secret.
CONFIG: Final = ConfigDict(extra="forbid", hide_input_in_errors=True)
NotEmpty = Annotated[str, Field(min_length=1)]
NotNegative = Annotated[float, Field(ge=0)]

MAX_CALLS: Final = 1_000_000
TEMPLATES: Final = ("1", "2", "3")
"""Ids of existing templates and recordings."""

# "a RequestId blocks for 24 h" (api/README.md).
_REQUEST_ID_BLOCKS: Final = 24 * 3600.0
_PRICE_PER_MINUTE: Final = 700.0  # VND per started minute of a random call
_ANSWERED: Final = "ANSWERED"
_PHONE: Final = re.compile(r"(?:0|\+?84)[1-9][0-9]{8,9}")
# A GUID whose dashes are optional: the documented SMSID lacks one.
_ID: Final = re.compile(r"(?:[0-9A-F]-?){31}[0-9A-F]")


class SendStatus(IntEnum):
    """The field `SendStatus`."""

    AWAITING_APPROVAL = 1
    QUEUED = 2
    REJECTED = 4
    FINISHED = 5
    SENT = 7


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class Plan:
    """The course of a call; times in seconds. By default, it is answered and finished at once.

    A call is first not found (code 105), then in SendStatus 1, 2 and 7, then finished.
    """

    unknown_for: NotNegative = 0.0
    approval: NotNegative = 0.0
    queued: NotNegative = 0.0
    sent: NotNegative = 0.0
    rejected: bool = False  # the approval ends in SendStatus 4, without the later states
    sent_result: int = 1
    call_status: str = _ANSWERED
    duration: int | float = 13  # invalid values are allowed, for tests
    ivr: str = ""
    price: NotNegative = 0.0  # VND, taken from the account's balance when the call is placed

    @property
    def ends_after(self) -> float:
        """Seconds from placing the call to its last state."""
        return sum(seconds for seconds, _ in self._stages)

    def status(self, age: float) -> SendStatus | None:
        """Return the state at an age in seconds; None while the id is not found."""
        for seconds, status in self._stages if age < math.inf else ():
            if age < seconds:
                return status
            age -= seconds
        return SendStatus.REJECTED if self.rejected else SendStatus.FINISHED

    @property
    def _stages(self) -> list[tuple[float, SendStatus | None]]:
        before = [(self.unknown_for, None), (self.approval, SendStatus.AWAITING_APPROVAL)]
        after = [(self.queued, SendStatus.QUEUED), (self.sent, SendStatus.SENT)]
        return before + ([] if self.rejected else after)


@dataclass(frozen=True, slots=True)
class Call:
    """A call of an account, placed at a time of the provider's clock in seconds."""

    account: str
    reference_id: str
    placed_at: float
    plan: Plan

    def finished(self, now: float) -> bool:
        """Return whether the call has reached its last state."""
        return now - self.placed_at >= self.plan.ends_after

    def answer(self, now: float = math.inf) -> dict[str, object] | None:
        """Return the fields of the response to GetSendStatus; None while the id is not found."""
        plan = self.plan
        status = plan.status(now - self.placed_at)
        if status is None:
            return None
        finished = status is SendStatus.FINISHED
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


class Operation(StrEnum):
    """Operations, named as in the URL."""

    GET_SEND_STATUS = "GetSendStatus"
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


@dataclass(frozen=True, slots=True, config=CONFIG)
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
    fields: Mapping[str, object]


def normalize_id(reference_id: str) -> str:
    """Return an id in the provider's notation: upper case, without blanks."""
    return "".join(reference_id.split()).upper()


def count_recent(times: deque[float], now: float) -> int:
    """Remove times older than a second, and return how many are left."""
    while times and times[0] <= now - 1.0:
        times.popleft()
    return len(times)


class Provider:
    """Accounts, calls and responses; see `Simulator` for the arguments.

    Attributes:
        accounts: by name.
        calls: by account name and normalized id.
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
        max_calls: int = MAX_CALLS,  # limit; the oldest are removed
    ) -> None:
        self._max_calls = max_calls
        self.accounts: dict[str, Account] = {}
        self.calls: dict[tuple[str, str], Call] = {}
        self._recent: defaultdict[str, deque[float]] = defaultdict(deque)
        # Times of use, the oldest first.
        self._request_ids: dict[tuple[str, str], float] = {}
        self._seed = seed
        self._clock = clock
        self._speed = speed
        self._find_unknown_ids = find_unknown_ids
        self._draw = draw
        # Seeded, so that runs are repeatable; not used for secrets.
        self._rng = random.Random(f"calls:{seed}")  # noqa: S311
        for account in accounts:
            self.put_account(account)

    @property
    def now(self) -> float:
        """Seconds of the clock of calls."""
        return self._clock() * self._speed

    def account_of(self, api_key: str) -> Account | None:
        """Return the account with this key."""
        return next((it for it in self.accounts.values() if it.api_key == api_key), None)

    def put_account(self, account: Account) -> None:
        """Add an account, or replace the one of the same name.

        Raises:
            ValueError: another account has the same key.
        """
        other = self.account_of(account.api_key)
        if other is not None and other.name != account.name:
            raise ValueError(f"api_key: the account {other.name} has the same key")
        self.accounts[account.name] = account

    def add_call(self, account: str, reference_id: str, plan: Plan | None = None) -> Call:
        """Place a call now, with a given or a random plan; replaces a call with the same id.

        Raises:
            ValueError: the account does not exist, or the id is blank.
        """
        if account not in self.accounts:
            raise ValueError(f"account: expected one of {', '.join(self.accounts)}")
        reference_id = normalize_id(reference_id)
        if not reference_id:
            raise ValueError("reference_id: expected text that is not blank")
        if plan is None:
            rng = random.Random(f"{self._seed}:{reference_id}")  # noqa: S311 - as above
            plan = self._draw(rng)
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
            return _refused(operation, *_REFUSALS[AccountState.REVOKED])
        if account.state is not AccountState.OK:
            return _refused(operation, *_REFUSALS[account.state])
        if account.tps is not None:
            recent, now = self._recent[account.name], self._clock()
            if count_recent(recent, now) >= account.tps:
                return _refused(operation, "160", "TPS limit exceeded")
            recent.append(now)
        match operation:
            case Operation.GET_SEND_STATUS:
                return self._status(account, normalize_id(params.get("ReferenceId", "")))
            case Operation.GET_BALANCE:
                fields = {"Balance": round(account.balance), "CodeResponse": "100", "UserID": 9999}
                return Reply("100", fields)
            case _:
                return self._place(operation, account, params)

    def _status(self, account: Account, reference_id: str) -> Reply:
        if not reference_id:
            return _refused(Operation.GET_SEND_STATUS, "851", "ReferenceId is required")
        call = self.calls.get((account.name, reference_id))
        if call is None and self._find_unknown_ids and _ID.fullmatch(reference_id):
            call = self.add_call(account.name, reference_id)
        fields = None if call is None else call.answer(self.now)
        if fields is None:
            return _refused(Operation.GET_SEND_STATUS, "105", "ReferenceId not found")
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

    def _is_repeated(self, account: str, request_id: str) -> bool:
        used, now, key = self._request_ids, self.now, (account, request_id)
        while used and used[oldest := next(iter(used))] <= now - _REQUEST_ID_BLOCKS:
            del used[oldest]
        repeated = key in used
        used.setdefault(key, now)
        return repeated


def _refused(operation: Operation, code: str, message: str) -> Reply:
    """Return an error response in the format of the operation (api/examples).

    The messages of 101 and 104 are documented; the others are invented.
    """
    error = {"ErrorMessage": message}
    if operation is Operation.GET_BALANCE:
        return Reply(code, {"Balance": 0, "CodeResponse": code, **error})
    if operation is Operation.GET_SEND_STATUS or code == "101":
        return Reply(code, {"CodeResult": code, "CountRegenerate": 0, **error})
    return Reply(code, {"CodeResult": code, **error})
