"""A real Prometheus for tests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp

from tests.e2e.processes import Process
from tests.ports import free_port
from tests.programs import program
from tests.waiting import deadline


class Prometheus(Process):
    """A real Prometheus that scrapes one target every second.

    Args:
        folder: where it works.
        target: what it scrapes.
        scrape: more lines of its scrape configuration.
        rules: rule files, evaluated every second.
    """

    def __init__(
        self, folder: Path, target: str, scrape: str = "", rules: Iterable[Path] = ()
    ) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        config = folder / "prometheus.yml"
        config.write_text(
            "global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}\n"
            f"rule_files: {json.dumps([str(path) for path in rules])}\n"
            "scrape_configs:\n  - job_name: esms\n    static_configs:\n"
            f"      - targets: ['{target}']\n{scrape}"
        )
        super().__init__(
            [
                program("prometheus", "apt-get install prometheus"),
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address={self.address}",
            ],
            folder / "prometheus.log",
        )

    async def query(self, expression: str) -> dict[tuple[str, ...], float]:
        """Return the value of each series by its labels' values, sorted by the labels' names."""
        data = await self._ask("query", query=expression)
        return {
            tuple(value for _, value in sorted(series["metric"].items())): float(series["value"][1])
            for series in data["result"]
        }

    async def rules(self) -> list[dict[str, Any]]:  # Any: as Prometheus' API describes them
        """Return every rule, with its health and last error."""
        return [rule for group in (await self._ask("rules"))["groups"] for rule in group["rules"]]

    async def _ask(self, path: str, **parameters: str) -> dict[str, Any]:
        async with (
            aiohttp.ClientSession() as http,
            http.get(f"http://{self.address}/api/v1/{path}", params=parameters) as answer,
        ):
            if answer.status == HTTPStatus.SERVICE_UNAVAILABLE:  # it starts
                raise aiohttp.ClientConnectionError
            document = await answer.json()
        assert document["status"] == "success", document
        data: dict[str, Any] = document["data"]
        return data

    async def until(
        self, expression: str, holds: Callable[[dict[tuple[str, ...], float]], bool]
    ) -> None:
        async with deadline():
            while True:
                try:
                    if holds(await self.query(expression)):
                        return
                except aiohttp.ClientConnectionError:
                    assert self.running.returncode is None, self.output
                await asyncio.sleep(0.2)
