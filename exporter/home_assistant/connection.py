"""The connection to an MQTT broker."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urlsplit

from exporter.config import HomeAssistantConfig
from exporter.errors import BrokerError

if TYPE_CHECKING:
    from aiomqtt import Client, ProtocolVersion
    from paho.mqtt.properties import Properties

AT_LEAST_ONCE: Final = 1

_PORT: Final = 1883
_TLS_PORT: Final = 8883

_DISCONNECT_TIMEOUT: Final = 1.0
"""Seconds for a clean disconnect."""

_KEEPALIVE: Final = 30
"""MQTT keep-alive interval in seconds."""

_MAX_RECEIVED: Final = 10_000
"""Limit of unprocessed messages; enough for the retained messages of a thousand accounts."""

_UNSUPPORTED_VERSION: Final = 132
"""Reason code of a broker that does not speak MQTT 5."""


class Message(NamedTuple):
    """An MQTT message; an empty payload clears the retained message of the topic.

    `expiry` is the number of seconds for which the broker keeps it for disconnected subscribers.
    """

    topic: str
    payload: bytes
    retained: bool
    expiry: int | None = None


@asynccontextmanager
async def connected(
    config: HomeAssistantConfig, last_will: Message, timeout: float
) -> AsyncIterator[Client]:
    """Connect to a broker for the duration of the block, which has to use `mapped_errors`.

    Speak MQTT 5, or 3.1.1 to a broker that refuses 5. `timeout` is for each of its responses.
    """
    import aiomqtt  # noqa: PLC0415 - optional

    with mapped_errors():
        tls = await asyncio.to_thread(config.tls) if config.url.startswith("mqtts:") else None
        opening = partial(_open, config, last_will, timeout, tls)
        try:
            client = await opening(aiomqtt.ProtocolVersion.V5)
        except aiomqtt.MqttCodeError as error:
            if error.rc != _UNSUPPORTED_VERSION:
                raise
            client = await opening(aiomqtt.ProtocolVersion.V311)
    try:
        yield client
        with suppress(Exception):  # the connection may be broken
            async with asyncio.timeout(_DISCONNECT_TIMEOUT):
                await client.__aexit__(None, None, None)
    finally:
        # After a failed block, close without DISCONNECT: the broker publishes the last will.
        # Always close: the library may leave a readable socket in the event loop.
        _cut(client)


def _cut(client: Client) -> None:
    client._client._sock_close()  # noqa: SLF001


async def _open(
    config: HomeAssistantConfig,
    last_will: Message,
    timeout: float,
    tls: ssl.SSLContext | None,
    protocol: ProtocolVersion,
) -> Client:
    import aiomqtt  # noqa: PLC0415 - optional

    url = urlsplit(config.url)
    client = aiomqtt.Client(
        url.hostname or "",
        url.port or (_TLS_PORT if tls else _PORT),
        username=config.username,
        password=config.password.reveal() if config.password else None,
        protocol=protocol,
        will=aiomqtt.Will(*last_will[:2], AT_LEAST_ONCE, last_will.retained),
        timeout=timeout,
        keepalive=_KEEPALIVE,
        max_queued_incoming_messages=_MAX_RECEIVED,
        tls_context=tls,
    )
    # A cancelled connection attempt would leave an open socket behind.
    connecting = asyncio.ensure_future(client.__aenter__())
    try:
        return await asyncio.shield(connecting)
    except asyncio.CancelledError:
        connecting.add_done_callback(lambda _: _cut(client))
        raise
    except Exception:
        # On a timeout, the library leaves the socket open.
        _cut(client)
        raise


def expiring(seconds: int | None) -> Properties | None:
    """Return the properties of a message that expires, if it does; MQTT 3.1.1 ignores them."""
    if seconds is None:
        return None
    from paho.mqtt.packettypes import PacketTypes  # noqa: PLC0415 - optional
    from paho.mqtt.properties import Properties  # noqa: PLC0415 - optional

    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.MessageExpiryInterval = seconds
    return properties


@contextmanager
def mapped_errors() -> Iterator[None]:
    """Map all exceptions of the library to `BrokerError`."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - the library raises anything, such as struct.error
        raise BrokerError(str(error) or type(error).__name__) from None
