"""The status page in a real Chromium: that of a real exporter, and one with something of all."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest_asyncio
from playwright.async_api import Browser, Page

from exporter.web.status_page import StatusTemplate
from tests.browser import LOOKS, Look, chromium, findings, looking
from tests.e2e.processes import Demo
from tests.waiting import DEADLINE
from tests.web.sample import VIETNAM, sample

# Of the numbers of each table, how many there are.
RIGHT_EDGES = """
    [...document.querySelectorAll('.counts')].map(table => new Set(
        [...table.querySelectorAll('td.number')].map(cell => {
            const range = document.createRange();
            range.selectNodeContents(cell);
            return Math.round(range.getBoundingClientRect().right);
        })
    ).size)
"""
TITLES = {"en": "Voice calls", "vi": "Cuộc gọi thoại"}


@pytest_asyncio.fixture
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as browser:
        yield browser


class Watched:
    """What a page asks for and complains of."""

    def __init__(self, page: Page) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))


async def fits(page: Page) -> bool:
    width = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    return bool(await page.evaluate(width))


async def focused(page: Page) -> tuple[str, str]:
    """Return what has the focus, and how that is shown."""
    text, style = await page.evaluate(
        "(e => [e.textContent, getComputedStyle(e).outlineStyle])(document.activeElement)"
    )
    return str(text), str(style)


async def test_a_real_exporter(tmp_path: Path, browser: Browser) -> None:
    async with Demo(tmp_path) as demo:
        url = await demo.ready()
        await demo.until(
            lambda found: (
                sum(value for (name, _), value in found.items() if name == "esms_calls_total") > 3
            )
        )
        for look in LOOKS:
            async with looking(browser, look) as page:
                watched = Watched(page)
                await page.goto(url, wait_until="load")
                assert await page.inner_text("h1") == TITLES[look.language], look
                assert await page.locator("section.account").count() == 3
                assert await page.locator("svg").count() >= 2
                assert await fits(page), look
                if (look.name == "phone", look.scheme, look.language) in (
                    (True, "dark", "vi"),
                    (False, "light", "en"),
                ):
                    assert await findings(page) == [], look
                assert watched.complaints == [], look
                assert {urlsplit(one).netloc for one in watched.requests} == {urlsplit(url).netloc}
        await by_keyboard(browser, url)
        await by_itself(browser, url)


async def by_keyboard(browser: Browser, url: str) -> None:
    """Go through the whole page: each stop is seen, and leads where it says."""
    async with looking(browser, LOOKS[0]) as page:
        await page.goto(url)
        for stop in (
            "Skip to the accounts", "Tiếng Việt", "Stop refreshing", "main", "hotline", "old-keys",
            "Metrics for Prometheus", "Health", "Readiness",
        ):  # fmt: skip
            await page.keyboard.press("Tab")
            assert await focused(page) == (stop, "solid")
        await page.locator(".skip").focus()
        await page.keyboard.press("Enter")
        assert (await focused(page))[0] == "Accounts"


async def by_itself(browser: Browser, url: str) -> None:
    """Have the page renew itself without a script, in the language that was chosen."""
    context = await browser.new_context(java_script_enabled=False, locale="en")
    try:
        page = await context.new_page()
        await page.goto(url)
        await page.click("text=Tiếng Việt")
        assert await page.inner_text("h1") == TITLES["vi"]
        before = await page.inner_text(".summary .small")
        async with page.expect_navigation(timeout=1_000 * DEADLINE):
            pass
        assert await page.inner_text("h1") == TITLES["vi"]
        assert await page.inner_text(".summary .small") != before
        await page.click("text=Ngừng tự cập nhật")
        assert re.search(r"refresh=off", page.url)
        assert "Không tự cập nhật." in await page.inner_text(".summary .small")
    finally:
        await context.close()


async def test_something_of_everything(browser: Browser) -> None:
    template = StatusTemplate()
    for look in (*LOOKS, Look("tiny", 320, 500, "light", "vi")):
        async with looking(browser, look) as page:
            await page.set_content(template.render(sample(), look.language, {}, VIETNAM))
            assert await findings(page) == [], look
            assert await fits(page), look
            # Numbers below each other end at the same place.
            assert set(await page.evaluate(RIGHT_EDGES)) == {1}, look
            background = await page.evaluate("getComputedStyle(document.body).backgroundColor")
            red = int(str(background).removeprefix("rgb(").partition(",")[0])
            assert (red < 64) is (look.scheme == "dark")
