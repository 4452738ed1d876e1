"""The base class of sources."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import ClassVar, NamedTuple

from exporter.config.watch import CallConfig, WatchConfig
from exporter.ledger.types import NewCall
from exporter.source_status import SourceStatus
from exporter.tracker import CallTracker


class SourceContext(NamedTuple):
    """Other parts of the configuration that sources need."""

    accounts: tuple[str, ...]
    labels: tuple[str, ...]
    retention: float  # seconds for which the ledger keeps a finished call
    called_back: bool = False  # whether an account has a `callback_token`


class Source:
    """A source of calls, which `tracker` receives. Its coroutines raise `LedgerError`.

    Attributes:
        name: the label `source` in metrics.
    """

    name: ClassVar[str]

    def __init__(self, tracker: CallTracker) -> None:
        self._tracker = tracker
        self._status = SourceStatus(self.name)

    @property
    def statuses(self) -> Sequence[SourceStatus]:
        """The status of the source, or of each of its parts that has its own label `source`."""
        return [self._status]

    async def configure(self, watch: WatchConfig, context: SourceContext) -> None:
        """Apply a configuration, and return once its calls are added."""
        raise NotImplementedError

    async def remove_missing(self) -> None:
        """Remove obsolete calls; called after every source has added its calls."""

    async def run(self) -> None:
        """Apply changes of the source until cancelled."""
        await asyncio.Event().wait()


def too_many(accounts: Iterable[str]) -> str:
    """Return the problem of a source with calls above `watch.max_calls`."""
    return f"some of its calls exceed `watch.max_calls` (account {', '.join(sorted(accounts))})"


def new_call(call: CallConfig) -> NewCall:
    """Return a call of a list in the form that the ledger adds."""
    return NewCall(call.account, call.reference_id, call.labels, call.kind)
