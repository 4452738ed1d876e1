"""Log lines: events with fields, as logfmt or JSON, on standard error."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from pathlib import Path
from types import TracebackType
from typing import Final, Literal

import structlog

LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}

LogFormat = Literal["logfmt", "json"]


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
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    # What libraries log (asyncio on a task that failed, aiohttp on a broken request) may hold the
    # URL of a request: only that it happened is told.
    logging.basicConfig(handlers=[_Forward()], level=logging.WARNING, force=True)
    # So may the words of an exception that nobody has caught, in whatever thread.
    sys.excepthook = lambda kind, _error, trace: _crashed(kind, trace)
    sys.unraisablehook = lambda args: _crashed(args.exc_type, args.exc_traceback)
    threading.excepthook = lambda args: _crashed(args.exc_type, args.exc_traceback)


def _crashed(kind: type[BaseException], trace: TracebackType | None) -> None:
    """Tell of an exception where it came from, and nothing of what it says."""
    frames = traceback.extract_tb(trace)
    structlog.get_logger(__name__).error(
        "crashed",
        error=kind.__name__,
        frames=" ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames),
    )


class _Forward(logging.Handler):
    """Passes a library's record on without its arguments and its traceback."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[0] if record.exc_info else None
        structlog.get_logger(record.name).log(
            record.levelno,
            "library message",
            logger=record.name,
            where=f"{record.module}:{record.lineno}",
            error=error.__name__ if error else None,
        )
