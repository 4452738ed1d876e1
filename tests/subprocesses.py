"""Processes that tests start: none of them outlives the tests.

Linux kills a process that is started here when the process that started it dies. `start` ties a
process to a test, `popen` to its context manager, and `run` waits for the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Final

from tests.forked import MAX_MESSAGE
from tests.programs import program
from tests.waiting import DEADLINE, deadline

_PR_SET_CHILD_SUBREAPER: Final = 36
_STARTED: Final[list[asyncio.subprocess.Process | Forked]] = []
_STARTER: Final = ThreadPoolExecutor(1)
_SERVER: Final = contextlib.ExitStack()
_ROOT: Final = Path(__file__).parent.parent

Argument = str | os.PathLike[str]
Child = subprocess.Popen[Any]


def _tied(command: tuple[Argument, ...]) -> tuple[Argument, ...]:
    """Return a command whose process dies with this one, even where this one is killed."""
    return (program("setpriv", "Debian's util-linux"), "--pdeathsig", "KILL", "--", *command)


def run(
    *command: Argument,
    check: bool = False,
    timeout: float = 3 * DEADLINE,
    **options: Any,  # Any: of subprocess
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, and capture its output as text."""
    return subprocess.run(
        _tied(command),
        check=check,
        timeout=timeout,
        capture_output=True,
        encoding="utf-8",
        **options,
    )


@contextlib.contextmanager
def popen(*command: Argument, **options: Any) -> Iterator[Child]:  # Any: of subprocess
    """Run a command in a process group of its own; kill the group at the end."""
    # Linux looks at the thread that started a process: that of a caller may end before its test.
    starting = _STARTER.submit(
        lambda: subprocess.Popen(_tied(command), start_new_session=True, **options)
    )
    with starting.result() as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                _kill_group(process.pid)


async def start(*command: Argument, **options: Any) -> asyncio.subprocess.Process:
    """Start a process in a group of its own, that ends with the test at the latest."""
    process = await asyncio.create_subprocess_exec(
        *_tied(command), start_new_session=True, **options
    )
    _STARTED.append(process)
    return process


class Forked:
    """A forked exporter, as `asyncio.subprocess.Process` shows one; in a group of its own."""

    def __init__(
        self, arguments: Sequence[str], output: BinaryIO, environ: Mapping[str, str]
    ) -> None:
        message = json.dumps([list(arguments), dict(environ), str(Path.cwd())]).encode()
        assert len(message) < MAX_MESSAGE
        server = _server()
        socket.send_fds(server, [message], [output.fileno()])
        self.pid = int(server.recv(MAX_MESSAGE))
        self._returncode: int | None = None

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        if self._returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._returncode = os.waitstatus_to_exitcode(status)
        return self._returncode

    def send_signal(self, number: int) -> None:
        """Send a signal to it, unless it has ended."""
        if self.returncode is None:
            os.kill(self.pid, number)


@functools.cache
def _server() -> socket.socket:
    """Return what the process listens to that exporters are forked from."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    measured = {"COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG"}
    with there:
        program = popen(
            *(sys.executable, "-m", "tests.forked"),
            stdin=there,
            stdout=subprocess.DEVNULL,
            cwd=_ROOT,
            env={name: value for name, value in os.environ.items() if name not in measured},
        )
        _SERVER.enter_context(program)
    return _SERVER.enter_context(here)


def fork(arguments: Sequence[str], output: BinaryIO, environ: Mapping[str, str]) -> Forked:
    """Start an exporter in a group of its own, that ends with the test at the latest."""
    process = Forked(arguments, output, environ)
    _STARTED.append(process)
    return process


async def output(process: asyncio.subprocess.Process) -> tuple[str, str]:
    """Return what a process writes to its pipes until it ends; kill one that does not end."""
    try:
        async with deadline():
            said, errors = await process.communicate()
    except TimeoutError:
        _kill_group(process.pid)
        await process.wait()
        raise
    return said.decode(errors="replace"), (errors or b"").decode(errors="replace")


@contextlib.contextmanager
def ended_with_test() -> Iterator[None]:
    """Kill what is started meanwhile and still runs at the end."""
    before = len(_STARTED)
    yield
    for process in _STARTED[before:]:
        if process.returncode is None:
            _kill_group(process.pid)
            # The event loop that would await it is closed.
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process.pid, 0)
    del _STARTED[before:]


def adopt_orphans() -> None:
    """Become the parent of those whose own parent dies, so that they are seen by `descendants`."""
    assert ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


def descendants() -> dict[int, str]:
    """Return the running processes that this one and its children started, and who they are."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if state not in "ZX":
                children.setdefault(int(parent), []).append(int(folder.name))
    found, new = dict[int, str](), children.get(os.getpid(), [])
    while new:
        for pid in new:
            with contextlib.suppress(OSError):
                found[pid] = _description(pid)
        new = [child for pid in new for child in children.get(pid, [])]
    return found


def kill_descendants(seconds: float) -> list[str]:
    """Wait until no descendant runs; kill those that do not end, and return who they were."""
    _SERVER.close()
    _server.cache_clear()
    end = time.monotonic() + seconds
    while (left := descendants()) and time.monotonic() < end:
        time.sleep(0.05)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return list(left.values())


def _description(pid: int) -> str:
    """Return the command of a process, and the test that it was started in."""
    command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    test = [v.decode() for v in environ if v.startswith(b"PYTEST_CURRENT_TEST=")]
    return f"{pid}: {command} {' '.join(test)}"


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
