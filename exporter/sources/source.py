"""What every source is."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from exporter.config.watch import WatchConfig
from exporter.source_status import SourceStatus
from exporter.tracker import CallTracker


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
        tracker: takes its calls.

    Attributes:
        name: the label `source` in metrics.
    """

    name: ClassVar[str]

    def __init__(self, tracker: CallTracker) -> None:
        self._tracker = tracker
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
