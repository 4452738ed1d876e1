"""The HTTP API of a real process: its description is true, and client code of pages works."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from exporter.simulator import Simulator
from tests import subprocesses
from tests.docs import pages
from tests.e2e.processes import API, TOKEN, Exporter, configure
from tests.programs import program


@pytest_asyncio.fixture
async def exporter(tmp_path: Path, simulator: Simulator) -> AsyncIterator[Exporter]:
    main = [simulator.provider.accounts["main"]]
    config = configure(tmp_path, simulator, accounts=main, watch={"api": API})
    async with Exporter(config) as exporter:
        await exporter.ready()
        yield exporter


async def test_its_description_is_true(tmp_path: Path, exporter: Exporter) -> None:
    rules = tmp_path / "schemathesis.toml"
    # By default, a 413 is no way to refuse a list that is too long.
    rules.write_text("checks.negative_data_rejection.expected-statuses = [400, 404, 405, 413]\n")
    tester = await subprocesses.start(
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(rules)),
        *("run", f"{exporter.url}/api/v1/openapi.json"),
        *("--checks=all", "--header", f"Authorization: Bearer {TOKEN}"),
        *("--max-examples=25", "--seed=1", "--generation-database=none", "--no-color"),
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await subprocesses.output(tester)
    assert tester.returncode == 0, output[-10_000:]
    assert "Error handling request" not in exporter.output


# The client code of the documentation, run as it stands there.


def example(language: str) -> str:
    (block,) = (
        block.text
        for block in pages.blocks("docs/sources.md")
        if block.language == language and "/api/v1/calls" in block.text
    )
    return block


async def run(exporter: Exporter, *command: str) -> dict[str, int]:
    environ = {"PATH": "/usr/bin:/bin", "TOKEN": TOKEN}
    environ |= {"ESMS_EXPORTER_URL": exporter.url, "ESMS_EXPORTER_TOKEN": TOKEN}
    process = await subprocesses.start(
        *command, env=environ, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await subprocesses.output(process)
    assert process.returncode == 0, errors
    found: dict[str, int] = json.loads(output)
    return found


@pytest.mark.parametrize(
    ("language", "command", "install", "call"),
    [
        (
            *("python", "python3", "Python"),
            "\nprint(json.dumps(watch(['X', 'Y'], campaign='otp')))\n",
        ),
        (
            *("javascript", "node", "Debian's nodejs, 18 or newer"),
            "\nwatch(['X', 'Y'], 'main', {})\n.then(JSON.stringify).then(console.log)",
        ),
        (
            *("php", "php", "Debian's php-cli"),
            "\necho json_encode(watch(['X', 'Y'], 'main', ['campaign' => 'otp']));\n",
        ),
    ],
)
async def test_a_program_hands_calls_over(
    exporter: Exporter, tmp_path: Path, language: str, command: str, install: str, call: str
) -> None:
    interpreter = program(command, install)
    script = tmp_path / "script"
    start = "<?php\n" if language == "php" else ""
    script.write_text(start + example(language) + call)
    assert await run(exporter, interpreter, str(script)) == {"added": 2, "known": 0}
    assert await run(exporter, interpreter, str(script)) == {"added": 0, "known": 2}
