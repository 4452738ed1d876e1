"""The watch source of files: `watch.files`."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice, starmap
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import structlog

from exporter.config.calls import CallConfig
from exporter.errors import ConfigError, LedgerError, Problem
from exporter.ledger.records import NewCall, Tally
from exporter.metrics.catalogue import Catalogue
from exporter.sources.call_files import read_calls
from exporter.sources.changes import Change, Watched
from exporter.sources.patterns import covered, found, literals

SOURCE: Final = "files"
"""The source's name in metrics."""

PREFIX: Final = "file:"
"""Before a file's path, its name in the ledger."""

MAX_FILES: Final = 10_000

SHOWN: Final = 10
"""Files whose problems are shown at a time."""

RETRY_EVERY: Final = 60.0
"""Seconds after which calls that there was no room for are tried again."""

_log = structlog.get_logger(__name__)


class Intake(Protocol):
    """Who takes calls in: `exporter.watching.Watching`."""

    async def watch(self, source: str | None, calls: Iterable[NewCall]) -> Tally:
        """Watch calls, in the name of a source."""

    async def keep_only(self, source: str, rows: set[int]) -> None:
        """Let go of what the source named before, but for these rows."""

    async def sources(self) -> list[str]:
        """Return every source that names a call."""


class Settings(NamedTuple):
    """What to read, and what it may say."""

    patterns: Sequence[str]
    accounts: Sequence[str]
    labels: Sequence[str]


class CallFiles:
    """Reads the files that the patterns of a configuration find, again when they change.

    Each file is a source of its own in the ledger, named by its path: a call that no file names any
    more is let go. A file that is not as it should be lets go of nothing. Nor does one that is
    gone though it is named without a wildcard, or whose folder cannot be looked into: such things
    happen to disks and networks. One that a wildcard found and does not find any more was removed.

    Args:
        intake: takes the calls.
        metrics: where successes and failures are counted.
    """

    def __init__(self, intake: Intake, metrics: Catalogue) -> None:
        self._intake = intake
        self._metrics = metrics
        self._settings = Settings((), (), ())
        self._watched = Watched()
        self._named: set[str] = set()  # files that name calls in the ledger
        self._missing: set[str] = set()  # of those, not there at the last look
        self._failing: dict[str, str] = {}  # by file, what was said
        self._full: dict[str, float] = {}  # files to be read again, and when

    async def configure(self, settings: Settings) -> None:
        """Go over to other settings, and read everything anew; returns once all is taken in.

        Where nothing has changed, this is but another look.

        Raises:
            LedgerError: the ledger failed.
        """
        if settings == self._settings:
            await self._look(wait=True)
            return
        self._metrics.show_source(SOURCE, shown=bool(settings.patterns))
        self._watched = Watched()
        self._failing, self._full = {}, {}
        named = await self._intake.sources()
        self._named = {name.removeprefix(PREFIX) for name in named if name.startswith(PREFIX)}
        self._missing = set()
        self._settings = settings
        await self._look(wait=False)

    async def look(self) -> None:
        """Look for changes once, and take in what lies still; what fails is tried again."""
        try:
            await self._look(wait=True)
        except LedgerError as error:
            self._say("the ledger", str(error))
        else:
            self._say("the ledger", None)

    async def _look(self, *, wait: bool) -> None:
        patterns = self._settings.patterns
        paths, problem = await asyncio.to_thread(_readable, patterns)
        self._say("watch.files", problem)
        self._retry()
        look = partial(self._watched.look, paths[:MAX_FILES], wait=wait)
        changes = await asyncio.to_thread(look)
        # New ones first, so that a call that moves from file to file is watched all the time.
        for change in changes:
            await self._take(change, tell=wait or change.settled)
        # Those beyond the limit were not looked at.
        there = {path for path in paths if self._watched.there(path)}.union(paths[MAX_FILES:])
        missing = self._named - there
        for path in sorted(missing):
            if path in self._missing or not covered(path, patterns):
                await self._miss(path)
        self._missing = missing
        for path in literals(patterns):
            if not self._watched.there(path):
                self._say(path, "cannot be read: no such file")
        if patterns and not self._failing:
            self._metrics.source_last_success.labels(SOURCE).value = time.time()
        troubles = islice(self._failing.items(), SHOWN)
        self._metrics.trouble(SOURCE, "\n".join(starmap(_with_path, troubles)) or None)

    async def _take(self, change: Change, *, tell: bool) -> None:
        settings, path = self._settings, change.path
        try:
            told = await asyncio.to_thread(
                read_calls, path, settings.accounts, settings.labels, whole=change.settled
            )
        except ConfigError as error:
            if change.settled:
                self._watched.read(change)
            if tell:
                self._say(path, str(error))
            return
        source = PREFIX + path
        taken = await self._intake.watch(source, _new_calls(told.calls))
        self._named.add(path)
        if change.settled and not told.problems:
            # What it does not name any more may be all that there is no room for.
            await self._intake.keep_only(source, taken.rows)
            if taken.refused:
                taken = await self._intake.watch(source, _new_calls(told.calls))
        if change.settled:
            self._watched.read(change)
        _log.debug("file of calls read", file=path, calls=len(told.calls))
        problem = "\n".join(map(str, told.problems))
        if taken.refused:
            full = ", ".join(sorted(taken.refused))
            problem = f"some of its calls are beyond `watch.max_calls` (account {full})"
            self._full[path] = time.monotonic() + RETRY_EVERY
        if tell:
            self._say(path, problem or None)

    def _retry(self) -> None:
        """Have files whose calls there was no room for be read again after a while."""
        now = time.monotonic()
        for path in [path for path, due in self._full.items() if due <= now]:
            del self._full[path]
            self._watched.forget(path)

    async def _miss(self, path: str) -> None:
        """Let go of the calls of a file that was removed."""
        if covered(path, self._settings.patterns):
            if path in literals(self._settings.patterns):
                return  # told by who looks
            if not await asyncio.to_thread(_can_be_listed, Path(path).parent):
                self._say(path, "cannot be read: its folder is gone, or cannot be looked into")
                return
        await self._intake.keep_only(PREFIX + path, set())
        self._named.discard(path)
        self._watched.forget(path)  # it may come back as it was
        self._failing.pop(path, None)
        _log.info("file of calls was removed", file=path)

    def _say(self, path: str, problem: str | None) -> None:
        """Tell what is wrong with a file, or that nothing is any more, once each."""
        if problem is None:
            if self._failing.pop(path, None):
                _log.info("file of calls is good again", file=path)
        elif self._failing.get(path) != problem:
            self._failing[path] = problem
            self._metrics.source_errors.labels(SOURCE).value += 1
            _log.warning("file of calls is not as it should be", file=path, problem=problem)


def check_files(settings: Settings) -> int:
    """Read every file once; returns how many calls they name. Blocking.

    Raises:
        ConfigError: with every problem of every file.
    """
    paths, problem = _readable(settings.patterns)
    problems = [Problem("watch.files", 0, "", problem)] if problem else []
    calls = 0
    for path in paths:
        if Path(path).is_dir():
            continue
        try:
            found = read_calls(path, settings.accounts, settings.labels)
        except ConfigError as error:
            problems += error.problems
        else:
            calls += len(found.calls)
            problems += found.problems
    if problems:
        raise ConfigError(tuple(problems))
    return calls


def _readable(patterns: Sequence[str]) -> tuple[list[str], str | None]:
    """Return the files that patterns find and name, and what is wrong with that."""
    paths = found(patterns)
    # The ledger and the log hold names as text.
    readable = [path for path in paths if path.isprintable()]
    if odd := len(paths) - len(readable):
        return readable, f"finds {odd} files whose names are no printable text"
    return paths, f"finds over {MAX_FILES} files" if len(paths) > MAX_FILES else None


def _with_path(path: str, problem: str) -> str:
    return problem if problem.startswith(path) else f"{path}: {problem}"


def _new_calls(calls: Iterable[CallConfig]) -> Iterator[NewCall]:
    return (NewCall(call.account, call.reference_id, call.labels) for call in calls)


def _can_be_listed(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            next(entries, None)
    except OSError:
        return False
    return True
