"""What every source is, and what it hands calls to."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import ClassVar, NamedTuple, Protocol

from exporter.config.watch import WatchConfig
from exporter.ledger.types import Count, InsertSummary, NewCall
from exporter.source_status import SourceStatus


class CallSink(Protocol):
    """What sources hand calls to: `exporter.tracker.CallTracker`.

    Every method raises `LedgerError` where the ledger fails; what it did before is durable.
    """

    async def add(self, source: str | None, calls: Iterable[NewCall]) -> InsertSummary:
        """Watch calls, named by a source; None for calls that no source keeps naming."""

    async def push(self, requests: Sequence[Sequence[NewCall]]) -> Sequence[Count | str]:
        """Watch the calls of requests, each request whole or not at all.

        Returns:
            For each request how many calls were added, or the account that has no room for them.
        """

    async def keep_only(self, source: str, rows: set[int]) -> None:
        """Remove the calls that the source named before, except these rows of the ledger."""

    async def sources(self) -> list[str]:
        """Return every source that names a call."""

    async def cursor(self, source: str, query: str) -> float | None:
        """Return up to when a query has read (Unix time); None if it was never read."""

    async def move_cursor(self, source: str, query: str, read_until: float) -> None:
        """Store up to when a query has read."""


class SourceContext(NamedTuple):
    """What calls may name, from the rest of the configuration.

    Attributes:
        accounts: the names of the accounts.
        labels: the names in `watch.labels`.
        memory: how long the ledger remembers a finished call, in seconds.
        called_back: an account has a `callback_token`.
    """

    accounts: Sequence[str]
    labels: Sequence[str]
    memory: float
    called_back: bool = False


class Source:
    """A source of calls; each module of the package has one.

    Args:
        sink: takes its calls.

    Attributes:
        name: the label `source` in metrics.
    """

    name: ClassVar[str]

    def __init__(self, sink: CallSink) -> None:
        self._sink = sink
        self._status = SourceStatus(self.name)

    @property
    def statuses(self) -> Sequence[SourceStatus]:
        """The status of the source, or of each of its parts that metrics show by itself."""
        return [self._status]

    async def configure(self, watch: WatchConfig, context: SourceContext) -> None:
        """Apply a configuration: return once the calls that it names are added.

        Raises:
            LedgerError: the ledger failed.
        """
        raise NotImplementedError

    async def remove_missing(self) -> None:
        """Remove calls that are not named any more, now that every source has added its own.

        Raises:
            LedgerError: the ledger failed.
        """

    async def run(self) -> None:
        """Read what changes, until cancelled."""
        await asyncio.Event().wait()
