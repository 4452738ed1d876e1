"""The connection to an MQTT broker. Imported where one is configured: its library is an extra."""

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
"""Seconds that a broker may take for an answer."""

_GOODBYE_TIMEOUT: Final = 1.0
"""Seconds that it may take to end a connection in good order."""

_KEEPALIVE: Final = 30
"""Seconds of silence after which the broker is asked whether it is there."""

_MAX_RECEIVED: Final = 10_000
"""Messages of the broker that wait to be processed: what it retains for a thousand accounts."""

AT_LEAST_ONCE: Final = 1
_PORT: Final = 1883
_TLS_PORT: Final = 8883


class Message(NamedTuple):
    """A message on a topic; an empty one clears what is retained there."""

    topic: str
    payload: bytes
    retained: bool


@asynccontextmanager
async def connected(
    config: HomeAssistantConfig, last_will: Message, timeout: float = TIMEOUT
) -> AsyncIterator[aiomqtt.Client]:
    """Connect to a broker for as long as the block runs, which uses it within `mapped_errors`.

    Args:
        config: the broker, and how to log in.
        last_will: published by the broker when the connection breaks.
        timeout: seconds that the broker may take for an answer.
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
        yield client
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
def mapped_errors() -> Iterator[None]:
    """Raise `BrokerError` for whatever the library raises."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - the library raises anything, such as struct.error
        raise BrokerError(str(error) or type(error).__name__) from None
