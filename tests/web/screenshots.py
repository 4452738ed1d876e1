"""Draws the pictures of the documentation: `make screenshots`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from exporter.web.status_page import StatusTemplate
from tests.browser import Look, chromium, looking
from tests.web.sample import VIETNAM, sample

FOLDER: Final = Path(__file__).parents[2] / "docs" / "images"
PICTURES: Final = (
    Look("desktop", 1120, 940, "light", "en"),
    Look("desktop", 1120, 940, "light", "vi"),
    Look("phone", 390, 844, "dark", "en"),
    Look("phone", 390, 844, "dark", "vi"),
)


async def draw(folder: Path) -> None:
    template = StatusTemplate()
    async with chromium() as browser:
        for look in PICTURES:
            async with looking(browser, look) as page:
                await page.set_content(template.render(sample(), look.language, {}, VIETNAM))
                await page.screenshot(path=folder / f"status-{look}.png")


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    asyncio.run(draw(FOLDER))
