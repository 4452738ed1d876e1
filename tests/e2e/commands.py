"""Commands that are run to their end, and what they print."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, NamedTuple

from click.testing import CliRunner, Result

from exporter.cli import commands as command_line
from tests import subprocesses
from tests.subprocesses import ESMS_EXPORTER
from tests.waiting import until

CONFIG = "--config.file=config.yaml"


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    output: str
    errors: str


class Command:
    """`esms-exporter` in a folder, from its start to its end.

    Args:
        folder: where it runs.
        arguments: its own.
        environ: what is added to the environment.
        output: where its output goes; by default, to a file that `end` returns.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        environ: Mapping[str, str] | None = None,
        output: int | None = None,
    ) -> None:
        self._output, self._errors = TemporaryFile(), TemporaryFile()  # noqa: SIM115 - see `end`
        self._process = subprocesses.spawn(
            (*ESMS_EXPORTER, *arguments),
            self._output.fileno() if output is None else output,
            self._errors.fileno(),
            environ={**os.environ, **(environ or {})},
            folder=folder,
        )
        self.send_signal = self._process.send_signal

    async def end(self) -> Ended:
        """Wait until it ends."""
        await until(lambda: self._process.poll() is not None)
        errors = _content(self._errors)
        assert "Traceback" not in errors
        assert self._process.returncode is not None
        return Ended(self._process.returncode, _content(self._output), errors)


@contextmanager
def piped(
    folder: Path, *arguments: str, environ: Mapping[str, str] | None = None
) -> Iterator[tuple[Command, IO[bytes]]]:
    """Run `esms-exporter` with its output in a pipe; yields what reads it, too."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as output:
        try:
            command = Command(folder, *arguments, environ=environ, output=writer)
        finally:
            os.close(writer)
        yield command, output


def _content(file: IO[bytes]) -> str:
    with file:
        file.seek(0)
        return file.read().decode(errors="replace")


async def run(folder: Path, *arguments: str, environ: Mapping[str, str] | None = None) -> Ended:
    """Run `esms-exporter` in a folder."""
    return await Command(folder, *arguments, environ=environ).end()


async def invoke(folder: Path, *arguments: str | Path, stdin: bytes | None = None) -> Ended:
    """Run a command that starts no event loop in a thread of this process; raises its errors.

    It takes less CPU time than `run`.
    """

    def invoke() -> Result:
        words = [str(word) for word in arguments]
        with chdir(folder):
            return CliRunner().invoke(command_line, words, stdin, catch_exceptions=False)

    ran = await asyncio.to_thread(invoke)
    return Ended(ran.exit_code, ran.stdout, ran.stderr)


def in_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def in_json(text: str) -> list[dict[str, Any]]:  # Any: JSON
    return [json.loads(line) for line in text.splitlines()]


def contents(archive: Path) -> dict[str, str]:
    """Return the files in an archive of `diagnostics`, by name."""
    with tarfile.open(archive) as tar:
        files = {member.name: tar.extractfile(member) for member in tar.getmembers()}
        return {Path(name).name: file.read().decode() for name, file in files.items() if file}
