"""Every command of the documentation is run, as it stands there."""

from __future__ import annotations

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

from exporter.cli import commands
from tests.docs import pages
from tests.docs.pages import ROOT, Command
from tests.docs.scene import Scene
from tests.docs.test_first_alert import TUTORIAL
from tests.docs.test_translation import TRANSLATED

# Commands that a test cannot run, by what they start with, and why.
NOT_RUN = {
    "docker build": "needs a container engine; tests/packaging checks the Dockerfile",
    "docker run": "needs a container engine",
    "make test": "is what runs this",
    "docker compose": "needs a container engine; tests/packaging loads the files",
    "kubectl": "needs a cluster; tests/packaging checks what it is given",
    "helm ": "needs a cluster; tests/packaging checks the chart",
    "esms-exporter canary hotline --config.file=config.yaml --now": "calls somebody",
    "# ": "changes the machine, as root",
    "pg_dump": "needs a ledger on PostgreSQL",
    "pg_restore": "needs a ledger on PostgreSQL",
    "mosquitto_sub": "listens until it is ended",
    "esms-exporter calls --url=https://exporter.example.com": "is no host of ours",
    "esms-exporter notifications retry": "needs a target",
    "esms-exporter notifications drop": "needs a notification that was given up",
}

SHELLS = {"sh", "bash", "shell", "zsh", "shell-session", "terminal", "powershell", "cmd"}
BLOCKS = [block for page in pages.names() for block in pages.blocks(page)]
# The tutorial runs as a whole, in test_first_alert.
SECTIONS = list(
    dict.fromkeys(
        (block.page, block.section)
        for block in BLOCKS
        if block.language == "console" and block.page not in {TUTORIAL, *TRANSLATED.values()}
    )
)


def reason_not_to_run(command: Command) -> str | None:
    return next((why for start, why in NOT_RUN.items() if command.text.startswith(start)), None)


@pytest.mark.parametrize(("page", "section"), SECTIONS)
async def test_commands_work(tmp_path: Path, page: str, section: str) -> None:
    """Run those of a section one after the other, in one folder."""
    async with Scene(tmp_path) as scene:
        for block in pages.blocks(page):
            if block.section != section:
                continue
            scene.show(block)
            for command in pages.commands(block) if block.language == "console" else ():
                if not reason_not_to_run(command):
                    await scene.run(command)
        await scene.end()


async def test_commands_that_fail_are_found(tmp_path: Path) -> None:
    async with Scene(tmp_path) as scene:
        for text, shown in (
            ("esms-exporter check --config.file=missing.yaml", ""),
            ("esms-exporter missing", ""),
            ("esms-exporter --config.file=missing.yaml", ""),
            ("curl localhost:10375/missing", ""),
            ("missing", ""),
            ("echo this", "that"),
            ("echo this and that", "that ..."),
        ):
            with pytest.raises(AssertionError, match=r"page\.md:1: "):
                await scene.run(Command("page.md:1", text, shown))
        await scene.run(Command("page.md:1", "export WHAT=this", ""))
        await scene.run(Command("page.md:2", 'echo "$WHAT" and that', "this ... that"))
        # What still runs does not keep the test from its end.
        await scene.run(Command("page.md:3", "curl localhost:10375/-/healthy", ""))


def test_commands_are_where_they_are_looked_for() -> None:
    for block in BLOCKS:
        assert block.language not in SHELLS, f"{block.place}: write it as `console`, with `$ `"
        if block.language == "":
            assert not re.search(r"^\$ ", block.text, re.MULTILINE), (
                f"{block.place}: say that it is `console`"
            )


def test_every_reason_not_to_run_a_command_is_still_needed() -> None:
    found = [
        command
        for block in BLOCKS
        if block.language == "console"
        for command in pages.commands(block)
    ]
    assert len(found) > len(NOT_RUN)
    for start in NOT_RUN:
        assert any(command.text.startswith(start) for command in found), (
            f"no page has `{start}` any more: take it off NOT_RUN"
        )


@pytest.mark.parametrize("page", pages.names())
def test_commands_within_lines_exist(page: str) -> None:
    """Those of the exporter with these options, of make with these targets, and modules."""
    makefile = (ROOT / "Makefile").read_text()
    for span in pages.code_spans(page):
        match span.split(maxsplit=1):
            case ["esms-exporter", rest] if "[" not in rest:
                arguments = shlex.split(re.split(r"\\?[|>&;)]", rest)[0])
                assert (wrong := usage_error(arguments)) is None, f"{page}: `{span}`: {wrong}"
            case ["make", target] if re.fullmatch(r"[\w-]+", target):
                assert f"\n{target}:" in makefile, f"{page}: the Makefile has no `{target}`"
            case ["python", rest] if rest.startswith("-m "):
                assert find_spec(rest.split()[1]), f"{page}: there is no module `{rest}`"


def usage_error(arguments: list[str]) -> str | None:
    """Return what is wrong with the arguments of a command line, apart from values."""
    try:
        context = commands.make_context("esms-exporter", arguments)
        name, command, rest = commands.resolve_command(
            context, [*context._protected_args, *context.args]
        )
        assert command
        command.make_context(name, rest, parent=context)
    except (click.exceptions.Exit, click.exceptions.BadParameter):
        return None  # `--help`, a place for a value, or options that the line leaves out
    except click.UsageError as error:
        return error.format_message()
    return None


def test_wrong_commands_within_lines_are_found() -> None:
    for good in ("--version", "check --config.file=FILE", "--config.file=x", "schema", "run"):
        assert usage_error(good.split()) is None, good
    for wrong in ("chek", "check --config=FILE", "schema x", "--web.missing"):
        assert usage_error(wrong.split()), wrong
