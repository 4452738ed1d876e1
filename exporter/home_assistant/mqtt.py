"""Connection to an MQTT broker. Its library is optional: import this module only if needed."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import aiomqtt

from exporter.config import HomeAssistantConfig
from exporter.errors import BrokerError

TIMEOUT: Final = 10.0
"""Seconds to wait for a response of the broker."""

_GOODBYE_TIMEOUT: Final = 1.0
"""Seconds for a clean disconnect."""

_KEEPALIVE: Final = 30
"""MQTT keep-alive interval in seconds."""

_MAX_RECEIVED: Final = 10_000
"""Limit of unprocessed messages; enough for the retained messages of a thousand accounts."""

AT_LEAST_ONCE: Final = 1
_PORT: Final = 1883
_TLS_PORT: Final = 8883


class Message(NamedTuple):
    """An MQTT message; an empty payload clears the retained message of the topic."""

    topic: str
    payload: bytes
    retained: bool


@asynccontextmanager
async def connected(
    config: HomeAssistantConfig, last_will: Message, timeout: float = TIMEOUT
) -> AsyncIterator[aiomqtt.Client]:
    """Connect to a broker for the duration of the block, which has to use `mapped_errors`.

    Args:
        config: the broker and its credentials.
        last_will: message that the broker publishes when the connection breaks.
        timeout: seconds to wait for a response of the broker.
    """
    url = urlsplit(config.url)
    with mapped_errors():
        tls = await asyncio.to_thread(_context, config) if url.scheme == "mqtts" else None
        client = aiomqtt.Client(
            url.hostname or "",
            url.port or (_TLS_PORT if tls else _PORT),
            username=config.username,
            password=config.password.reveal() if config.password else None,
            will=aiomqtt.Will(*last_will[:2], AT_LEAST_ONCE, last_will.retained),
            timeout=timeout,
            keepalive=_KEEPALIVE,
            max_queued_incoming_messages=_MAX_RECEIVED,
            tls_context=tls,
        )
        # A cancelled connection attempt would leave an open socket behind.
        connecting = asyncio.ensure_future(client.__aenter__())
        try:
            await asyncio.shield(connecting)
        except asyncio.CancelledError:
            connecting.add_done_callback(lambda _: _cut(client))
            raise
        except Exception:
            # On a time-out, the library leaves the socket open.
            _cut(client)
            raise
    try:
        yield client
        with suppress(Exception):  # the connection may be broken
            async with asyncio.timeout(_GOODBYE_TIMEOUT):
                await client.__aexit__(None, None, None)
    finally:
        # After a failed block, close without DISCONNECT: the broker publishes the last will.
        # Always close: the library may leave a readable socket in the event loop.
        _cut(client)


def _cut(client: aiomqtt.Client) -> None:
    client._client._sock_close()  # noqa: SLF001


def _context(config: HomeAssistantConfig) -> ssl.SSLContext:
    # The certificates that were loaded with the configuration: the file may have changed since.
    if config.authorities:
        return config.authorities.context
    return ssl.create_default_context(cafile=config.ca_file)


@contextmanager
def mapped_errors() -> Iterator[None]:
    """Map all exceptions of the library to `BrokerError`."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - the library raises anything, such as struct.error
        raise BrokerError(str(error) or type(error).__name__) from None
