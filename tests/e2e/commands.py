"""Commands that are run to their end."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tests import subprocesses

PYTHONPATH = os.pathsep.join(sys.path)
ESMS_EXPORTER = (sys.executable, "-m", "exporter")


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    output: str
    errors: str


async def start(
    folder: Path, *arguments: str, environ: Mapping[str, str] | None = None
) -> asyncio.subprocess.Process:
    """Start `esms-exporter` in a folder."""
    return await subprocesses.start(
        *(*ESMS_EXPORTER, *arguments),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": PYTHONPATH, **(environ or {})},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def end(
    process: asyncio.subprocess.Process,
) -> Ended:
    """Wait until it ends."""
    output, errors = await subprocesses.output(process)
    assert process.returncode is not None
    assert "Traceback" not in errors
    return Ended(process.returncode, output, errors)


async def run(folder: Path, *arguments: str, environ: Mapping[str, str] | None = None) -> Ended:
    """Run `esms-exporter` in a folder."""
    return await end(await start(folder, *arguments, environ=environ))
