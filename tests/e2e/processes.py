"""Real processes for tests: an exporter, and programs beside it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Self

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from tests import subprocesses
from tests.subprocesses import Forked
from tests.waiting import deadline, until

ESMS_EXPORTER = (sys.executable, "-m", "exporter")
# Coverage would be lost with a process that is killed, and makes it start slowly.
UNMEASURED = {"COVERAGE_PROCESS_START": "", "COVERAGE_PROCESS_CONFIG": ""}

Series = tuple[str, frozenset[tuple[str, str]]]


class Process:
    """A program whose output goes to a file."""

    def __init__(
        self, command: Sequence[str], output: Path, environ: Mapping[str, str] | None = None
    ) -> None:
        self._command = command
        self._output = output
        self._environ = {**os.environ, **(environ or {})}
        self._process: asyncio.subprocess.Process | Forked | None = None

    @property
    def running(self) -> asyncio.subprocess.Process | Forked:
        assert self._process is not None
        return self._process

    @property
    def output(self) -> str:
        return self._output.read_text()

    async def start(self) -> None:
        with self._output.open("wb") as file:
            if self._may_be_forked:
                arguments = self._command[len(ESMS_EXPORTER) :]
                self._process = subprocesses.fork(arguments, file, self._environ)
            else:
                self._process = await subprocesses.start(
                    *self._command,
                    stdout=file,
                    stderr=asyncio.subprocess.STDOUT,
                    env=self._environ,
                )

    @property
    def _may_be_forked(self) -> bool:
        """Whether it is an exporter that is not measured, in an environment that makes no odds.

        What libraries find in it when they are imported does, as `SSL_CERT_FILE`; so does a clock
        that modules hold on to when they are imported.
        """
        changed = {name for name, _ in self._environ.items() - os.environ.items()}
        return (
            tuple(self._command[: len(ESMS_EXPORTER)]) == ESMS_EXPORTER
            and all(name.startswith(("COVERAGE_", "FAULT_", "PYTHONPATH")) for name in changed)
            and "FAULT_CLOCK" not in changed
            and not any(self._environ.get(name) for name in UNMEASURED)
        )

    async def wait(self) -> int:
        """Wait for the end; returns the exit code."""
        await until(lambda: self.running.returncode is not None)
        assert self.running.returncode is not None
        return self.running.returncode

    async def says(self, pattern: str) -> re.Match[str]:
        """Wait until the output matches; fail when the program ends before."""
        async with deadline():
            while not (match := re.search(pattern, self.output)):
                assert self.running.returncode is None, self.output
                await asyncio.sleep(0.02)
        return match

    def send(self, number: signal.Signals) -> None:
        self.running.send_signal(number)

    async def stop(self) -> None:
        """End it in good order; what does not end is killed."""
        if self._process and self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                await self.wait()
            except TimeoutError:
                await self.kill()

    async def kill(self) -> None:
        if self._process and self._process.returncode is None:
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
                assert self.running.returncode is None, self.output
                await asyncio.sleep(0.1)
        return found


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
