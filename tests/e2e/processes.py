"""Real processes for tests: an exporter, and programs beside it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Self

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from tests import subprocesses
from tests.subprocesses import ESMS_EXPORTER, Child, Forked
from tests.waiting import deadline, until

Series = tuple[str, frozenset[tuple[str, str]]]


class Process:
    """A program whose output goes to a file."""

    def __init__(
        self, command: Sequence[str], output: Path, environ: Mapping[str, str] | None = None
    ) -> None:
        self._command = command
        self._output = output
        self._environ = {**os.environ, **(environ or {})}
        self._process: Child | Forked | None = None

    @property
    def running(self) -> Child | Forked:
        assert self._process is not None
        return self._process

    @property
    def output(self) -> str:
        return self._output.read_text()

    async def start(self) -> None:
        with self._output.open("wb") as file:
            number = file.fileno()
            self._process = subprocesses.spawn(self._command, number, number, environ=self._environ)

    async def wait(self) -> int:
        """Wait for the end; returns the exit code."""
        await until(lambda: self.running.poll() is not None)
        assert self.running.returncode is not None
        return self.running.returncode

    async def says(self, pattern: str) -> re.Match[str]:
        """Wait until the output matches; fail when the program ends before."""
        async with deadline():
            while not (match := re.search(pattern, self.output)):
                assert self.running.poll() is None, self.output
                await asyncio.sleep(0.02)
        return match

    def send(self, number: signal.Signals) -> None:
        self.running.send_signal(number)

    async def stop(self) -> None:
        """End it in good order; what does not end is killed."""
        if self._process and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                await self.wait()
            except TimeoutError:
                await self.kill()

    async def kill(self) -> None:
        if self._process and self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            await self.wait()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


class Exporter(Process):
    """A running exporter on a free port."""

    def __init__(
        self,
        config: Path,
        *options: str,
        environ: Mapping[str, str] | None = None,
        inside: Sequence[str] = (),
    ) -> None:
        super().__init__(
            [
                *inside,  # a program that becomes the exporter
                *(*ESMS_EXPORTER, f"--config.file={config}"),
                *("--web.listen-address=127.0.0.1:0", *options),
            ],
            config.with_suffix(".log"),
            environ,
        )
        self.url = ""
        self._config = config

    async def start(self) -> None:
        # No test asks the real provider, which is where the balance is asked for by default.
        if self._config.exists() and "accounts" in (text := self._config.read_text()):
            assert "balance" in text, f"{self._config}: set `balance`"
        await super().start()
        self.url = ""

    async def listening(self) -> str:
        self.url = (await self.says(r"addresses\W+(https?://[^ \"]+)"))[1]
        return self.url

    async def ready(self) -> str:
        await self.says(r"event\W+ready\b")
        return await self.listening()

    async def scrape(self) -> dict[Series, float]:
        async with aiohttp.ClientSession() as http, http.get(f"{self.url}/metrics") as answer:
            assert answer.status == 200
            return parsed(await answer.text())

    async def until(self, condition: Callable[[dict[Series, float]], bool]) -> dict[Series, float]:
        """Scrape until the metrics fulfil the condition."""
        async with deadline():
            while not condition(found := await self.scrape()):
                assert self.running.poll() is None, self.output
                await asyncio.sleep(0.1)
        return found


class Demo(Exporter):
    """The demo, on a free port, with what it writes in a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "demo.yaml", environ={"TMPDIR": str(folder)})
        self._command = [*ESMS_EXPORTER, "demo", "--web.listen-address=127.0.0.1:0"]


def parsed(text: str) -> dict[Series, float]:
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {_series(series): float(value) for series, _, value in lines}


@cache
def _series(text: str) -> Series:
    """Return the series of a line: parsed once, since tests scrape the same ones all the time."""
    (family,) = text_string_to_metric_families(f"{text} 0\n")
    (sample,) = family.samples
    return sample.name, frozenset(sample.labels.items())


def total(samples: Mapping[Series, float], name: str, **labels: str) -> float:
    """Return the sum of a metric's series that carry these labels."""
    wanted = frozenset(labels.items())
    return sum(v for (found, carried), v in samples.items() if found == name and wanted <= carried)
