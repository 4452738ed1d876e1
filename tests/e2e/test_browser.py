"""The status page in a real Chromium: that of a real exporter, and one with something of all."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from playwright.async_api import Browser, Page

from exporter.web.status_page import StatusTemplate
from tests.browser import Look, chromium, findings, looking
from tests.e2e.processes import Demo, total
from tests.waiting import DEADLINE
from tests.web.bench import Bench
from tests.web.sample import VIETNAM, sample, sample_call

# Each width with each scheme and language, each scheme with each language.
PHONE, *OTHERS = (
    Look("phone", 360, 780, "dark", "en"),
    Look("phone", 360, 780, "light", "vi"),
    Look("desktop", 1280, 900, "light", "en"),
    Look("desktop", 1280, 900, "dark", "vi"),
)
# Of the numbers of each table, how many right edges there are.
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
SUMMARY = ".summary .small"


async def fits(page: Page) -> bool:
    width = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    return bool(await page.evaluate(width))


def watched(page: Page) -> tuple[list[str], list[str]]:
    """Return what a page will ask for and complain of."""
    requests, complaints = list[str](), list[str]()
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    return requests, complaints


async def focused(page: Page) -> tuple[str, str]:
    """Return what has the focus, and how that is shown."""
    text, style = await page.evaluate(
        "(e => [e.textContent, getComputedStyle(e).outlineStyle])(document.activeElement)"
    )
    return str(text), str(style)


async def test_a_real_exporter(tmp_path: Path) -> None:
    async with chromium() as browser, Demo(tmp_path) as demo:
        url = await demo.ready()
        await demo.until(lambda found: total(found, "esms_calls_total") > 3)
        for look in (PHONE, OTHERS[-1]):
            async with looking(browser, look) as page:
                requests, complaints = watched(page)
                await page.goto(url, wait_until="load")
                assert await page.inner_text("h1") == TITLES[look.language], look
                assert await page.locator("section.account").count() == 3
                assert await page.locator("svg").count() >= 2
                assert await fits(page), look
                assert await findings(page) == [], look
                assert complaints == [], look
                assert {urlsplit(one).netloc for one in requests} == {urlsplit(url).netloc}
        await by_keyboard(browser, url)
        await by_itself(browser, url)


async def by_keyboard(browser: Browser, url: str) -> None:
    """Go through the whole page: each stop is seen, and leads where it says."""
    async with looking(browser, PHONE) as page:
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
        before = await page.inner_text(SUMMARY)
        async with page.expect_navigation(timeout=1_000 * DEADLINE):
            pass
        assert await page.inner_text("h1") == TITLES["vi"]
        assert await page.inner_text(SUMMARY) != before
        await page.click("text=Ngừng tự cập nhật")
        assert "refresh=off" in page.url
        assert "Không tự cập nhật." in await page.inner_text(SUMMARY)
    finally:
        await context.close()


async def test_a_call_is_found_without_javascript(tmp_path: Path) -> None:
    async with chromium() as browser, Bench(tmp_path) as bench:
        await bench.start()
        await bench.push("Ab-1", account="b")
        context = await browser.new_context(
            java_script_enabled=False, extra_http_headers={"Authorization": "Bearer token-all"}
        )
        try:
            page = await context.new_page()
            await page.goto(f"{bench.url}/?lang=vi")
            # No refresh empties the box.
            await page.click("text=Tìm cuộc gọi")
            assert "refresh=off" in page.url
            await page.get_by_role("combobox", name="Tài khoản").select_option("b")
            await page.get_by_role("textbox", name="ReferenceId").fill(" AB1 ")
            await page.keyboard.press("Enter")
            await page.wait_for_url("**/calls/b/AB1?lang=vi")
            assert await page.inner_text("h1") == "Cuộc gọi Ab-1"
            await page.click("text=Trang trạng thái")
            assert await page.inner_text("h1") == TITLES["vi"]
        finally:
            await context.close()


async def test_something_of_everything() -> None:
    template = StatusTemplate()
    async with chromium() as browser:
        for look in (PHONE, *OTHERS, Look("tiny", 320, 500, "light", "vi")):
            async with looking(browser, look) as page:
                await page.set_content(template.render(sample(), look.language, {}, VIETNAM))
                assert await findings(page) == [], look
                assert await fits(page), look
                # Numbers below each other end at the same place.
                assert set(await page.evaluate(RIGHT_EDGES)) == {1}, look
                background = await page.evaluate("getComputedStyle(document.body).backgroundColor")
                red = int(str(background).removeprefix("rgb(").partition(",")[0])
                assert (red < 64) is (look.scheme == "dark")
                await page.set_content(template.render(sample_call(), look.language, {}, VIETNAM))
                assert await findings(page) == [], look
                assert await fits(page), look
