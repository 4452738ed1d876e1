"""Real MQTT brokers for tests, on loopback, and somebody who listens to them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiomqtt

from tests.databases import Service
from tests.ports import free_port
from tests.programs import program

PASSWORD = "made-up-mqtt-password"


class Mosquitto(Service):
    """A broker that can be stopped and started again.

    Args:
        folder: where its files lie.
        settings: lines of its configuration.
    """

    def __init__(self, folder: Path, *settings: str) -> None:
        self.port = free_port()
        self.url = f"mqtt://127.0.0.1:{self.port}"
        file = folder / "mosquitto.conf"
        lines = settings or ("allow_anonymous true",)
        file.write_text("\n".join((f"listener {self.port} 127.0.0.1", *lines, "")))

        def answers() -> None:
            socket.create_connection(("127.0.0.1", self.port), 1).close()

        command = [program("mosquitto", "Debian's mosquitto"), "-c", str(file)]
        super().__init__(command, answers, end=signal.SIGKILL)


class Listener:
    """Everything that a broker says, as Home Assistant would hear it.

    Attributes:
        kept: what the broker keeps, by topic.
        heard: every message as it came, with its topic.
        expiry: seconds after which the last message of a topic expires, with MQTT 5.
    """

    def __init__(self, client: aiomqtt.Client) -> None:
        self._client = client
        self.kept: dict[str, bytes] = {}
        self.heard: list[tuple[str, bytes]] = []
        self.expiry: dict[str, int] = {}

    def json(self, topic: str) -> Any:  # Any: JSON
        return json.loads(self.kept.get(topic, b"null"))

    def said(self, topic: str) -> list[Any]:  # Any: JSON
        return [json.loads(payload) for name, payload in self.heard if name == topic]

    async def say(self, topic: str, payload: str, *, retain: bool = False) -> None:
        await self._client.publish(topic, payload, 1, retain)

    async def listen(self) -> None:
        await self._client.subscribe("#", 1)
        async for message in self._client.messages:
            topic = message.topic.value
            self.heard.append((topic, message.payload))
            if expiry := getattr(message.properties, "MessageExpiryInterval", None):
                self.expiry[topic] = expiry
            if message.payload:
                self.kept[topic] = message.payload
            else:
                self.kept.pop(topic, None)


@contextlib.asynccontextmanager
async def listening(port: int, **options: Any) -> AsyncIterator[Listener]:  # Any: of the client
    async with aiomqtt.Client("127.0.0.1", port, **options) as client:
        listener = Listener(client)
        task = asyncio.create_task(listener.listen())
        try:
            yield listener
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
