"""Real processes for tests: an exporter, and programs beside it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Self

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from exporter.simulator import Account, Simulator
from tests import subprocesses
from tests.subprocesses import ESMS_EXPORTER, Child, Forked
from tests.waiting import deadline, until

TOKEN = "made-up-token"
API = {"tokens": [{"name": "program", "token": TOKEN}]}  # of `watch`

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
        return self._output.read_text() if self._output.exists() else ""

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


def configure(
    folder: Path,
    provider: Simulator | str,
    calls: Iterable[str | Mapping[str, object]] = (),
    *,
    accounts: Iterable[Account | Mapping[str, object]] | None = None,
    account: Mapping[str, object] | None = None,
    watch: Mapping[str, object] | None = None,
    file: str = "config.yaml",
    **sections: object,
) -> Path:
    """Write a configuration: a ledger in the folder, the label `campaign`, and no balances.

    Args:
        folder: where the file lies.
        provider: the stand-in, or the `base_url` of accounts.
        calls: as in `watch.calls`.
        accounts: all of the stand-in by default, or `main`; or their sections.
        account: more keys of each account; None leaves one out.
        watch: more keys of `watch`.
        file: its name.
        sections: of the file; in place of what is there by default.
    """
    url = provider if isinstance(provider, str) else provider.url
    if accounts is None:
        known = () if isinstance(provider, str) else provider.provider.accounts.values()
        accounts = known or (Account("main", "key-main", "s"),)
    keys = {"base_url": url, "message_url": url, **(account or {})}
    document = {
        "accounts": [_section(it, keys) if isinstance(it, Account) else it for it in accounts],
        "balance": {"interval": 0},
        "polling": {"interval": "200ms", "max_interval": "200ms"},
        "ledger": {"url": f"sqlite:///{folder}/ledger.db"},
        "watch": {"labels": ["campaign"], "calls": list(calls), **(watch or {})},
        **sections,
    }
    new = folder / f".{file}.new"
    new.write_text(json.dumps(document, indent=1))
    return new.replace(folder / file)


def _section(account: Account, more: Mapping[str, object]) -> dict[str, object]:
    own = {"name": account.name, "api_key": account.api_key, "secret_key": account.secret_key}
    return {key: value for key, value in {**own, **more}.items() if value is not None}


def listed(name: str, account: str = "main", **labels: str) -> dict[str, object]:
    """Return a call as a configuration and a request of the HTTP API name it."""
    return {"reference_id": name, "account": account, "labels": labels}


async def push(exporter: Exporter, calls: Iterable[Mapping[str, object]]) -> None:
    """Add calls through the HTTP API."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.post(f"{exporter.url}/api/v1/calls", json={"calls": list(calls)}) as answer,
    ):
        assert answer.status == 202, await answer.text()


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
