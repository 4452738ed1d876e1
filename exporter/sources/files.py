"""The watch source of files: `watch.files`."""

from __future__ import annotations

import asyncio
import fnmatch
import glob
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import structlog

from exporter.config.calls import CallConfig
from exporter.errors import ConfigError, LedgerError, Problem
from exporter.ledger.records import NewCall, Tally
from exporter.metrics.catalogue import Catalogue
from exporter.sources.call_files import read_calls
from exporter.sources.changes import Change, Watched

SOURCE: Final = "files"
"""The source's name in metrics."""

PREFIX: Final = "file:"
"""Before a file's path, its name in the ledger."""

MAX_FILES: Final = 10_000

_ESCAPED: Final = re.compile(r"\[([*?[])\]")
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
        self._gone: set[str] = set()  # files that are, and whose calls are not let go yet
        self._failing: dict[str, str] = {}  # by file, what was said

    async def configure(self, settings: Settings) -> None:
        """Go over to other settings, and read everything anew; returns once all is taken in.

        Raises:
            LedgerError: the ledger failed.
        """
        self._settings = settings
        self._watched = Watched()
        self._failing, self._gone = {}, set()
        named = await self._intake.sources()
        self._named = {name.removeprefix(PREFIX) for name in named if name.startswith(PREFIX)}
        self._metrics.show_source(SOURCE, shown=bool(settings.patterns))
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
        paths = await asyncio.to_thread(_found, patterns)
        too_many = len(paths) > MAX_FILES
        self._say("watch.files", f"finds over {MAX_FILES} files" if too_many else None)
        changes, gone = await asyncio.to_thread(self._watched.look, paths[:MAX_FILES], wait=wait)
        # New ones first, so that a call that moves from file to file is watched all the time.
        for change in changes:
            await self._take(change)
        self._gone.update(gone if wait or too_many else self._named)
        self._gone.difference_update(paths)
        for path in sorted(self._gone):
            await self._miss(path)
        for path in _literals(patterns):
            if not self._watched.there(path):
                self._say(path, "cannot be read: no such file")
        if patterns and not self._failing:
            self._metrics.source_last_success.labels(SOURCE).value = time.time()

    async def _take(self, change: Change) -> None:
        settings, path = self._settings, change.path
        try:
            found = await asyncio.to_thread(
                read_calls, path, settings.accounts, settings.labels, whole=change.settled
            )
        except ConfigError as error:
            self._say(path, str(error))
            return
        try:
            taken = await self._intake.watch(PREFIX + path, _new_calls(found.calls))
            self._named.add(path)
            if change.settled and not found.problems and not taken.refused:
                await self._intake.keep_only(PREFIX + path, taken.rows)
        except LedgerError:
            self._watched.forget(path)
            raise
        if not change.settled:
            self._watched.forget(path)
        _log.debug("file of calls read", file=path, calls=len(found.calls))
        problem = "\n".join(map(str, found.problems))
        if taken.refused:
            problem = f"{taken.refused} of its calls are beyond `watch.max_calls`"
        self._say(path, problem or None)

    async def _miss(self, path: str) -> None:
        """Let go of the calls of a file that was removed."""
        wanted = any(fnmatch.fnmatchcase(path, pattern) for pattern in self._settings.patterns)
        if wanted and not await asyncio.to_thread(Path(path).parent.is_dir):
            self._say(path, "cannot be read: its folder is gone")
            return
        await self._intake.keep_only(PREFIX + path, set())
        self._gone.discard(path)
        self._named.discard(path)
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
    problems: list[Problem] = []
    calls = 0
    for path in _found(settings.patterns):
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


def _new_calls(calls: Iterable[CallConfig]) -> Iterator[NewCall]:
    return (NewCall(call.account, call.reference_id, call.labels) for call in calls)


def _literals(patterns: Iterable[str]) -> list[str]:
    """Return the paths that are named without a wildcard."""
    return [
        _ESCAPED.sub(r"\1", pattern)
        for pattern in patterns
        if not glob.has_magic(_ESCAPED.sub("", pattern))
    ]


def _found(patterns: Sequence[str]) -> list[str]:
    """Return the paths that patterns find, and those that they name, there or not."""
    found = (path for pattern in patterns for path in glob.iglob(pattern, recursive=True))  # noqa: PTH207 - Path.glob leaves out what it cannot look into
    return sorted({*_literals(patterns), *found})
