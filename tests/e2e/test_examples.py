"""The client code of the documentation, run as it stands there."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from exporter.simulator import Account, Simulator
from tests import subprocesses
from tests.e2e.processes import Exporter
from tests.programs import program

PAGE = (Path(__file__).parents[2] / "docs/sources.md").read_text()
TOKEN = "made-up-token"


def example(language: str) -> str:
    blocks = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (block,) = [block for block in blocks if "/api/v1/calls" in block]
    return str(block)


@pytest_asyncio.fixture
async def exporter(tmp_path: Path) -> AsyncIterator[Exporter]:
    async with Simulator(accounts=[Account("main", "k", "s")]) as simulator:
        config = tmp_path / "config.yaml"
        config.write_text(
            f"accounts: [{{name: main, api_key: k, secret_key: s, base_url: '{simulator.url}'}}]\n"
            "balance: {interval: 0}\n"
            f"ledger: {{url: 'sqlite:///{tmp_path}/ledger.db'}}\n"
            "watch: {labels: [campaign], api: {tokens: [{name: docs, token: "
            f"{TOKEN}}}]}}}}\n"
        )
        async with Exporter(config) as exporter:
            await exporter.ready()
            yield exporter


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


CALLS = {
    "python": "\nprint(json.dumps(watch(['X', 'Y'], campaign='otp')))\n",
    "javascript": "\nwatch(['X', 'Y'], 'main', {campaign: 'otp'})"
    ".then((answer) => console.log(JSON.stringify(answer)));\n",
    "php": "\necho json_encode(watch(['X', 'Y'], 'main', ['campaign' => 'otp']));\n",
}


@pytest.mark.parametrize(
    ("language", "command", "install"),
    [
        ("python", "python3", "Python"),
        ("javascript", "node", "Debian's nodejs, 18 or newer"),
        ("php", "php", "Debian's php-cli"),
    ],
)
async def test_a_program_hands_calls_over(
    exporter: Exporter, tmp_path: Path, language: str, command: str, install: str
) -> None:
    interpreter = program(command, install)
    script = tmp_path / "script"
    start = "<?php\n" if language == "php" else ""
    script.write_text(start + example(language) + CALLS[language])
    assert await run(exporter, interpreter, str(script)) == {"added": 2, "known": 0}
    assert await run(exporter, interpreter, str(script)) == {"added": 0, "known": 2}


async def test_by_hand(exporter: Exporter) -> None:
    program("curl", "Debian's curl")
    command, answer = example("console").removeprefix("$ ").rsplit("\n{", 1)
    command = command.replace("localhost:10375", exporter.url)
    assert await run(exporter, "sh", "-c", command) == json.loads("{" + answer)
