"""The connection to an MQTT broker. Imported where one is configured: its library is an extra."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import aiomqtt

from exporter.config import HomeAssistantConfig
from exporter.errors import BrokerError

TIMEOUT: Final = 10.0
"""Seconds that a broker may take for an answer."""

_GOODBYE_TIMEOUT: Final = 1.0
"""Seconds that it may take to end a connection in good order."""

_KEEPALIVE: Final = 30
"""Seconds of silence after which the broker is asked whether it is there."""

BATCH_SIZE: Final = 10
"""Messages that may be sent before the broker has acknowledged the first of them."""

_MAX_RECEIVED: Final = 10_000
"""Messages of the broker that wait to be processed: what it retains for a thousand accounts."""

_AT_LEAST_ONCE: Final = 1
_PORT: Final = 1883
_TLS_PORT: Final = 8883


class Message(NamedTuple):
    """A message on a topic; an empty one clears what is retained there.

    Attributes:
        retained: the broker is to keep it; or has kept it, where it comes from there.
    """

    topic: str
    payload: bytes
    retained: bool


class Broker:
    """A broker that is connected."""

    def __init__(self, client: aiomqtt.Client) -> None:
        self._client = client

    async def subscribe(self, *topics: str) -> None:
        """Receive what is published on topics, in `messages`.

        Raises:
            BrokerError: the connection broke, or the broker did not answer in time.
        """
        with _mapped_errors():
            await self._client.subscribe([(topic, _AT_LEAST_ONCE) for topic in topics])

    async def unsubscribe(self, *topics: str) -> None:
        """Receive no more of what is published on topics.

        Raises:
            BrokerError: as above.
        """
        with _mapped_errors():
            await self._client.unsubscribe(list(topics))

    async def messages(self) -> AsyncIterator[Message]:
        """Yield what is received.

        Raises:
            BrokerError: the connection broke.
        """
        with _mapped_errors():
            async for message in self._client.messages:
                yield Message(message.topic.value, message.payload, message.retain)

    async def publish(self, messages: Sequence[Message]) -> list[BrokerError | None]:
        """Publish up to `BATCH_SIZE` messages, in this order.

        Returns:
            Why the broker is not known to have each of them; None where it has.
        """
        return await asyncio.gather(*map(self._publish, messages))

    async def _publish(self, message: Message) -> BrokerError | None:
        topic, payload, retained = message
        try:
            with _mapped_errors():
                await self._client.publish(topic, payload, _AT_LEAST_ONCE, retained)
        except BrokerError as error:
            return error
        return None


@asynccontextmanager
async def connected(
    config: HomeAssistantConfig, last_will: Message, timeout: float = TIMEOUT
) -> AsyncIterator[Broker]:
    """Connect to a broker for as long as the block runs.

    Args:
        config: the broker, and how to log in.
        last_will: published by the broker when the connection breaks.
        timeout: seconds that the broker may take for an answer.

    Raises:
        BrokerError: it cannot be connected.
    """
    url = urlsplit(config.url)
    with _mapped_errors():
        tls = await asyncio.to_thread(_context, config) if url.scheme == "mqtts" else None
        client = aiomqtt.Client(
            url.hostname or "",
            url.port or (_TLS_PORT if tls else _PORT),
            username=config.username,
            password=config.password.reveal() if config.password else None,
            will=aiomqtt.Will(*last_will[:2], _AT_LEAST_ONCE, last_will.retained),
            timeout=timeout,
            keepalive=_KEEPALIVE,
            max_queued_incoming_messages=_MAX_RECEIVED,
            tls_context=tls,
        )
        # A cancellation in the middle would leave an open connection behind.
        connecting = asyncio.ensure_future(client.__aenter__())
        try:
            await asyncio.shield(connecting)
        except asyncio.CancelledError:
            connecting.add_done_callback(lambda _: _cut(client))
            raise
        except Exception:
            # The library leaves a peer that does not answer connected.
            _cut(client)
            raise
    try:
        yield Broker(client)
        with suppress(Exception):  # it has ended already, or the broker takes nothing any more
            async with asyncio.timeout(_GOODBYE_TIMEOUT):
                await client.__aexit__(None, None, None)
    finally:
        # Without a goodbye if the block failed: the broker publishes the last will. And where the
        # library could not read what came, it would be woken for it for ever.
        _cut(client)


def _cut(client: aiomqtt.Client) -> None:
    client._client._sock_close()  # noqa: SLF001


def _context(config: HomeAssistantConfig) -> ssl.SSLContext:
    # As the configuration was last loaded with success, whatever has happened to the file since.
    if config.authorities:
        return config.authorities.context
    return ssl.create_default_context(cafile=config.ca_file)


@contextmanager
def _mapped_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 - the library raises anything, such as struct.error
        raise BrokerError(str(error) or type(error).__name__) from None
