"""The watch source of the provider's callback: `watch.callback`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from exporter.calls import CallbackOutcome
from exporter.config import CallbackConfig
from exporter.esms.answers import Answer, read_callback, read_price
from exporter.ids import ReferenceId, reference_id
from exporter.ledger.records import DELETED, CallRecord, NewCall

SOURCE: Final = "callback"
"""The source's name in metrics."""

MAX_FIELD: Final = 200
"""Characters of a parameter that is read; those of the provider have fewer than 40."""

_READ: Final = frozenset(
    {"ReferenceId", "SendStatus", "SentResult", "CallStatus", "CallDuration", "Ivr", "Price"}
)


class Calls(Protocol):
    """Who knows the calls: `exporter.tracker.CallTracker`."""

    async def find(self, account: str, name: ReferenceId) -> CallRecord | None:
        """Return a call, if it is known."""

    async def push(self, call: NewCall) -> None:
        """Watch a call; returns once that is durable."""

    async def keep(self, row: int) -> bool:
        """Watch a call even if nothing names it any more, or remember it if it has finished.

        Returns:
            Whether it is there still.
        """

    async def price(self, row: int, price: float) -> None:
        """Keep what a call has cost, in VND; returns once that is durable."""

    async def accept(self, call: CallRecord, answer: Answer) -> CallbackOutcome:
        """Finish a call, if that is what the answer means; returns once that is durable."""

    async def hasten(self, account: str, row: int) -> None:
        """Ask the provider about a call now."""


async def take(
    calls: Calls, config: CallbackConfig, account: str, fields: Mapping[str, str]
) -> CallbackOutcome:
    """Make of a callback what the configuration wants; what it says is durable then.

    Args:
        calls: knows the calls.
        config: whom to trust.
        account: whose token the callback held.
        fields: its parameters; those that nobody knows may be as long as they like.

    Raises:
        LedgerError: the ledger failed.
        NoRoomError: there are too many calls.
    """
    # The first name may come with a byte order mark.
    named = ((name.lstrip("\ufeff"), value) for name, value in fields.items())
    fields = {name: value for name, value in named if name in _READ}
    if (name := _name(fields)) is None:
        return CallbackOutcome.MALFORMED
    known = await calls.find(account, name)
    if known is not None and not await calls.keep(known.id):
        known = await calls.find(account, name)  # let go or forgotten meanwhile
    if known is None and config.unknown == "watch":
        await calls.push(NewCall(account, name, {}))
    call = known or await calls.find(account, name)
    if call is None or call.state == DELETED:
        return CallbackOutcome.IGNORED
    if (price := read_price(fields.get("Price", ""))) is not None:
        await calls.price(call.id, price)
    if call.result is not None:
        return CallbackOutcome.REPEATED
    if config.trust == "accept":
        outcome = await calls.accept(call, read_callback(fields))
        if outcome is not CallbackOutcome.HINT:
            return outcome
    await calls.hasten(account, call.id)
    return CallbackOutcome.HINT if known else CallbackOutcome.WATCHED


def _name(fields: Mapping[str, str]) -> ReferenceId | None:
    if any(len(value) > MAX_FIELD for value in fields.values()):
        return None
    try:
        return reference_id(fields.get("ReferenceId", ""))
    except ValueError:
        return None
