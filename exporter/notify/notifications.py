"""All who are told of finished calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import TypeAlias

import structlog

from exporter.config.authorities import Authorities
from exporter.config.notify import NotifyConfig
from exporter.ledger.ledger import Ledger
from exporter.ledger.outbox import Outbox
from exporter.ledger.records import CHUNK
from exporter.metrics.catalogue import Catalogue
from exporter.notify.post import Poster
from exporter.notify.routes import route_of
from exporter.notify.sender import Sender, TargetMetrics

Spawn: TypeAlias = Callable[[Coroutine[None, None, None]], asyncio.Task[None]]

_log = structlog.get_logger(__name__)


class Notifications:
    """Tells each target of the calls that it wants to know of, none waiting for another.

    Args:
        ledger: to be open before `configure`.
        metrics: where it is counted.
        spawn: runs work in the background; work that fails ends the exporter.
    """

    def __init__(self, ledger: Ledger, metrics: Catalogue, spawn: Spawn) -> None:
        self._ledger = ledger
        self._metrics = metrics
        self._spawn = spawn
        self._senders: dict[str, Sender] = {}
        self._authorities: Authorities | None = None

    async def open(self) -> None:
        """Take up what is pending in the ledger.

        Raises:
            LedgerError: the ledger failed.
        """
        await self._ledger.call(Outbox(self._ledger.database, self._ledger.clock).free)

    def configure(
        self,
        targets: Sequence[NotifyConfig],
        within: float,
        authorities: Authorities | None = None,
    ) -> None:
        """Go over to other targets; those that have not changed go on.

        What is pending for a target that is gone stays in the ledger until its time is over, and is
        sent if the target comes back.

        Args:
            targets: all that there are.
            within: seconds for which requests of those that change may go on.
            authorities: that certificates are verified against; None for the system's.
        """
        tls = authorities.context if authorities else True
        changed, self._authorities = authorities != self._authorities, authorities
        self._ledger.store.routes = tuple(map(route_of, targets))
        wanted = {config.name: config for config in targets}
        for name, sender in list(self._senders.items()):
            if changed or sender.config != wanted.get(name):
                del self._senders[name]
                self._spawn(sender.stop(within))
                if name not in wanted:
                    self._metrics.remove("target", name)
        for name, config in wanted.items():
            if name not in self._senders:
                series = TargetMetrics(self._metrics, name)
                sender = Sender(config, self._ledger, series, Poster(config, tls=tls))
                self._senders[name] = sender
                self._spawn(sender.run())

    def wake(self, names: frozenset[str]) -> None:
        """Send what has just been written for these targets."""
        for name in names:
            if sender := self._senders.get(name):
                sender.wake()

    async def stop(self, within: float) -> None:
        """End: what is under way may end within some seconds, the rest stays in the ledger."""
        await asyncio.gather(*(sender.stop(within) for sender in self._senders.values()))

    async def tidy(self) -> None:
        """Forget what is pending for targets that are gone, once its time is over.

        Raises:
            LedgerError: the ledger failed.
        """
        outbox = Outbox(self._ledger.database, self._ledger.clock)
        while gone := await self._ledger.call(outbox.forget, list(self._senders)):
            _log.warning("notifications of targets that are gone dropped", count=gone)
            if gone < CHUNK:
                return
