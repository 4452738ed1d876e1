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
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from tests.forked import MAX_MESSAGE
from tests.programs import program
from tests.waiting import DEADLINE, deadline

_PR_SET_CHILD_SUBREAPER: Final = 36
_STARTED: Final[list[asyncio.subprocess.Process | subprocess.Popen[Any] | Forked]] = []
_STARTER: Final = ThreadPoolExecutor(1)
_SERVER: Final = contextlib.ExitStack()
_FORKING: Final = threading.Lock()
_ROOT: Final = Path(__file__).parent.parent

ESMS_EXPORTER: Final = (sys.executable, "-m", "exporter")
# Coverage would be lost with a process that is killed, and makes it start slowly.
UNMEASURED: Final = {"COVERAGE_PROCESS_START": "", "COVERAGE_PROCESS_CONFIG": ""}

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
    """A forked exporter, in a group of its own."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal to it, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


@functools.cache
def _server() -> socket.socket:
    """Return what the process listens to that exporters are forked from."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with there:
        program = popen(
            *(sys.executable, "-m", "tests.forked"),
            stdin=there,
            stdout=subprocess.DEVNULL,
            cwd=_ROOT,
            env={name: value for name, value in os.environ.items() if name not in UNMEASURED},
        )
        _SERVER.enter_context(program)
    return _SERVER.enter_context(here)


def spawn(
    command: Sequence[Argument],
    stdout: int,
    stderr: int,
    *,
    stdin: int | None = None,
    environ: Mapping[str, str],
    folder: Path | None = None,
) -> Child | Forked:
    """Start a program in a group of its own, that ends with the test at the latest.

    Args:
        command: an exporter (`ESMS_EXPORTER`) is forked, where that makes no difference.
        stdout: an open file, as `stderr` and `stdin`.
        stderr: see `stdout`.
        stdin: see `stdout`; None for the null device.
        environ: its whole environment.
        folder: where it runs.
    """
    with Path(os.devnull).open("rb") as nothing:
        first = nothing.fileno() if stdin is None else stdin
        path = [*filter(None, [environ.get("PYTHONPATH")]), *sys.path]
        process: Child | Forked
        if _may_be_forked(command, environ):
            arguments = [str(word) for word in command[len(ESMS_EXPORTER) :]]
            message = json.dumps([arguments, dict(environ), str(folder or Path.cwd())]).encode()
            process = _fork(message, [first, stdout, stderr])
        else:
            process = _STARTER.submit(
                lambda: subprocess.Popen(
                    _tied(tuple(command)),
                    stdin=first,
                    stdout=stdout,
                    stderr=stderr,
                    cwd=folder,
                    env={**environ, "PYTHONPATH": os.pathsep.join(path)},
                    start_new_session=True,
                )
            ).result()
    _STARTED.append(process)
    return process


def _fork(message: bytes, files: list[int]) -> Forked:
    assert len(message) < MAX_MESSAGE
    with _FORKING:
        server = _server()
        socket.send_fds(server, [message], files)
        return Forked(int(server.recv(MAX_MESSAGE)))


_PROGRAM: Final = """#!{python} -SEI
# Runs `esms-exporter` with these arguments and files, in a process that tests fork.
import json, os, signal, socket, sys
ends = (signal.SIGINT, signal.SIGTERM)
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as tests:
    tests.connect({address!r})
    message = json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]).encode()
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    socket.send_fds(tests, [message], [0, 1, 2])
    process = int(tests.recv(16))
    for number in ends:
        signal.signal(number, lambda number, _: os.kill(process, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ends)
    sys.exit(int(tests.recv(16)))
"""


@contextlib.contextmanager
def program_that_forks(path: Path) -> Iterator[None]:
    """Write a program that is `esms-exporter` to a shell, while the block runs.

    What it runs does not see what libraries find in the environment when they are imported.
    """
    address = f"\0esms-exporter-tests-{os.getpid()}-{path}"[:100]
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(address)
        listening.listen()
        path.write_text(_PROGRAM.format(python=sys.executable, address=address))
        path.chmod(0o755)
        serving = threading.Thread(target=_serve, args=(listening,))
        serving.start()
        try:
            yield
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            serving.join()


def _serve(listening: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listening.accept()
            threading.Thread(target=_run_forked, args=(connection,)).start()


def _run_forked(connection: socket.socket) -> None:
    # The test may end before its program, and reap the process.
    with connection, contextlib.suppress(BrokenPipeError, ChildProcessError):
        message, files, *_ = socket.recv_fds(connection, MAX_MESSAGE, 3)
        process = _fork(message, files)
        _STARTED.append(process)
        for file in files:
            os.close(file)
        connection.send(str(process.pid).encode())
        connection.settimeout(0.01)
        while process.poll() is None:
            with contextlib.suppress(TimeoutError):
                with contextlib.suppress(ConnectionResetError):
                    connection.recv(1)  # returns when the program is killed
                process.send_signal(signal.SIGKILL)
        connection.send(str(process.returncode).encode())


def _may_be_forked(command: Sequence[Argument], environ: Mapping[str, str]) -> bool:
    """Whether it is an exporter that is not measured, in an environment that makes no odds.

    What libraries find in it when they are imported does, as `SSL_CERT_FILE`; so does a clock that
    modules hold on to when they are imported.
    """
    changed = {name for name, _ in environ.items() - os.environ.items()}
    harmless = ("COVERAGE_", "ESMS_", "FAULT_", "PYTHONPATH", "TERM", "TMPDIR")
    return (
        tuple(command[: len(ESMS_EXPORTER)]) == ESMS_EXPORTER
        and all(name.startswith(harmless) for name in changed)
        and "FAULT_CLOCK" not in changed
        and not any(environ.get(name) for name in UNMEASURED)
    )


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
        if process.returncode is None and (
            isinstance(process, asyncio.subprocess.Process) or process.poll() is None
        ):
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
