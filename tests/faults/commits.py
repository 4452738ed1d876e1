"""Killed at every commit: the process ends just before and just after each of its first ones."""

from __future__ import annotations

import signal
from typing import Final

from tests.faults.scene import Scene

ACCOUNT: Final = "main"
BOUNDARIES: Final = 14
"""Commits of one life that are died at: some eight at the start, and then groups of verdicts."""


async def killed_at_every_commit(scene: Scene) -> None:
    wanted = scene.folder / "commits"
    await scene.exporter.kill()
    for number in range(1, BOUNDARIES + 1):
        for when in ("before", "after"):
            wanted.write_text(f"{number} {when}")
            await scene.exporter.start()
            assert await scene.exporter.wait() == -signal.SIGKILL, scene.exporter.output
    wanted.write_text("0 never")
    await scene.start()
    scene.settle()
