"""Imported by Python at its start where PYTHONPATH names this folder: a machine that goes wrong.

Each fault is switched by a file that an environment variable names.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path


def set_clock(by: Path) -> None:
    """Have `time.time` be off by the seconds that a file holds."""
    right = time.time
    time.time = lambda: right() + float(by.read_text())


def refuse_threads(switch: Path) -> None:
    """Have no thread start while a file is there."""
    start = threading.Thread.start

    def start_or_not(self: threading.Thread) -> None:
        if switch.exists():
            raise RuntimeError("can't start new thread")
        start(self)

    threading.Thread.start = start_or_not  # type: ignore[method-assign]


def die_at_commit(number: int, when: str) -> None:
    """Have the process killed `before` or `after` a commit."""
    from sqlalchemy.engine.default import DefaultDialect  # noqa: PLC0415 - takes its time
    from sqlalchemy.engine.interfaces import DBAPIConnection  # noqa: PLC0415

    commit = DefaultDialect.do_commit
    left = number

    def commit_or_die(self: DefaultDialect, connection: DBAPIConnection) -> None:
        nonlocal left
        left -= 1
        if left == 0 and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        commit(self, connection)  # type: ignore[no-untyped-call]
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    DefaultDialect.do_commit = commit_or_die  # type: ignore[method-assign]


if clock := os.environ.get("FAULT_CLOCK"):
    set_clock(Path(clock))
if threads := os.environ.get("FAULT_THREADS"):
    refuse_threads(Path(threads))
if commits := os.environ.get("FAULT_COMMITS"):
    chosen, moment = Path(commits).read_text().split()
    die_at_commit(int(chosen), moment)
