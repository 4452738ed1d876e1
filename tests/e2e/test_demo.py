from __future__ import annotations

import json
import signal
from pathlib import Path

import aiohttp
import click
import pytest

from exporter.cli import commands
from exporter.config import json_schema
from tests import subprocesses
from tests.e2e.commands import run
from tests.e2e.processes import Demo, total
from tests.subprocesses import ESMS_EXPORTER


def folders(path: Path) -> list[Path]:
    return list(path.glob("esms-exporter-demo-*"))


async def test_the_demo_is_lively_and_leaves_nothing_behind(tmp_path: Path) -> None:
    async with Demo(tmp_path) as demo:
        url = await demo.ready()
        shown = (await demo.says(r"(?s)esms-exporter demo: .* removes its files\.")).group()
        assert f"{url}/metrics" in shown
        assert len(folders(tmp_path)) == 1
        samples = await demo.until(
            lambda samples: (
                total(samples, "esms_calls_total", result="success") >= 2
                and total(samples, "esms_auth_failures_total", account="old-keys") > 0
            )
        )
        assert {dict(labels).get("campaign") for name, labels in samples if "calls_total" in name}
        async with aiohttp.ClientSession() as http, http.get(f"{url}/") as page:
            assert "old-keys" in await page.text()
        demo.send(signal.SIGINT)
        assert await demo.wait() == 0
    assert folders(tmp_path) == []
    assert "Traceback" not in demo.output
    assert "level=error" not in demo.output


async def test_commands_that_print(tmp_path: Path) -> None:
    for command, expected in (
        ("schema", json.dumps(json_schema(), indent=2, ensure_ascii=False)),
        ("--version", "esms-exporter, version "),
        ("--help", "Usage: esms-exporter"),
    ):
        ended = await run(tmp_path, command)
        assert (ended.code, ended.errors) == (0, "")
        assert ended.output.startswith(expected)


def test_every_command_and_option_says_what_it_does() -> None:
    for command in (commands, *commands.commands.values()):
        assert command.help
        for parameter in command.params:
            if not isinstance(parameter, click.Argument):
                assert getattr(parameter, "help", None), (command.name, parameter.name)


@pytest.mark.parametrize("command", ["schema", "--help"])
def test_output_that_cannot_be_written(command: str) -> None:
    full = ("sh", "-c", 'exec "$@" > /dev/full', "sh")
    done = subprocesses.run(*full, *ESMS_EXPORTER, command)
    problem = "the output cannot be written: No space left on device"
    assert (done.returncode, done.stderr) == (1, f"esms-exporter: {problem}\n")
