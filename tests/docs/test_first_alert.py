"""Who follows the README sees an alert."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp

from tests.docs import pages
from tests.docs.scene import Scene
from tests.programs import every_prometheus, of_prometheus
from tests.waiting import deadline


@every_prometheus
async def test_the_first_alert_comes_in_five_minutes(version: str, tmp_path: Path) -> None:
    sections = ("Try it", "The first alert in five minutes")
    async with Scene(tmp_path, of_prometheus("prometheus", version)) as scene:
        for block in pages.blocks("README.md"):
            if block.section not in sections:
                continue
            scene.show(block)
            if block.file:
                # Nothing but the times is other than what the page says: a test has not got them.
                scene.write(block.file, block.text.replace("15s", "1s"))
            for command in pages.commands(block) if block.language == "console" else ():
                await scene.run(command)
        async with deadline(), aiohttp.ClientSession() as http:
            while not await firing(http, scene.ports[9090]):  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.5)
        await scene.end()


async def firing(http: aiohttp.ClientSession, port: int) -> bool:
    """Tell whether the alert that the page promises is there."""
    async with http.get(f"http://127.0.0.1:{port}/api/v1/alerts") as answer:
        alerts = (await answer.json())["data"]["alerts"]
    return any(
        alert["state"] == "firing"
        and alert["labels"]["alertname"] == "EsmsCredentialsRefused"
        and alert["labels"]["account"] == "old-keys"
        for alert in alerts
    )
