"""The source `callback`: notifications of finished calls from the provider."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from exporter.calls import CallbackOutcome
from exporter.config import CallbackConfig, WatchConfig
from exporter.esms.answers import read_callback, read_price
from exporter.ids import Kind, ReferenceId, reference_id
from exporter.ledger.types import DELETED, NewCall
from exporter.sources.api import PushSource
from exporter.sources.source import SourceContext
from exporter.tracker import CallTracker

MAX_FIELD: Final = 200
"""Longest parameter value that is read, in characters; the provider's are shorter than 40."""

_FIELDS: Final = frozenset(
    {"ReferenceId", "SendStatus", "SentResult", "CallStatus", "CallDuration", "Ivr", "Price"}
    # Of messages; the receiver's phone number is not read.
    | {"SMSID", "SendSuccess", "SendFailed", "TotalReceiver", "TotalPrice"}
)


class CallbackSource(PushSource):
    """Applies the provider's callbacks."""

    name = "callback"

    def __init__(self, tracker: CallTracker) -> None:
        super().__init__(tracker)
        self._config = CallbackConfig()

    async def configure(self, watch: WatchConfig, context: SourceContext) -> None:
        """Apply `watch.callback`; show metrics of the source if tokens are configured."""
        self._config = watch.callback
        self._status.configure(shown=context.called_back)

    async def accept(self, account: str, fields: Mapping[str, str]) -> CallbackOutcome:
        """Apply a callback with the parameters `fields`, and return once its effect is durable.

        Raises `CapacityError` if a limit is reached, and `LedgerError`.
        """
        # A byte order mark may precede the first name.
        named = ((name.lstrip("\ufeff"), value) for name, value in fields.items())
        fields = {name: value for name, value in named if name in _FIELDS}
        name = None
        if all(len(value) <= MAX_FIELD for value in fields.values()):
            with suppress(ValueError):
                name = reference_id(fields.get("ReferenceId") or fields.get("SMSID", ""))
        if name is None:
            self._status.count_error()
            return CallbackOutcome.MALFORMED
        with self._counted():
            return await self._apply(account, name, fields)

    async def _apply(
        self, account: str, name: ReferenceId, fields: Mapping[str, str]
    ) -> CallbackOutcome:
        kind = Kind.CALL if fields.get("ReferenceId") else Kind.MESSAGE
        known = await self._tracker.find(account, name)
        if known is not None and not await self._tracker.mark_pushed(known.id):
            known = await self._tracker.find(account, name)  # removed or pruned meanwhile
        if known is None and self._config.unknown == "watch":
            await self._push([NewCall(account, name, {}, kind)])
        call = known or await self._tracker.find(account, name)
        if call is None or call.state == DELETED:
            return CallbackOutcome.IGNORED
        of_call = kind is Kind.CALL
        price = read_price(fields.get("Price" if of_call else "TotalPrice", ""))
        outcome = CallbackOutcome.HINT if call.result is None else CallbackOutcome.REPEATED
        # If the id was added as the other kind, poll it as that kind.
        if call.result is None and self._config.trust == "accept" and call.kind == kind:
            outcome = await self._tracker.apply_callback(call, read_callback(fields, kind), price)
            if outcome is CallbackOutcome.ACCEPTED:
                return outcome
        if outcome is CallbackOutcome.HINT and known is None:
            outcome = CallbackOutcome.WATCHED
        await self._tracker.record_callback(call.id, outcome, price)
        if outcome is not CallbackOutcome.REPEATED:
            await self._tracker.poll_now(account, call.id)
        return outcome
