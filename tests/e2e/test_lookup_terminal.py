"""What a person at a terminal sees of a look-up, and one whose terminal is not UTF-8."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import re
import signal
import struct
import termios
from pathlib import Path

import pytest

from exporter.simulator import Fault, FaultKind, Simulator
from tests import subprocesses
from tests.e2e.commands import CONFIG, run
from tests.e2e.test_lookup import prepare
from tests.waiting import deadline, until

SHOWN_CURSOR = "\x1b[?25h"
END = "\x04end of what was written\x04"


class Screen:
    """A command at a terminal of its own; standard output too, unless it goes to a file."""

    def __init__(self, folder: Path, columns: int, output: Path | None = None) -> None:
        self._folder = folder
        self._output = output
        self._terminal, self._theirs = pty.openpty()
        size = struct.pack("HHHH", 40, columns, 0, 0)
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, size)
        self.seen = ""

    async def run(self, *arguments: str, ctrl_c_at: str = "", command: str = "lookup") -> int:
        theirs = self._theirs
        output = os.open(self._output, os.O_WRONLY | os.O_CREAT) if self._output else theirs
        process = subprocesses.spawn(
            (*subprocesses.ESMS_EXPORTER, command, *arguments, CONFIG),
            *(output, theirs),
            stdin=theirs,
            environ={**os.environ, "TERM": "xterm"},
            folder=self._folder,
        )
        os.set_blocking(self._terminal, False)
        loop = asyncio.get_running_loop()
        loop.add_reader(self._terminal, self._read)
        try:
            async with deadline():
                if ctrl_c_at:
                    await until(lambda: bool(re.search(ctrl_c_at, self.seen)))
                    process.send_signal(signal.SIGINT)
                await until(lambda: process.poll() is not None)
                # Whatever was written before it comes first, through the kernel's own threads.
                os.write(theirs, END.encode())
                await until(lambda: END in self.seen)
            self.seen = self.seen.replace(END, "")
            assert process.returncode is not None
            return process.returncode
        finally:
            loop.remove_reader(self._terminal)
            os.close(self._terminal)
            os.close(theirs)

    def _read(self) -> None:
        self.seen += os.read(self._terminal, 65536).decode(errors="replace")


async def test_a_bar_and_then_the_table(tmp_path: Path, simulator: Simulator) -> None:
    prepare(tmp_path, simulator, 50, rate=100)
    throttle = Fault(FaultKind.STATUS, status=429, retry_after="0", count=2)
    simulator.faults.set("throttle", throttle)
    screen = Screen(tmp_path, 100)
    assert await screen.run("--from-file=ids.txt") == 0, screen.seen
    bar, table = screen.seen.split("50/50")[0], screen.seen.rsplit("50/50", 1)[1]
    assert "main: throttled: " in bar
    assert "━" in bar
    assert table.count("CALL-") == 50
    assert "CALL-" not in bar
    assert SHOWN_CURSOR in screen.seen


async def test_ctrl_c_gives_the_terminal_back(tmp_path: Path, simulator: Simulator) -> None:
    prepare(tmp_path, simulator, 500, rate=20)
    screen = Screen(tmp_path, 100)
    arguments = ("--from-file=ids.txt", "--output-file=results.csv")
    assert await screen.run(*arguments, ctrl_c_at="[1-9]/500") == 1
    assert re.search(r"\d+ of 500 calls answered; not: \d+ not requested\r\n$", screen.seen)
    assert screen.seen.rindex(SHOWN_CURSOR) > screen.seen.rindex("━")


@pytest.mark.parametrize("to_file", [True, False])
async def test_no_bar_is_drawn_between_lines(
    tmp_path: Path,
    simulator: Simulator,
    to_file: bool,  # noqa: FBT001
) -> None:
    ids = prepare(tmp_path, simulator, 5)
    output = tmp_path / "output" if to_file else None
    screen = Screen(tmp_path, 100, output)
    assert await screen.run("--from-file=ids.txt", "--output=json") == 0
    assert ("━" in screen.seen) is to_file
    lines = output.read_text() if output else screen.seen
    # In the order of the answers, which may differ.
    assert sorted(json.loads(line)["reference_id"] for line in lines.splitlines()) == ids


@pytest.mark.parametrize("columns", [100, 50])
async def test_the_terminal_breaks_long_lines(
    tmp_path: Path, simulator: Simulator, columns: int
) -> None:
    prepare(tmp_path, simulator, 0)
    name = "505139D7-54F8-48A9-88FA-9460A78731DD"
    screen = Screen(tmp_path, columns)
    assert await screen.run(name) == 0
    plain = re.sub(r"\x1b\[[0-9;]*m", "", screen.seen)
    head, row = (line.split() for line in plain.splitlines())
    assert head == ["reference_id", "state", "message"]
    assert row == [name, "not_found", "105", "ReferenceId", "not", "found"]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
async def test_no_character_ends_a_command(
    tmp_path: Path, simulator: Simulator, encoding: str
) -> None:
    message = "Tài khoản không đủ tiền ✆"
    body = json.dumps({"CodeResult": "103", "ErrorMessage": message})
    simulator.faults.set("poor", Fault(FaultKind.RAW, body=body))
    prepare(tmp_path, simulator, 0)
    (tmp_path / "số.yaml").write_text("accounts: [{name: số}]\n")
    (tmp_path / "tốt.yaml").write_text((tmp_path / "config.yaml").read_text())
    environ = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    commands: tuple[tuple[tuple[str, ...], int], ...] = (
        (("lookup", "a", CONFIG), 1),
        (("lookup", "a", CONFIG, "--output=json"), 1),
        (("check", "--config.file=số.yaml"), 1),
        (("check", "--config.file=tốt.yaml"), 0),
        (("schema",), 0),
        (("lookup", "số", CONFIG), 2),
        (("canary", "số", CONFIG, "--dry-run"), 2),
    )
    for command, code in commands if encoding == "latin-1" else commands[:1]:
        ended = await run(tmp_path, *command, environ=environ)
        assert (ended.code, "uncaught exception" in ended.errors) == (code, False), (command, ended)
        assert ended.errors or not code, command
        if code == 1 and command[0] == "lookup":
            assert (message if encoding == "utf-8" else "i kho") in ended.output, ended
