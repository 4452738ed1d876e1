"""The integration with Home Assistant: devices, events and buttons, over an MQTT broker."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import defaultdict
from collections.abc import (
    Callable,
    Collection,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata
from typing import TYPE_CHECKING, Final

import structlog

from exporter.account import Account
from exporter.backoff import ExponentialBackoff
from exporter.canaries.canaries import Canaries, CanaryStatus
from exporter.config import HomeAssistantConfig
from exporter.errors import BrokerAwayError, BrokerError
from exporter.home_assistant.connection import (
    AT_LEAST_ONCE,
    Message,
    connected,
    expiring,
    mapped_errors,
)
from exporter.home_assistant.entities import (
    AccountView,
    Entity,
    ExporterView,
    account_entities,
    exporter_entities,
    topic_level,
)
from exporter.home_assistant.payloads import (
    OFFLINE,
    ONLINE,
    Descriptions,
    Device,
    MqttKind,
    MqttOutcome,
    MqttStats,
    Topics,
    device,
    press_time,
    removal,
    state,
)
from exporter.metrics.catalogue import Catalogue
from exporter.supervisor import Spawn
from exporter.tracker import CallTracker

if TYPE_CHECKING:
    from aiomqtt import Client
    from aiomqtt import Message as Received

_TIMEOUT: Final = 10.0
"""Seconds to wait for a response of the broker."""

_MIN_INTERVAL: Final = 1.0
"""Minimum seconds between updates."""

_PER_ACCOUNT: Final = 0.01
"""Seconds between updates per account: with 1,000 accounts, updates use 1 % of a core."""

_BATCH_SIZE: Final = 10
"""Limit of unacknowledged messages."""

_SETTLE: Final = 0.5
"""Seconds to wait for retained messages, as nothing marks the last one."""

# With jitter, so that several exporters do not reconnect at the same time.
_BACKOFF: Final = ExponentialBackoff(1.0, 60.0, jitter=0.5)
"""Back-off of reconnections."""

_STEADY: Final = 60.0
"""Seconds after which a connection counts as stable."""

_REPUBLISH: Final = b"?"
"""Placeholder for a retained message that has to be published again."""

_CLEAR_TIMEOUT: Final = 5.0
"""Seconds to clear retained messages of the previous configuration."""

_LOG_INTERVAL: Final = 60.0
"""Minimum seconds between log messages about ignored presses."""

_log = structlog.get_logger(__name__)


def read_mqtt(metrics: Catalogue, stats: Callable[[], MqttStats | None]) -> None:
    """Read the metrics of the broker; `stats` returns None if no broker is configured."""

    def each() -> Iterator[tuple[tuple[()], MqttStats]]:
        if found := stats():
            yield (), found

    metrics.mqtt_connected.read_each(each, lambda stats: stats.connected)
    metrics.mqtt_errors.read_each(each, lambda stats: stats.connection_errors)
    metrics.mqtt_messages.read_each(each, lambda stats: stats.messages)


class HomeAssistant:
    """Runs the publisher of the configured broker, if there is one.

    Calls `on_ready` whenever events can be published again. The statistics are kept when the broker
    changes.
    """

    def __init__(
        self,
        expose: Callable[[HomeAssistantConfig], Exposed],
        spawn: Spawn,
        on_ready: Callable[[], None],
    ) -> None:
        self._expose, self._spawn, self._on_ready = expose, spawn, on_ready
        self._config: HomeAssistantConfig | None = None
        self._running: asyncio.Task[None] | None = None
        self.publisher: Publisher | None = None
        self.stats: MqttStats | None = None

    def configure(self, config: HomeAssistantConfig | None) -> None:
        """Change the broker, unless it is the same; None for no broker."""
        if config == self._config:
            return
        if self.publisher:
            moved = config is None or _location(config) != _location(self._config)
            self.publisher.stop(clear_retained=moved)
        self._config = config
        if config is None:
            self.publisher = self.stats = None
        else:
            self.stats = self.stats or MqttStats()
            self.publisher = Publisher(self._expose(config), self.stats, self._on_ready)
        self._running = self._spawn(_replace(self._running, self.publisher))

    async def stop(self, timeout: float, *, others: bool = False) -> None:
        """Publish the last states, and the availability `offline` unless `others` are online."""
        if self.publisher:
            self.publisher.stop(clear_retained=False, others=others)
        await _end(self._running, timeout)


def _location(config: HomeAssistantConfig | None) -> tuple[object, ...]:
    """Return the settings that determine where messages are retained."""
    return (config.url, config.discovery_prefix, config.topic_prefix) if config else ()


async def _replace(old: asyncio.Task[None] | None, new: Publisher | None) -> None:
    await _end(old, _CLEAR_TIMEOUT)
    if new:
        await new.run()


async def _end(running: asyncio.Task[None] | None, timeout: float) -> None:
    if running:
        await asyncio.wait([running], timeout=timeout)
        running.cancel()
        await asyncio.wait([running])


def _home_page() -> str | None:
    """Return the URL of the project, from the metadata of the installed package."""
    with suppress(PackageNotFoundError):
        for entry in metadata("esms-exporter").get_all("Project-URL") or ():
            label, _, url = entry.partition(", ")
            if label == "Homepage":
                return str(url)
    return None


@dataclass(eq=False)
class Exposed:
    """The accounts that a configuration exposes, and the exporter itself."""

    # The accounts that this exporter polls: live mapping, shared by reference.
    accounts: Mapping[str, Account]
    configured: Callable[[], Collection[str]]  # all accounts, also those that others poll
    calls: CallTracker
    canaries: Canaries
    view: Callable[[], ExporterView | None]  # None if another exporter publishes it
    start_reload: Callable[[], None]
    status_page: str | None  # URL
    config: HomeAssistantConfig

    def __post_init__(self) -> None:
        config = self.config
        self.topics = Topics(config.discovery_prefix, config.topic_prefix)
        self._common = Descriptions(
            availability=self.topics.availability,
            language=config.language,
            buttons=config.buttons,
            home_page=_home_page(),
            status_page=self.status_page,
        )

    @property
    def interval(self) -> float:
        """Seconds between updates of `messages`."""
        return max(_MIN_INTERVAL, _PER_ACCOUNT * len(self.accounts))

    def left_to_others(self) -> set[str]:
        """Return the topics of devices that other exporters may publish."""
        standby = [name for name in self.configured() if name not in self.accounts]
        devices = [self.topics.account(name) for name in standby]
        if self.view() is None:
            devices.append(self.topics.exporter)
        return {topic for one in devices for topic in (one.config, one.state)}

    async def messages(self) -> Mapping[str, bytes]:
        """Return the messages to retain for what this exporter publishes, by topic."""
        now, wanted = time.time(), dict[str, bytes]()
        if view := self.view():
            wanted |= self._describe(self.topics.exporter, exporter_entities(view))
        canaries = defaultdict[str, list[CanaryStatus]](list)
        for canary in self.canaries.statuses:
            canaries[canary.numbers.account].append(canary)
        for name, account in list(self.accounts.items()):
            if self._selects(name):
                shown = AccountView(
                    account.status,
                    self.calls.recent_results.recent(name, now),
                    account.stats.balance and account.stats.balance.vnd,
                    self.calls.totals.messages(name),
                    canaries[name],
                )
                wanted |= self._describe(self.topics.account(name), account_entities(shown))
                await asyncio.sleep(0)  # do not block polls and scrapes
        return wanted

    def _describe(self, about: Device, entities: Sequence[Entity]) -> Mapping[str, bytes]:
        return {about.config: device(about, entities, self._common), about.state: state(entities)}

    def press(self, topic: str, pressed_at: int) -> bool:
        """Press the button of a topic, at a Unix time; return whether this exporter has it."""
        if topic == f"{self.topics.exporter.base}/reload":
            self.start_reload()
            return True
        for name, numbers, _ in self.canaries.statuses:
            base = self.topics.account(numbers.account).base
            if topic == f"{base}/place/{topic_level(name)}" and self._selects(numbers.account):
                self.canaries.place_now(name, pressed_at)
                return True
        return False

    def _selects(self, account: str) -> bool:
        return self.config.accounts is None or account in self.config.accounts


class Publisher:
    """Publishes to a broker until stopped.

    Compares the wanted messages with the retained ones, publishes the differences and clears
    obsolete messages. This covers starts, reconnections, birth messages of Home Assistant and
    removed accounts. Calls `on_ready` when events can be published.
    """

    def __init__(
        self,
        exposed: Exposed,
        stats: MqttStats,
        on_ready: Callable[[], None],
        timeout: float = _TIMEOUT,
        backoff: ExponentialBackoff = _BACKOFF,
    ) -> None:
        self._exposed = exposed
        self._stats = stats
        self._others = False
        self._on_ready = on_ready
        self._timeout = timeout
        self._backoff = backoff
        self._topics = exposed.topics
        self._retained: dict[str, bytes] = {}  # the known retained messages of the broker
        self._published: Collection[str] | None = None  # topics in the last update
        self._failed: dict[str, None] = {}  # topics whose last message failed, oldest first
        # The connection, and a group for tasks that end with it; None unless ready for events.
        self._session: tuple[Client, asyncio.TaskGroup] | None = None
        self._publishing = asyncio.Lock()  # held while messages are unacknowledged
        self._stopping = asyncio.Event()
        self._clear_retained = False
        self._problem: str | None = None
        self._pressed: dict[str, int] = {}  # Unix time of the last press, by topic
        self._ignored_at = -math.inf  # when an ignored press was last logged

    @property
    def ready(self) -> bool:
        """Whether events can be published."""
        return self._session is not None

    def stop(self, *, clear_retained: bool, others: bool = False) -> None:
        """Stop `run`, at once if the broker is disconnected; `others` keep publishing."""
        self._clear_retained, self._others = clear_retained, others
        self._stopping.set()

    async def publish_event(self, account: str, payload: bytes, expiry: int) -> None:
        """Publish an event once, and return when the broker has acknowledged it.

        The broker keeps it for `expiry` seconds for subscribers that are away. No other message is
        sent meanwhile, so that it is known which event breaks the connection.

        Raises:
            BrokerAwayError: the event was not published.
            BrokerError: the event was not acknowledged.
        """
        async with self._publishing:
            if self._session is None:
                raise BrokerAwayError("the MQTT broker is not connected")
            broker, tasks = self._session
            topic = self._topics.event(account)
            message = Message(topic, payload, retained=False, expiry=expiry)
            publishing = tasks.create_task(self._publish(broker, message))
            try:
                await asyncio.wait([publishing])
            finally:
                publishing.cancel()
        if publishing.cancelled():
            raise BrokerError("connection lost before the acknowledgement")
        publishing.result()

    async def run(self) -> None:
        """Connect and publish, with a back-off after failures, until `stop`."""
        failures = 0
        loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            started = loop.time()
            try:
                await self._connect()
            except* BrokerError as errors:
                failures = 1 if loop.time() - started > _STEADY else failures + 1
                self._stats.connection_errors += 1
                if (problem := str(errors.exceptions[0])) != self._problem:
                    _log.warning("MQTT connection failed", problem=problem)
                self._problem = problem
            finally:
                self._stats.connected, self._session = False, None
            wait = self._backoff.wait(failures, random.random())  # noqa: S311
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._stopping.wait()

    async def _connect(self) -> None:
        """Publish over one connection, until `stop` or a `BrokerError`."""
        last_will = Message(self._topics.availability, OFFLINE, retained=True)
        async with (
            connected(self._exposed.config, last_will, self._timeout) as broker,
            asyncio.TaskGroup() as tasks,
        ):
            self._stats.connected, self._problem, self._published = True, None, None
            _log.info("MQTT connection established")
            receiving = tasks.create_task(self._receive(broker))
            await self._publish_changes(broker, await self._wanted(broker), ONLINE)
            self._session = broker, tasks
            self._on_ready()
            try:
                while True:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._exposed.interval):
                            await self._stopping.wait()
                            break
                    await self._publish_changes(broker, await self._wanted(broker), ONLINE)
            finally:
                self._session = None  # the group takes no more events
            wanted = await self._wanted(broker)
            if self._clear_retained:
                await self._publish_changes(broker, {}, ONLINE)
                await asyncio.sleep(_SETTLE)
                await self._publish_changes(broker, {}, b"")
            else:
                await self._publish_changes(broker, wanted, ONLINE if self._others else OFFLINE)
            receiving.cancel()

    async def _receive(self, broker: Client) -> None:
        try:
            with mapped_errors():
                async for message in broker.messages:
                    topic, payload = message.topic.value, message.payload
                    if topic == self._topics.birth:
                        if payload == ONLINE:
                            self._retained = dict.fromkeys(self._retained, _REPUBLISH)
                    elif topic == self._topics.availability:
                        # May be the last will of a broken connection, also of another exporter.
                        self._retained[topic] = payload
                    elif any(message.topic.matches(each) for each in self._topics.presses):
                        self._press(message)
                    elif message.retain:
                        self._retained.setdefault(topic, payload)
        finally:
            self._session = None

    def _press(self, message: Received) -> None:
        """Press a button, unless the message is retained, late or repeated."""
        topic, now = message.topic.value, time.time()
        try:
            last = self._pressed.get(topic, 0)
            pressed_at = press_time(message.payload, now, last, retained=message.retain)
        except ValueError as error:
            if now >= self._ignored_at + _LOG_INTERVAL:
                self._ignored_at = now
                _log.warning("button press ignored", reason=str(error))
            return
        if self._exposed.press(topic, pressed_at):
            self._pressed[topic] = pressed_at
            _log.info("button pressed", topic=topic)

    async def _wanted(self, broker: Client) -> Mapping[str, bytes]:
        """Return the messages to retain for the accounts that this exporter polls.

        First read the retained messages of the broker, on a new connection and whenever another
        exporter may have published an account.
        """
        wanted = await self._exposed.messages()
        if self._published is None or not wanted.keys() <= set(self._published):
            self._retained = {}
            topics = self._topics
            presses = topics.presses if self._exposed.config.buttons else ()
            watched = topics.availability, topics.birth, *presses, *topics.retained
            with mapped_errors():
                await broker.subscribe([(topic, AT_LEAST_ONCE) for topic in watched])
            await asyncio.sleep(_SETTLE)
            with mapped_errors():  # otherwise the broker would send back every message
                await broker.unsubscribe(list(topics.retained))
        self._published = wanted.keys()
        return wanted

    async def _publish_changes(
        self, broker: Client, wanted: Mapping[str, bytes], availability: bytes
    ) -> None:
        target = {self._topics.availability: availability, **wanted}
        messages = list[Message]()
        for topic, payload in target.items():
            retained = self._retained.get(topic, b"")
            if retained != payload:
                is_device = self._topics.kind(topic) is MqttKind.DEVICE
                if is_device and (removing := removal(retained, payload)):
                    messages.append(Message(topic, removing, retained=True))
                messages.append(Message(topic, payload, retained=True))
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
        async with self._publishing:
            # Record before publishing: messages of other exporters that arrive meanwhile are newer.
            for topic, payload, *_ in messages:
                self._retained[topic] = payload
                if not payload:
                    del self._retained[topic]
                self._failed.pop(topic, None)
                self._failed[topic] = None  # until it is acknowledged
            publishing = (self._publish(broker, message) for message in messages)
            for problem in await asyncio.gather(*publishing, return_exceptions=True):
                if problem:
                    raise problem

    async def _publish(self, broker: Client, message: Message) -> None:
        """Publish a message, and wait until the broker acknowledges it."""
        topic, payload, retained, expiry = message
        numbers = self._stats.messages[self._topics.kind(topic)]
        try:
            with mapped_errors():
                properties = expiring(expiry)
                await broker.publish(topic, payload, AT_LEAST_ONCE, retained, properties)
        except BrokerError:
            self._session = None
            numbers[MqttOutcome.FAILED] += 1
            raise
        numbers[MqttOutcome.PUBLISHED] += 1
        self._failed.pop(topic, None)
