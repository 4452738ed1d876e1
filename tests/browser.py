"""A real Chromium, and what it says of a page."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any, Final, Literal, NamedTuple

from playwright.async_api import Browser, Page, async_playwright

from tests.programs import program

_RULES: Final = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice")

Scheme = Literal["light", "dark"]


class Look(NamedTuple):
    """How a page is looked at."""

    name: str
    width: int
    height: int
    scheme: Scheme
    language: str

    def __str__(self) -> str:
        return f"{self.name}-{self.scheme}-{self.language}"


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Run a browser."""
    path = program("chromium", "apt install chromium")
    # Its sandbox cannot be had by root.
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=sandbox)
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def looking(browser: Browser, look: Look) -> AsyncIterator[Page]:
    """Open a page that is looked at like that."""
    context = await browser.new_context(
        viewport={"width": look.width, "height": look.height},
        color_scheme=look.scheme,
        locale=look.language,
    )
    try:
        yield await context.new_page()
    finally:
        await context.close()


async def findings(page: Page) -> list[tuple[Any, ...]]:  # Any: of JSON
    """Return what axe finds: what is wrong, and what it cannot tell, but for signs.

    It does not measure the contrast of characters such as a check mark, in the colour of texts.
    """
    await page.evaluate((files("axe_playwright_python") / "axe.min.js").read_text("utf-8"))
    found = await page.evaluate("rules => axe.run(document, {runOnly: rules})", list(_RULES))
    wrong = [(rule, node) for rule in found["violations"] for node in rule["nodes"]]
    unsure = [
        (rule, node)
        for rule in found["incomplete"]
        for node in rule["nodes"]
        for check in (*node["any"], *node["all"], *node["none"])
        if (check["data"] or {}).get("messageKey") != "nonBmp"
    ]
    return [(rule["id"], node["html"], node["any"]) for rule, node in wrong + unsure]
