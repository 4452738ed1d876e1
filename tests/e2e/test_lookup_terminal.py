"""What a person at a terminal sees of a look-up."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import re
import signal
import struct
import termios
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from exporter.simulator import Fault, FaultKind, Simulator
from tests import subprocesses
from tests.e2e.lookups import ACCOUNTS, CONFIG, configure, place
from tests.waiting import deadline, until

SHOWN_CURSOR = "\x1b[?25h"
END = "\x04end of what was written\x04"


@pytest_asyncio.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with Simulator(accounts=ACCOUNTS) as simulator:
        yield simulator


class Screen:
    """A command at a terminal of its own; standard output too, unless it goes to a file."""

    def __init__(self, folder: Path, columns: int, output: Path | None = None) -> None:
        self._folder = folder
        self._output = output
        self._terminal, self._theirs = pty.openpty()
        size = struct.pack("HHHH", 40, columns, 0, 0)
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, size)
        self.seen = ""

    async def run(self, *arguments: str, ctrl_c_at: str = "") -> int:
        theirs = self._theirs
        output = os.open(self._output, os.O_WRONLY | os.O_CREAT) if self._output else theirs
        process = subprocesses.spawn(
            (*subprocesses.ESMS_EXPORTER, *arguments),
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
    configure(tmp_path, simulator.url, rate=100)
    (tmp_path / "ids.txt").write_text("\n".join(place(simulator, 50)))
    throttle = Fault(FaultKind.STATUS, status=429, retry_after="0", count=2)
    simulator.faults.set("throttle", throttle)
    screen = Screen(tmp_path, 100)
    assert await screen.run("lookup", "--from-file=ids.txt", CONFIG) == 0, screen.seen
    bar, table = screen.seen.split("50/50")[0], screen.seen.rsplit("50/50", 1)[1]
    assert "main: throttled: " in bar
    assert "━" in bar
    assert table.count("CALL-") == 50
    assert "CALL-" not in bar
    assert SHOWN_CURSOR in screen.seen


async def test_ctrl_c_gives_the_terminal_back(tmp_path: Path, simulator: Simulator) -> None:
    configure(tmp_path, simulator.url, rate=20)
    (tmp_path / "ids.txt").write_text("\n".join(place(simulator, 500)))
    screen = Screen(tmp_path, 100)
    arguments = ("lookup", "--from-file=ids.txt", "--output-file=results.csv", CONFIG)
    assert await screen.run(*arguments, ctrl_c_at="[1-9]/500") == 1
    assert re.search(r"\d+ of 500 calls answered; not: \d+ not requested\r\n$", screen.seen)
    assert screen.seen.rindex(SHOWN_CURSOR) > screen.seen.rindex("━")


@pytest.mark.parametrize("to_file", [True, False])
async def test_no_bar_is_drawn_between_lines(
    tmp_path: Path,
    simulator: Simulator,
    to_file: bool,  # noqa: FBT001
) -> None:
    configure(tmp_path, simulator.url)
    (tmp_path / "ids.txt").write_text("\n".join(place(simulator, 5)))
    output = tmp_path / "output" if to_file else None
    screen = Screen(tmp_path, 100, output)
    arguments = ("lookup", "--from-file=ids.txt", "--output=json", CONFIG)
    assert await screen.run(*arguments) == 0
    assert ("━" in screen.seen) is to_file
    lines = output.read_text() if output else screen.seen
    assert [line[:18] for line in lines.splitlines()] == [
        f'{{"reference_id":"{name}'[:18] for name in place(simulator, 5)
    ]


@pytest.mark.parametrize(("columns", "broken"), [(100, 0), (65, 1), (50, 0), (30, 0)])
async def test_an_id_is_never_broken(
    tmp_path: Path, simulator: Simulator, columns: int, broken: int
) -> None:
    configure(tmp_path, simulator.url)
    name = "505139D7-54F8-48A9-88FA-9460A78731DD"
    screen = Screen(tmp_path, columns)
    assert await screen.run("lookup", name, CONFIG) == 0
    plain = re.sub(r"\x1b\[[0-9;]*m", "", screen.seen)
    head, row, *rest = (line.split() for line in plain.splitlines())
    assert head == ["reference_id", "state", "message"]
    assert row[:3] == [name, "not_found", "105"]
    # Where there is room to, the message is; else the terminal breaks the line.
    assert len(rest) == broken
    assert [*row[3:], *(word for line in rest for word in line)] == ["ReferenceId", "not", "found"]
