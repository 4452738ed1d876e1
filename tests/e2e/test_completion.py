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

from tests import subprocesses
from tests.programs import program
from tests.waiting import deadline

START = {
    "bash": "bash --norc --noprofile -i",
    "zsh": "zsh -f -i",
}
SOURCE = {
    "bash": 'source <(esms-exporter completion bash)\nPS1="> "',
    "zsh": (
        'autoload -Uz compinit; compinit -u -D; source <(esms-exporter completion zsh)\nPROMPT="> "'
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


class Typist:
    """Somebody at a terminal."""

    def __init__(self, terminal: int) -> None:
        self._terminal = terminal
        self._loop = asyncio.get_running_loop()
        self.seen = ""
        self._loop.add_reader(terminal, self._read)

    def _read(self) -> None:
        try:
            text = os.read(self._terminal, 65536).decode(errors="replace")
        except OSError:  # the shell has ended
            self._loop.remove_reader(self._terminal)
        else:
            self.seen += text.replace("\a", "")  # a bell

    def type(self, keys: str) -> None:
        self.seen = ""
        os.write(self._terminal, keys.encode())

    async def sees(self, text: str) -> None:
        try:
            async with deadline():
                while text not in self.seen:  # noqa: ASYNC110 - a terminal tells nobody
                    await asyncio.sleep(0.02)
        except TimeoutError:
            pytest.fail(f"{text!r} is not in {self.seen!r}")


@pytest.mark.parametrize("shell", ["bash", "zsh"])
async def test_at_a_terminal(tmp_path: Path, environ: dict[str, str], shell: str) -> None:
    program(shell, f"Debian's {shell}")
    ours, theirs = pty.openpty()
    process = await subprocesses.start(
        *shlex.split(START[shell]),
        cwd=tmp_path,
        env=environ,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    typist = Typist(ours)
    try:
        typist.type(f"{SOURCE[shell]}\necho rea''dy\n")
        await typist.sees("ready")
        for typed, becomes in TYPED:
            typist.type(f"{typed}\t")
            await typist.sees(becomes)
            typist.type("\x15")  # the line is emptied
    finally:
        process.kill()
        await process.wait()
        asyncio.get_running_loop().remove_reader(ours)
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


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_documentation_sources_what_is_tested(shell: str) -> None:
    page = (Path(__file__).parents[2] / "docs/lookup.md").read_text()
    (line,) = re.findall(rf"^\| {shell}.*?`(.+?)`", page, re.MULTILINE)
    assert line.replace("\\|", "|") in Path(__file__).read_text()
