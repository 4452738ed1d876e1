"""Tells Home Assistant of the accounts, through a broker that may be away."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

import structlog

from exporter.backoff import ExponentialBackoff
from exporter.config import HomeAssistantConfig
from exporter.errors import BrokerError, LedgerError
from exporter.home_assistant.accounts import ShownAccounts
from exporter.home_assistant.broker import AT_A_TIME, Broker, Message, connected
from exporter.home_assistant.discovery import FINISHED, OFFLINE, ONLINE, MqttKind, device_of
from exporter.home_assistant.events import Events, MqttMetrics, MqttOutcome, Waiting
from exporter.home_assistant.states import finished
from exporter.ledger.ledger import Ledger
from exporter.ledger.listing import records_of
from exporter.ledger.records import CallRecord

_SETTLE: Final = 0.5
"""Seconds for which what the broker has kept is awaited: nothing tells that it was the last."""

# Several exporters are not to come back together.
_BACK_OFF = ExponentialBackoff(1.0, 60.0, jitter=0.5)
"""Seconds before a connection that broke is made again, the first time and at most."""

_STEADY: Final = 60.0
"""Seconds after which a connection counts as a good one."""

_LEDGER_AGAIN: Final = 5.0
"""Seconds after which a ledger that could not be read is tried again."""

_TRIES: Final = 3
"""Times that a call is told of, where the connection breaks each time."""

_SAY_AGAIN: Final = b"?"
"""Stands for what is kept of a topic, and is to be said again; no message is like it."""

_log = structlog.get_logger(__name__)


class Publisher:
    """Tells a broker what there is, and keeps trying, until it is stopped.

    What the broker is to keep is compared with what it has: what differs is said, and what is there
    and not wanted is taken back. So a start, a reconnection, a birth of Home Assistant and an
    account that has gone are all the same.

    Args:
        config: the broker.
        shown: the accounts.
        events: finished calls.
        ledger: knows these calls.
        metrics: where messages are counted.
        others: whether other exporters go on telling when this one stops.
    """

    def __init__(
        self,
        config: HomeAssistantConfig,
        shown: ShownAccounts,
        events: Events,
        ledger: Ledger,
        metrics: MqttMetrics,
        others: Callable[[], bool],
    ) -> None:
        self._config = config
        self._shown = shown
        self._events = events
        self._ledger = ledger
        self._metrics = metrics
        self._others = others
        self._topics = shown.topics
        self._kept: dict[str, bytes] = {}  # by the broker, as far as it is known
        self._looked = False  # at that, since another exporter last told of the accounts
        self._stopping = asyncio.Event()
        self._take_back = False
        self._problem: str | None = None
        self._failed: set[str] = set()  # topics on which nothing could be said the last time

    def stop(self, *, take_back: bool) -> None:
        """Have `run` end once what waits is told, or at once where the broker is away.

        Args:
            take_back: nothing is to be left with the broker.
        """
        self._take_back = take_back
        self._stopping.set()
        self._events.come.set()

    async def run(self) -> None:
        """Connect again and again, with a back-off, until `stop`."""
        failures = 0
        loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            begun = loop.time()
            try:
                await self._connect()
            except BrokerError as error:
                failures = 1 if loop.time() - begun > _STEADY else failures + 1
                self._note(str(error))
            finally:
                self._metrics.connected.set(0)
            wait = _BACK_OFF.wait(failures, random.random())  # noqa: S311
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._stopping.wait()

    async def _connect(self) -> None:
        last_will = Message(self._topics.availability, OFFLINE, retained=True)
        async with connected(self._config, last_will) as broker:
            self._metrics.connected.set(1)
            self._note(None)
            tasks = [
                asyncio.create_task(self._listen(broker)),
                asyncio.create_task(self._tell(broker)),
            ]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                ends = await asyncio.gather(*tasks, return_exceptions=True)
            for end in ends:
                if isinstance(end, Exception):
                    raise end

    async def _listen(self, broker: Broker) -> None:
        async for topic, payload, retained in broker.messages():
            if topic == self._topics.birth:
                if payload == ONLINE:
                    self._kept = dict.fromkeys(self._kept, _SAY_AGAIN)
            elif topic == self._topics.availability:
                # The last will of a connection that has broken, perhaps of another exporter's.
                self._kept[topic] = payload
            elif retained:
                self._kept.setdefault(topic, payload)

    async def _tell(self, broker: Broker) -> None:
        await self._look(broker)
        loop, look_at = asyncio.get_running_loop(), 0.0
        while not self._stopping.is_set():
            await self._tell_events(broker)
            if loop.time() >= look_at:
                look_at = loop.time() + self._shown.every
                await self._tell_changes(broker, await self._wanted(broker), ONLINE)
            with suppress(TimeoutError):
                async with asyncio.timeout_at(look_at):
                    await self._events.come.wait()
        while await self._tell_events(broker):
            pass
        wanted = await self._wanted(broker)
        if wanted is not None and self._take_back:
            wanted = {}
            await self._tell_changes(broker, wanted, ONLINE)
            await asyncio.sleep(_SETTLE)
        await self._tell_changes(broker, wanted, ONLINE if self._others() else OFFLINE)

    async def _wanted(self, broker: Broker) -> Mapping[str, bytes] | None:
        """Return what is to be kept; None where another exporter sees to that."""
        wanted = await self._shown.messages()
        if wanted is not None and not self._looked:
            await self._look(broker)
        self._looked = wanted is not None
        return wanted

    async def _look(self, broker: Broker) -> None:
        """Learn what the broker has kept, whoever said it."""
        self._kept = {}
        topics = self._topics
        await broker.subscribe(topics.availability, topics.birth, *topics.retained)
        await asyncio.sleep(_SETTLE)
        await broker.unsubscribe(*topics.retained)  # or every word of its own would come back
        self._looked = True

    async def _tell_changes(
        self, broker: Broker, wanted: Mapping[str, bytes] | None, availability: bytes
    ) -> None:
        to_be = {self._topics.availability: availability, **(wanted or {})}
        messages = [
            Message(topic, payload, retained=True)
            for topic, payload in to_be.items()
            if self._kept.get(topic) != payload
        ]
        if wanted is not None:
            gone = self._kept.keys() - to_be.keys()
            devices = {topic for topic in gone if self._topics.kind(topic) is MqttKind.DEVICE}
            # States the next time: entities that are there still would complain of an empty one.
            messages += [Message(topic, b"", retained=True) for topic in sorted(devices or gone)]
        # What failed goes last, and alone: it may be what breaks the connection.
        messages.sort(key=lambda message: message.topic in self._failed)
        while messages:
            size = _batch_size([message.topic in self._failed for message in messages])
            part, messages = messages[:size], messages[size:]
            # Before it is known: what others say meanwhile is newer. Where it fails, all is lost.
            for topic, payload, _ in part:
                self._kept[topic] = payload
                if not payload:
                    del self._kept[topic]
            self._failed.update(message.topic for message in part)
            problems = await self._publish(broker, part)
            for message, problem in zip(part, problems, strict=True):
                if not problem:
                    self._failed.discard(message.topic)
            _raise_first(problems)

    async def _tell_events(self, broker: Broker) -> bool:
        """Tell of some of the calls that wait, so that states get their turn.

        Returns:
            Whether there were any.
        """
        calls = self._events.take()
        if not calls:
            return False
        try:
            rows = [call.row for call in calls]
            known = {call.id: call for call in await self._records(rows)}
            while calls:
                await self._tell_batch(broker, calls, known)
        finally:
            self._events.put_back(calls)
        return True

    async def _tell_batch(
        self, broker: Broker, calls: list[Waiting], known: Mapping[int, CallRecord]
    ) -> None:
        """Tell of the first of the calls, which wait no more unless the broker may take them later.

        One that failed goes alone: it may be what breaks the connection.
        """
        size = _batch_size([call.failures > 0 for call in calls])
        batch = [call for call in calls[:size] if call.row in known]
        self._events.drop(size - len(batch))
        messages = []
        for call in batch:
            topic = self._topics.of(device_of(call.account), FINISHED)
            messages.append(Message(topic, finished(known[call.row]), retained=False))
        del calls[:size]
        failed = batch  # until the broker has acknowledged them: this may be cancelled
        try:
            problems = await self._publish(broker, messages)
            failed = [call for call, problem in zip(batch, problems, strict=True) if problem]
        finally:
            for call in failed:
                if call.failures + 1 < _TRIES:
                    self._events.add(call._replace(failures=call.failures + 1))
                else:
                    self._events.drop(1)
        _raise_first(problems)

    async def _records(self, rows: Sequence[int]) -> Sequence[CallRecord]:
        """Return calls as the ledger holds them, as soon as it can be read."""
        while True:
            with suppress(LedgerError):  # counted and told where it happened
                found = await self._ledger.call(records_of, self._ledger.database, rows)
                return list(map(self._ledger.shown, found))
            await asyncio.sleep(_LEDGER_AGAIN)

    async def _publish(
        self, broker: Broker, messages: Sequence[Message]
    ) -> list[BrokerError | None]:
        """Say up to `AT_A_TIME` things; returns what `Broker.publish` does."""
        problems = await broker.publish(messages)
        for message, problem in zip(messages, problems, strict=True):
            outcome = MqttOutcome.FAILED if problem else MqttOutcome.PUBLISHED
            self._metrics.count(self._topics.kind(message.topic), outcome)
        return problems

    def _note(self, problem: str | None) -> None:
        if problem is not None:
            self._metrics.connection_errors.inc()
            if problem != self._problem:
                _log.warning("MQTT broker not connected", problem=problem)
        else:
            _log.info("MQTT broker connected")
        self._problem = problem


def _raise_first(problems: Sequence[BrokerError | None]) -> None:
    for problem in problems:
        if problem:
            raise problem


def _batch_size(failed: Sequence[bool]) -> int:
    """Return how many of some messages go together, of which these failed the last time."""
    first = list(failed[:AT_A_TIME])
    return max(1, first.index(True)) if True in first else len(first)
