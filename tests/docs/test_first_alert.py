"""Who follows the README or the tutorial sees an alert."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import aiohttp

from tests.docs import pages
from tests.docs.scene import Scene
from tests.programs import every_prometheus, of_prometheus
from tests.waiting import deadline

TUTORIAL = "docs/first-steps.md"
RESULT = re.compile(r'^esms_calls_total{.*,campaign="(\w+)",result="(\w+)",status="(\w+)"} 1\.0$')


async def follow(scene: Scene, page: str, section: str) -> None:
    """Write the files of a section, and run its commands."""
    for block in pages.blocks(page):
        if block.section != section:
            continue
        scene.show(block)
        if block.file:
            # Nothing but the times is other than what the page says: a test has not got them.
            scene.write(block.file, block.text.replace("15s", "1s"))
        for command in pages.commands(block) if block.language == "console" else ():
            await scene.run(command)


@every_prometheus
async def test_the_readme_shows_an_alert(version: str, tmp_path: Path) -> None:
    async with Scene(tmp_path, of_prometheus("prometheus", version)) as scene:
        await follow(scene, "README.md", "Try it")
        await follow(scene, "README.md", "The first alert")
        await until_it_fires(scene, "old-keys")
        await scene.end()


async def test_the_tutorial_shows_what_it_says(tmp_path: Path) -> None:
    sections = list(dict.fromkeys(block.section for block in pages.blocks(TUTORIAL)))
    async with Scene(tmp_path) as scene:
        for section in sections:
            await follow(scene, TUTORIAL, section)
            if section == "5. Add calls":
                await until_the_results_are_there(scene)
            elif section == "6. Cause an alert":
                await until_it_fires(scene, "main")
        await scene.end()


async def until_the_results_are_there(scene: Scene) -> None:
    shown = re.findall(r"^\| (\w+) \| (\w+) \| (\w+) \| 1 \|$", pages.text(TUTORIAL), re.MULTILINE)
    assert len(shown) == 3
    async with deadline(), aiohttp.ClientSession() as http:
        found: list[tuple[str, ...]] = []
        while sorted(found) != sorted(shown):
            await asyncio.sleep(0.5)
            async with http.get(f"http://127.0.0.1:{scene.ports[10375]}/metrics") as answer:
                lines = (await answer.text()).splitlines()
            found = [match.groups() for line in lines if (match := RESULT.match(line))]


async def until_it_fires(scene: Scene, account: str) -> None:
    async with deadline(), aiohttp.ClientSession() as http:
        while not await firing(http, scene.ports[9090], account):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.5)


async def firing(http: aiohttp.ClientSession, port: int, account: str) -> bool:
    """Tell whether the alert that the page promises is there."""
    async with http.get(f"http://127.0.0.1:{port}/api/v1/alerts") as answer:
        alerts = (await answer.json())["data"]["alerts"]
    return any(
        alert["state"] == "firing"
        and alert["labels"]["alertname"] == "EsmsCredentialsRefused"
        and alert["labels"]["account"] == account
        for alert in alerts
    )
