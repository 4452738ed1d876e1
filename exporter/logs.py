"""Log lines: events with fields, as logfmt or JSON, on standard error."""

from __future__ import annotations

import atexit
import logging
import os
import select
import sys
import threading
import time
import traceback
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Final, Literal

import structlog

LEVELS: Final = ("debug", "info", "warning", "error")

_MAX_PENDING: Final = 1024 * 1024
"""Maximum number of pending bytes; further lines are dropped."""

EXIT_TIMEOUT: Final = 1.0
"""Seconds to wait for pending lines at exit."""

_log = structlog.get_logger(__name__)

LogFormat = Literal["logfmt", "json"]


class LogSink:
    """Writes lines to a file descriptor in a thread, without blocking the caller.

    A line is dropped and counted if writing fails, or if `_MAX_PENDING` bytes are pending because
    the pipe is not read. The number of dropped lines is logged once all pending lines are written.

    `logging.handlers.QueueHandler` is not suitable: its listener blocks at exit until its thread
    ends, and prints errors to standard error.

    Args:
        descriptor: blocking or non-blocking.

    Attributes:
        dropped: number of dropped lines.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        # Reentrant: a failing destructor may log at any time.
        self._changed = threading.Condition(threading.RLock())
        self._lines: deque[bytes] = deque()
        self._pending = 0  # bytes, including the line that is being written
        self.dropped = 0
        self._reported = 0
        self._cut = False  # the last line was written partially
        self._started = False

    def msg(self, line: str) -> None:
        """Write a line, or drop it.

        Raises:
            RuntimeError: the thread cannot be started, at the first line.
        """
        encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
        data = f"{line}\n".encode(encoding, "replace")
        with self._changed:
            if not self._started:
                threading.Thread(target=self._run, name="log", daemon=True).start()
                atexit.register(self.drain, EXIT_TIMEOUT)
                self._started = True
            if self._pending + len(data) > _MAX_PENDING:
                self.dropped += 1
                return
            self._lines.append(data)
            self._pending += len(data)
            self._changed.notify_all()

    debug = info = warning = error = critical = msg

    def drain(self, timeout: float) -> bool:
        """Wait until all lines are written; return False after `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._pending, timeout)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines)
                line = self._lines.popleft()
            written = self._write(line)
            with self._changed:
                self.dropped += not written
                unreported = self.dropped - self._reported
                if written and not self._lines and unreported > 0:
                    self._reported = self.dropped
                    _log.error("log lines dropped", lines=unreported)
                self._pending -= len(line)
                self._changed.notify_all()

    def _write(self, line: bytes) -> bool:
        left = b"\n" + line if self._cut else line
        size = len(left)
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:
                select.select([], [self._descriptor], [])
            except OSError:
                self._cut = self._cut or len(left) < size
                return False
        self._cut = False
        return True


STANDARD_ERROR: Final = LogSink(2)


class LastError:
    """Remembers the last event of level `error`, as a processor of structlog.

    Attributes:
        event: its name, without its fields; empty before the first.
        at: Unix time.
    """

    def __init__(self) -> None:
        self.event, self.at = "", 0.0

    def __call__(
        self,
        _logger: structlog.typing.WrappedLogger,
        method: str,
        event: structlog.typing.EventDict,
    ) -> structlog.typing.EventDict:
        if method in {"error", "critical"}:
            self.event, self.at = str(event.get("event", "")), time.time()
        return event


LAST_ERROR: Final = LastError()


def configure_logging(level: str, log_format: LogFormat) -> None:
    """Send events of at least `level` to standard error."""
    renderer: structlog.typing.Processor
    if log_format == "json":
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.processors.LogfmtRenderer(
            key_order=["timestamp", "level", "event"], bool_as_flag=False
        )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            LAST_ERROR,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: STANDARD_ERROR,
        cache_logger_on_first_use=True,
    )
    # Log records of libraries (such as asyncio and aiohttp) may contain URLs of requests: forward
    # them without their text.
    logging.basicConfig(handlers=[_Forward()], level=logging.WARNING, force=True)
    # So may the messages of uncaught exceptions.
    sys.excepthook = lambda kind, _error, trace: _crashed(kind, trace)
    sys.unraisablehook = lambda args: _crashed(args.exc_type, args.exc_traceback)
    threading.excepthook = lambda args: _crashed(args.exc_type, args.exc_traceback)


def _crashed(kind: type[BaseException], trace: TracebackType | None) -> None:
    """Log the type and the stack of an exception, without its message."""
    frames = traceback.extract_tb(trace)
    structlog.get_logger(__name__).error(
        "uncaught exception",
        error=kind.__name__,
        frames=" ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames),
    )


class _Forward(logging.Handler):
    """Forwards log records of libraries without message, arguments and traceback."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[0] if record.exc_info else None
        structlog.get_logger(record.name).log(
            record.levelno,
            "library message",
            logger=record.name,
            where=f"{record.module}:{record.lineno}",
            error=error.__name__ if error else None,
        )
