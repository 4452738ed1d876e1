"""Completion, in the shells that are there."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from exporter.cli import commands
from tests import subprocesses
from tests.programs import program
from tests.waiting import until

# How a shell is started, and what is typed first.
SHELLS = {
    "bash": (
        "bash --norc --noprofile -i",
        'source <(esms-exporter completion bash)\nPS1="> "',
    ),
    "zsh": (
        "zsh -f -i",
        (
            "autoload -Uz compinit; compinit -u -D; "
            'source <(esms-exporter completion zsh)\nPROMPT="> "'
        ),
    ),
}
# What is typed before the tab, and what the line becomes.
TYPED = [
    ("esms-exporter look", "esms-exporter lookup"),
    ("esms-exporter lookup --from", "esms-exporter lookup --from-file"),
    ("esms-exporter lookup --config.file=config.yaml --account hot", "--account hotline"),
    ("esms-exporter calls --state aw", "--state awaiting_"),
    ("esms-exporter --web.tel", "--web.telemetry-path"),
]


@pytest.fixture
def environ(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a shell that finds `esms-exporter`, with a configuration."""
    folder = tmp_path
    (folder / "bin").mkdir()
    # Completion needs no keys.
    (folder / "config.yaml").write_text(
        "accounts:\n  - {name: main, api_key: '${NOT_SET}', secret_key_file: missing}\n"
        "  - {name: hotline, api_key: '${NOT_SET}', secret_key_file: missing}\n"
    )
    with subprocesses.program_that_forks(folder / "bin/esms-exporter"):
        yield {
            **os.environ,
            "PATH": f"{folder}/bin:{os.environ['PATH']}",
            "HOME": str(folder),
            "TERM": "dumb",
        }


@pytest.mark.parametrize("shell", ["bash", "zsh"])
async def test_at_a_terminal(tmp_path: Path, environ: dict[str, str], shell: str) -> None:
    program(shell, f"Debian's {shell}")
    start, source = SHELLS[shell]
    ours, theirs = pty.openpty()
    process = await subprocesses.start(
        *shlex.split(start), cwd=tmp_path, env=environ, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    seen, loop = "", asyncio.get_running_loop()

    def read() -> None:
        nonlocal seen
        try:
            seen += os.read(ours, 65536).decode(errors="replace").replace("\a", "")  # a bell
        except OSError:  # the shell has ended
            loop.remove_reader(ours)

    async def types(keys: str, sees: str) -> None:
        nonlocal seen
        seen = ""
        os.write(ours, keys.encode())
        await until(lambda: sees in seen)

    loop.add_reader(ours, read)
    try:
        await types(f"{source}\necho rea''dy\n", "ready")
        for typed, becomes in TYPED:
            await types(f"{typed}\t", becomes)
            os.write(ours, b"\x15")  # the line is emptied
    finally:
        process.kill()
        await process.wait()
        loop.remove_reader(ours)
        os.close(ours)


async def test_fish(tmp_path: Path, environ: dict[str, str]) -> None:
    fish = program("fish", "Debian's fish")
    lines = ["esms-exporter completion fish | source"]
    lines += [f"complete -C {shlex.quote(typed)}; echo" for typed, _ in TYPED]
    process = await subprocesses.start(
        *(fish, "--no-config", "-c", "\n".join(lines)),
        cwd=tmp_path,
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await subprocesses.output(process)
    assert (process.returncode, errors) == (0, "")
    found = [part.strip().splitlines() for part in output.split("\n\n")]
    offered = [{line.split("\t")[0] for line in part} for part in found]
    assert offered[:5] == [
        *({"lookup"}, {"--from-file"}, {"hotline"}),
        {"awaiting_approval", "awaiting_report"},
        {"--web.telemetry-path"},
    ]


@pytest.mark.parametrize("typed", [[], ["--config.file", "/nonexistent"]])
def test_without_a_configuration_no_account_is_offered(typed: list[str]) -> None:
    shell = ShellComplete(commands, {}, "esms-exporter", "_ESMS_EXPORTER_COMPLETE")
    assert shell.get_completions(["lookup", *typed, "--account"], "") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_documentation_sources_what_is_tested(shell: str) -> None:
    page = (Path(__file__).parents[2] / "docs/lookup.md").read_text()
    (line,) = re.findall(rf"^\| {shell}.*?`(.+?)`", page, re.MULTILINE)
    assert line.replace("\\|", "|") in Path(__file__).read_text()
