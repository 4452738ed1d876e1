"""Commands of the documentation while they run."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from contextlib import suppress
from dataclasses import dataclass

from tests.waiting import deadline, until

TIMEOUT = 120.0


@dataclass(frozen=True, slots=True)
class Lasting:
    """A kind of command that runs until it is ended.

    Attributes:
        command: what it starts with.
        up: what its output says once it is there.
        port: where the pages say that it listens.
    """

    command: re.Pattern[str]
    up: str
    port: int


EXPORTER = Lasting(
    re.compile(r"make run$|(esms-exporter|python3? -m exporter) (run|demo|--config)"),
    r"event=ready",
    10375,
)
LASTING = (
    EXPORTER,
    Lasting(re.compile(r"esms-exporter simulate"), r"listening on", 10376),
    Lasting(re.compile(r"prometheus --config"), r"ready to receive web requests", 9090),
)


class Running:
    """A process and what it has said."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._said = bytearray()
        self._reading = asyncio.create_task(self._read())

    @property
    def output(self) -> str:
        return self._said.decode(errors="replace")

    async def _read(self) -> None:
        assert self._process.stdout
        while chunk := await self._process.stdout.read(1 << 16):
            self._said += chunk

    async def says(self, pattern: str) -> bool:
        """Wait until the output matches; return whether it does before the process ends."""
        await until(lambda: self._reading.done() or bool(self._found(pattern)))
        return bool(self._found(pattern))

    def _found(self, pattern: str) -> re.Match[str] | None:
        return re.search(pattern, self.output)

    async def ended(self) -> int:
        """Return the exit code; what does not end is killed."""
        async with deadline():
            try:
                await asyncio.shield(self._reading)
                return await self._process.wait()
            except asyncio.CancelledError:
                await self.kill()
                raise

    async def interrupt(self) -> int:
        """Press Ctrl-C, which reaches the whole group."""
        os.killpg(self._process.pid, signal.SIGINT)
        return await self.ended()

    async def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._reading
        await self._process.wait()
