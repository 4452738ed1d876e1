"""Real Prometheus servers for tests."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterable
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import aiohttp

from tests.e2e.processes import Process
from tests.ports import free_port
from tests.programs import of_prometheus
from tests.waiting import deadline

KINDS: Final = {
    "2": "",
    "3": "",
    "3 with native histograms": (
        "    scrape_native_histograms: true\n    convert_classic_histograms_to_nhcb: true\n"
    ),
}
"""Kinds of servers, which begin with their major version, and what their scrapes are told."""


class Prometheus(Process):
    """A real Prometheus that scrapes one target every second.

    Args:
        kind: one of `KINDS`.
        folder: where it works.
        target: what it scrapes.
        scrape: more lines of its scrape configuration.
        rules: rule files, evaluated every second.
    """

    def __init__(
        self,
        kind: str,
        folder: Path,
        target: str,
        scrape: str = "",
        rules: Iterable[Path] = (),
    ) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        folder = folder / f"prometheus {kind}"
        folder.mkdir(parents=True)
        config = folder / "prometheus.yml"
        config.write_text(
            "global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}\n"
            f"rule_files: {json.dumps([str(path) for path in rules])}\n"
            f"scrape_configs:\n  - job_name: esms\n{KINDS[kind]}    static_configs:\n"
            f"      - targets: ['{target}']\n{scrape}"
        )
        super().__init__(
            [
                of_prometheus("prometheus", kind[0]),
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address={self.address}",
                "--enable-feature=exemplar-storage",
            ],
            folder / "prometheus.log",
        )

    async def query(self, expression: str) -> dict[tuple[str, ...], float]:
        """Return the value of each series by its labels' values, sorted by the labels' names."""
        data = (await self.ask("query", query=expression))["data"]
        return {
            tuple(value for _, value in sorted(series["metric"].items())): float(series["value"][1])
            for series in data["result"]
        }

    async def rules(self) -> list[dict[str, Any]]:  # Any: as Prometheus' API describes them
        """Return every rule, with its health and last error."""
        groups = (await self.ask("rules"))["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    async def ask(self, path: str, **parameters: str) -> dict[str, Any]:  # Any: as above
        """Return a document, with `data` and perhaps `warnings` and `infos`."""
        async with (
            aiohttp.ClientSession() as http,
            http.get(f"http://{self.address}/api/v1/{path}", params=parameters) as answer,
        ):
            if answer.status == HTTPStatus.SERVICE_UNAVAILABLE:  # it starts
                raise aiohttp.ClientConnectionError
            document: dict[str, Any] = await answer.json()
        assert document["status"] == "success", document
        return document

    async def until(
        self, expression: str, holds: Callable[[dict[tuple[str, ...], float]], bool]
    ) -> None:
        async with deadline():
            while True:
                try:
                    if holds(await self.query(expression)):
                        return
                except aiohttp.ClientConnectionError:
                    assert self.running.poll() is None, self.output
                await asyncio.sleep(0.2)


@contextlib.asynccontextmanager
async def every_kind(
    folder: Path, target: str, scrape: str = "", rules: Iterable[Path] = ()
) -> AsyncIterator[list[Prometheus]]:
    """Run a server of each kind, all of which scrape the same target."""
    async with contextlib.AsyncExitStack() as running:
        yield [
            await running.enter_async_context(Prometheus(kind, folder, target, scrape, rules))
            for kind in KINDS
        ]
