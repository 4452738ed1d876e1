"""The stand-in provider: its accounts, its calls, and its answers. No I/O; time is given."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from enum import StrEnum

from exporter.simulator import placing
from exporter.simulator.accounts import Account, AccountState
from exporter.simulator.life import Call, Plan, shown_id
from exporter.simulator.mix import Mix
from exporter.simulator.replies import Operation, Reply, refused
from exporter.simulator.traffic import Window

MAX_CALLS = 1_000_000
_REFUSALS = {
    AccountState.REVOKED: "101",
    AccountState.IP_BLOCKED: "140",
    AccountState.LOCKED: "143",
}
# A GUID, with or without each of its dashes: the documented SMSID lacks one.
_ID = re.compile(r"(?:[0-9A-F]-?){31}[0-9A-F]")


class UnknownIds(StrEnum):
    """What GetSendStatus says to a well-formed id of which nobody has told it."""

    FOUND = "found"
    """It is given a plan of its own, drawn from the seed and the id."""
    NOT_FOUND = "not_found"
    """105."""


class Provider:
    """Accounts, calls and answers.

    Args:
        accounts: the accounts at the start.
        seed: the same seed and the same requests bring the same calls.
        clock: seconds; only differences count.
        today: the date, for `SendDate`.
        speed: how much faster than the clock the calls live; limits per second keep to the clock.
        unknown_ids: what to say of ids that nobody has placed.
        mix: what becomes of calls that have no explicit plan.
        templates: ids of templates and of recordings that exist.
    """

    def __init__(
        self,
        accounts: Iterable[Account] = (),
        *,
        seed: int = 0,
        clock: Callable[[], float],
        today: Callable[[], datetime],
        speed: float = 1.0,
        unknown_ids: UnknownIds = UnknownIds.NOT_FOUND,
        mix: Mix | None = None,
        templates: Iterable[str] = ("1", "2", "3"),
    ) -> None:
        self.accounts: dict[str, Account] = {}
        self.calls: dict[tuple[str, str], Call] = {}
        self._by_key: dict[str, Account] = {}
        self._windows: dict[str, Window] = {}
        self._request_ids = placing.RequestIds()
        self._seed = seed
        self._clock = clock
        self._today = today
        self._speed = speed
        self._unknown_ids = unknown_ids
        self._mix = mix or Mix()
        self.templates = frozenset(templates)
        # Not for secrets, but for the same calls with the same seed.
        self._rng = random.Random(f"calls:{seed}")  # noqa: S311
        for account in accounts:
            self.put_account(account)

    @property
    def now(self) -> float:
        """The time in which calls live, seconds."""
        return self._clock() * self._speed

    def account_of(self, api_key: str) -> Account | None:
        """The account with this key."""
        return self._by_key.get(api_key)

    def put_account(self, account: Account) -> None:
        """Create an account, or alter the one of the same name.

        Raises:
            ValueError: another account has the same key.
        """
        other = self._by_key.get(account.api_key)
        if other is not None and other.name != account.name:
            raise ValueError(f"api_key: the account {other.name} has the same")
        old = self.accounts.get(account.name)
        if old is not None:
            del self._by_key[old.api_key]
        self.accounts[account.name] = self._by_key[account.api_key] = account
        self._windows.setdefault(account.name, Window())

    def add_call(self, account: str, reference_id: str, plan: Plan | None = None) -> Call:
        """Place a call now, or place it anew, with a plan or one drawn for this id.

        Raises:
            ValueError: there is no such account, no id, or no room for another call.
        """
        if account not in self.accounts:
            raise ValueError(f"account: there is none named {account!r}")
        shown = shown_id(reference_id)
        if not shown:
            raise ValueError("reference_id: expected a text that is not blank")
        if (account, shown) not in self.calls and len(self.calls) >= MAX_CALLS:
            raise ValueError(f"no room for more than {MAX_CALLS} calls")
        call = Call(account, shown, self.now, plan or self._drawn(shown))
        self.calls[account, shown] = call
        return call

    def answer(
        self, operation: Operation, account: Account | None, params: Mapping[str, str]
    ) -> Reply:
        """The answer to one request.

        Args:
            operation: what is asked for.
            account: whose key was given, see `account_of`; None where nobody has it.
            params: the query, or the body of GetBalance.
        """
        if account is None or params.get("SecretKey") != account.secret_key:
            return refused(operation, "101")
        if account.state is not AccountState.OK:
            return refused(operation, _REFUSALS[account.state])
        if account.tps is not None:
            window, now = self._windows[account.name], self._clock()
            if window.count(now) >= account.tps:
                return self._over_limit(operation, account)
            window.add(now)
        match operation:
            case Operation.GET_SEND_STATUS:
                return self._status(account, params.get("ReferenceId", ""))
            case Operation.GET_BALANCE:
                balance = round(account.balance)
                return Reply(
                    "100",
                    {"Balance": balance, "CodeResponse": "100", "UserID": account.user_id},
                )
            case _:
                return self._place(operation, account, params)

    def _over_limit(self, operation: Operation, account: Account) -> Reply:
        reply = refused(operation, "160")
        if account.http_429:
            return replace(reply, code="429", status=429, retry_after=account.retry_after)
        return reply

    def _status(self, account: Account, reference_id: str) -> Reply:
        shown = shown_id(reference_id)
        if not shown:
            return refused(Operation.GET_SEND_STATUS, "851")
        call = self.calls.get((account.name, shown))
        if (
            call is None
            and self._unknown_ids is UnknownIds.FOUND
            and _ID.fullmatch(shown)
            and len(self.calls) < MAX_CALLS
        ):
            call = self.add_call(account.name, shown)
        fields = call.answer(self.now) if call is not None else None
        if fields is None:
            return refused(Operation.GET_SEND_STATUS, "105")
        return Reply("100", fields)

    def _place(self, operation: Operation, account: Account, params: Mapping[str, str]) -> Reply:
        code = placing.complaint(operation, params, templates=self.templates)
        plan = placing.planned(self._mix, self._rng, params, self._today())
        # A call must be affordable before anybody knows how it will end.
        if code is None and account.balance < max(plan.price, self._mix.price):
            code = "103"
        if code is None and self._request_ids.repeated(account.name, params, self.now):
            code = "124"
        if code is not None:
            return refused(operation, code)
        self.put_account(replace(account, balance=account.balance - plan.price))
        reference_id = placing.new_id(self._rng)
        self.add_call(account.name, reference_id, plan)
        # The blank at the end is documented.
        return Reply("100", {"CodeResult": "100", "SMSID": reference_id + " "})

    def _drawn(self, reference_id: str) -> Plan:
        return self._mix.draw(random.Random(f"{self._seed}:{reference_id}"))  # noqa: S311
