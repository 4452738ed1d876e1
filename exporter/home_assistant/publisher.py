"""Publisher of accounts and events to an MQTT broker, with reconnection."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import structlog
from aiomqtt import Client

from exporter.backoff import ExponentialBackoff
from exporter.config import HomeAssistantConfig
from exporter.errors import BrokerAwayError, BrokerError
from exporter.home_assistant.mqtt import (
    AT_LEAST_ONCE,
    TIMEOUT,
    Message,
    connected,
    mapped_errors,
)
from exporter.home_assistant.payloads import OFFLINE, ONLINE, MqttKind
from exporter.metrics.catalogue import Catalogue

if TYPE_CHECKING:
    from exporter.home_assistant.integration import ExposedAccounts

_BATCH_SIZE: Final = 10
"""Limit of unacknowledged messages."""

_SETTLE: Final = 0.5
"""Seconds to wait for retained messages, as nothing marks the last one."""

# With jitter, so that several exporters do not reconnect at the same time.
BACKOFF: Final = ExponentialBackoff(1.0, 60.0, jitter=0.5)
"""Back-off of reconnections."""

_STEADY: Final = 60.0
"""Seconds after which a connection counts as stable."""

_REPUBLISH: Final = b"?"
"""Placeholder for a retained message that has to be published again."""

_log = structlog.get_logger(__name__)


class MqttOutcome(StrEnum):
    """Outcome of a message: the label `outcome` of `esms_mqtt_messages_total`."""

    PUBLISHED = "published"  # acknowledged by the broker
    FAILED = "failed"  # not acknowledged; published again


class MqttMetrics:
    """Metrics of the broker; they start at 0.

    Attributes:
        connected: whether the broker is connected.
        connection_errors: number of failed connections.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._messages = {
            (kind, outcome): catalogue.mqtt_messages.labels(kind.value, outcome.value)
            for kind in MqttKind
            for outcome in MqttOutcome
        }
        self.connected = False
        self.connection_errors = 0
        catalogue.mqtt_connected.read_from(lambda: [((), self.connected)])
        catalogue.mqtt_errors.read_from(lambda: [((), self.connection_errors)])

    def count(self, kind: MqttKind, outcome: MqttOutcome) -> None:
        """Count a message."""
        self._messages[kind, outcome].inc()


class Publisher:
    """Publishes to a broker until stopped.

    Compares the messages to retain with the retained ones, publishes differences and clears
    obsolete messages. This handles a start, a reconnection, a birth message of Home Assistant and
    a removed account alike.

    Args:
        config: the broker.
        exposed: the accounts.
        metrics: counts messages.
        on_ready: called when events can be published.
        timeout: seconds to wait for a response of the broker.
        backoff: back-off of reconnections.
    """

    def __init__(
        self,
        config: HomeAssistantConfig,
        exposed: ExposedAccounts,
        metrics: MqttMetrics,
        on_ready: Callable[[], None],
        timeout: float = TIMEOUT,
        backoff: ExponentialBackoff = BACKOFF,
    ) -> None:
        self._config = config
        self._exposed = exposed
        self._metrics = metrics
        self._others = False
        self._on_ready = on_ready
        self._timeout = timeout
        self._backoff = backoff
        self._topics = exposed.topics
        self._retained: dict[str, bytes] = {}  # the known retained messages of the broker
        self._published: Collection[str] = ()  # topics of accounts in the last update
        self._failed: dict[str, None] = {}  # topics whose last message failed, oldest first
        self._events: deque[tuple[Message, asyncio.Future[None]]] = deque()
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._clear_retained = False
        self._problem: str | None = None
        self.ready = False

    def stop(self, *, clear_retained: bool, others: bool = False) -> None:
        """Stop `run`, at once if the broker is disconnected.

        Args:
            clear_retained: whether to clear all retained messages.
            others: whether other exporters keep publishing.
        """
        self._clear_retained, self._others = clear_retained, others
        self._stopping.set()
        self._wake.set()

    async def publish_event(self, account: str, payload: bytes) -> None:
        """Publish an event once, and return when the broker has acknowledged it.

        Events are published one at a time, without other messages under way, to know which event
        breaks the connection.

        Raises:
            BrokerAwayError: the event was not published.
            BrokerError: the event was not acknowledged.
        """
        if not self.ready:
            raise BrokerAwayError("the MQTT broker is not connected")
        message = Message(self._topics.event(account), payload, retained=False)
        published = asyncio.get_running_loop().create_future()
        self._events.append((message, published))
        self._wake.set()
        await published

    async def run(self) -> None:
        """Connect and publish, with a back-off after failures, until `stop`."""
        failures = 0
        loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            started = loop.time()
            try:
                await self._connect()
            except BrokerError as error:
                failures = 1 if loop.time() - started > _STEADY else failures + 1
                self._log_connection(str(error))
            finally:
                self._metrics.connected = False
                self._refuse_events()
            wait = self._backoff.wait(failures, random.random())  # noqa: S311
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._stopping.wait()

    async def _connect(self) -> None:
        last_will = Message(self._topics.availability, OFFLINE, retained=True)
        async with connected(self._config, last_will, self._timeout) as broker:
            self._metrics.connected = True
            self._log_connection(None)
            tasks = [
                asyncio.create_task(self._receive(broker)),
                asyncio.create_task(self._publish_all(broker)),
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

    async def _receive(self, broker: Client) -> None:
        with mapped_errors():
            async for message in broker.messages:
                topic, payload = message.topic.value, message.payload
                if topic == self._topics.birth:
                    if payload == ONLINE:
                        self._retained = dict.fromkeys(self._retained, _REPUBLISH)
                elif topic == self._topics.availability:
                    # May be the last will of a broken connection, also of another exporter.
                    self._retained[topic] = payload
                elif message.retain:
                    self._retained.setdefault(topic, payload)

    async def _publish_all(self, broker: Client) -> None:
        await self._look(broker)
        self._published = (await self._exposed.messages()).keys()
        loop, look_at = asyncio.get_running_loop(), 0.0
        while not self._stopping.is_set():
            self._wake.clear()
            await self._publish_events(broker)
            if loop.time() >= look_at:
                look_at = loop.time() + self._exposed.interval
                await self._publish_changes(broker, await self._wanted(broker), ONLINE)
                if not self.ready:
                    self.ready = True
                    self._on_ready()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(look_at):
                    await self._wake.wait()
        self.ready = False
        await self._publish_events(broker)
        wanted = await self._wanted(broker)
        if self._clear_retained:
            wanted = {}
            await self._publish_changes(broker, wanted, ONLINE)
            await asyncio.sleep(_SETTLE)
        await self._publish_changes(broker, wanted, ONLINE if self._others else OFFLINE)

    async def _wanted(self, broker: Client) -> Mapping[str, bytes]:
        """Return the messages to retain for the accounts that this exporter polls."""
        wanted = await self._exposed.messages()
        if not wanted.keys() <= set(self._published):
            await self._look(broker)  # another exporter may have published the new accounts
        self._published = wanted.keys()
        return wanted

    async def _look(self, broker: Client) -> None:
        """Read the retained messages of the broker."""
        self._retained = {}
        topics = self._topics
        wanted = topics.availability, topics.birth, *topics.retained
        with mapped_errors():
            await broker.subscribe([(topic, AT_LEAST_ONCE) for topic in wanted])
        await asyncio.sleep(_SETTLE)
        with mapped_errors():  # otherwise the broker would send back every message
            await broker.unsubscribe(list(topics.retained))

    async def _publish_changes(
        self, broker: Client, wanted: Mapping[str, bytes], availability: bytes
    ) -> None:
        target = {self._topics.availability: availability, **wanted}
        messages = [
            Message(topic, payload, retained=True)
            for topic, payload in target.items()
            if self._retained.get(topic) != payload
        ]
        unwanted = self._retained.keys() - target.keys() - self._exposed.left_to_others()
        devices = {topic for topic in unwanted if self._topics.kind(topic) is MqttKind.DEVICE}
        # Clear states in a later update: existing entities log an error for an empty state.
        messages += [Message(topic, b"", retained=True) for topic in sorted(devices or unwanted)]
        others = [message for message in messages if message.topic not in self._failed]
        for start in range(0, len(others), _BATCH_SIZE):
            await self._publish_retained(broker, others[start : start + _BATCH_SIZE])
        if not self.ready and not self._stopping.is_set():
            return
        # A message that failed may break the connection: publish it last, alone, and after events.
        by_topic = {message.topic: message for message in messages}
        for topic in [topic for topic in self._failed if topic in by_topic]:
            await self._publish_retained(broker, [by_topic[topic]])

    async def _publish_retained(self, broker: Client, messages: Sequence[Message]) -> None:
        # Record before publishing: messages of other exporters that arrive meanwhile are newer.
        for topic, payload, _ in messages:
            self._retained[topic] = payload
            if not payload:
                del self._retained[topic]
            self._failed.pop(topic, None)
            self._failed[topic] = None  # until it is acknowledged
        problems = await asyncio.gather(*(self._publish(broker, each) for each in messages))
        for message, problem in zip(messages, problems, strict=True):
            if not problem:
                del self._failed[message.topic]
        for problem in filter(None, problems):
            raise problem

    async def _publish_events(self, broker: Client) -> None:
        """Publish the waiting events; later events wait until states were published."""
        for _ in range(len(self._events)):
            message, published = self._events.popleft()
            if published.done():
                continue  # cancelled
            problem: BrokerError | None = BrokerError("connection lost before the acknowledgement")
            try:
                problem = await self._publish(broker, message)
            finally:
                _finish(published, problem)
            if problem:
                raise problem

    def _refuse_events(self) -> None:
        self.ready = False
        while self._events:
            _finish(self._events.popleft()[1], BrokerAwayError("the MQTT broker disconnected"))

    async def _publish(self, broker: Client, message: Message) -> BrokerError | None:
        """Publish a message; return the problem if the broker did not acknowledge it."""
        problem, outcome = None, MqttOutcome.PUBLISHED
        try:
            with mapped_errors():
                topic, payload, retained = message
                await broker.publish(topic, payload, AT_LEAST_ONCE, retained)
        except BrokerError as error:
            problem, outcome = error, MqttOutcome.FAILED
        self._metrics.count(self._topics.kind(message.topic), outcome)
        return problem

    def _log_connection(self, problem: str | None) -> None:
        if problem is not None:
            self._metrics.connection_errors += 1
            if problem != self._problem:
                _log.warning("MQTT connection failed", problem=problem)
        else:
            _log.info("MQTT connection established")
        self._problem = problem


def _finish(published: asyncio.Future[None], problem: BrokerError | None) -> None:
    if published.done():
        return  # cancelled
    if problem:
        published.set_exception(problem)
    else:
        published.set_result(None)
