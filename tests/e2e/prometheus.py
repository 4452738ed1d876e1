"""A real Prometheus for tests."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

import aiohttp

from tests.e2e.processes import Process
from tests.programs import program


class Prometheus(Process):
    """A real Prometheus that scrapes one target every second.

    Args:
        folder: where it works.
        target: what it scrapes.
        scrape: more lines of its scrape configuration.
    """

    def __init__(self, folder: Path, target: str, scrape: str = "") -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        config = folder / "prometheus.yml"
        config.write_text(
            "global: {scrape_interval: 1s, scrape_timeout: 1s}\n"
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
        async with (
            aiohttp.ClientSession() as http,
            http.get(f"http://{self.address}/api/v1/query", params={"query": expression}) as answer,
        ):
            document = await answer.json()
        assert document["status"] == "success", document
        return {
            tuple(value for _, value in sorted(series["metric"].items())): float(series["value"][1])
            for series in document["data"]["result"]
        }

    async def until(
        self, expression: str, holds: Callable[[dict[tuple[str, ...], float]], bool]
    ) -> None:
        async with asyncio.timeout(60):
            while True:
                try:
                    if holds(await self.query(expression)):
                        return
                except aiohttp.ClientConnectionError:
                    assert self.running.returncode is None, self.output
                await asyncio.sleep(0.2)
