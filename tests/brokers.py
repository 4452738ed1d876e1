"""Real MQTT brokers for tests, on loopback, and somebody who listens to them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiomqtt

from tests import subprocesses
from tests.ports import free_port
from tests.programs import program

PASSWORD = "made-up-mqtt-password"


class Mosquitto:
    """A broker that can be stopped and started again.

    Args:
        folder: where its files lie.
        settings: lines of its configuration.
    """

    def __init__(self, folder: Path, *settings: str) -> None:
        self._program = program("mosquitto", "Debian's mosquitto")
        self._file = folder / "mosquitto.conf"
        self.port = free_port()
        lines = settings or ("allow_anonymous true",)
        self._file.write_text("\n".join((f"listener {self.port} 127.0.0.1", *lines, "")))
        self._life = contextlib.ExitStack()
        self._process: subprocesses.Child | None = None

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._process = self._life.enter_context(
            subprocesses.popen(
                *(self._program, "-c", self._file),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )
        end = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                assert self._process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.02)
            else:
                return

    def signal(self, number: int) -> None:
        assert self._process
        self._process.send_signal(number)

    def stop(self) -> None:
        self._life.close()
        self._process = None


@contextlib.contextmanager
def mosquitto(folder: Path, *settings: str) -> Iterator[Mosquitto]:
    broker = Mosquitto(folder, *settings)
    try:
        broker.start()
        yield broker
    finally:
        broker.stop()


class Listener:
    """Everything that a broker says, as Home Assistant would hear it.

    Attributes:
        kept: what the broker keeps, by topic.
        heard: every message as it came, with its topic.
    """

    def __init__(self, client: aiomqtt.Client) -> None:
        self._client = client
        self.kept: dict[str, bytes] = {}
        self.heard: list[tuple[str, bytes]] = []

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
