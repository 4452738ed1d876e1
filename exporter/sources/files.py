"""The source `files`: files of calls that match the patterns of `watch.files`."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final, TypeAlias

import structlog

from exporter.config import WatchConfig
from exporter.config.document import Problems
from exporter.config.files import FileStat, stat_file
from exporter.config.watch import CallConfig
from exporter.errors import ConfigError, LedgerError, Problem, SourceError
from exporter.ledger.types import BATCH_SIZE, NewCall
from exporter.sources import file_watcher
from exporter.sources.file_watcher import INTERVAL, Change, FileWatcher, literals, matches
from exporter.sources.source import Source, SourceContext, new_call, too_many
from exporter.sources.tabular import read_calls
from exporter.threads import DetachedThreads
from exporter.tracker import CallTracker

OPTION: Final = "watch.files"
"""The configuration key of the patterns."""

PREFIX: Final = "file:"
"""Prefix of the names of files in the ledger's list of sources."""

MAX_FILES: Final = 10_000

RETRY_INTERVAL: Final = 60.0
"""Seconds until calls above `watch.max_calls` are tried again."""

ANSWER_TIMEOUT: Final = 10.0
"""Seconds to wait for a file system."""

Found: TypeAlias = "tuple[dict[str, FileStat], str | None]"
"""The files that match a pattern, by path, and why others are left out."""

_log = structlog.get_logger(__name__)


def find_files(pattern: str, limit: int = MAX_FILES) -> Found:
    """Return the files that match a pattern, at most `limit` + 1. Blocking."""
    files: dict[str, FileStat] = {}
    unprintable = 0
    for path in file_watcher.find(pattern):
        if found := stat_file(path):
            if path.isprintable():
                files[path] = found
            else:
                unprintable += 1
        if len(files) > limit:
            break
    return files, f"finds {unprintable} files with unprintable names" if unprintable else None


def _can_be_listed(folder: Path) -> bool:
    """Return whether a folder exists and can be listed. Blocking."""
    with suppress(OSError), os.scandir(folder) as entries:
        next(entries, None)
        return True
    return False


@dataclass(slots=True, eq=False)
class _Reading:
    """The progress of reading a file in batches."""

    change: Change
    calls: Iterator[CallConfig]
    problems: Problems
    batches: list[list[NewCall]] = field(default_factory=list)  # read, and not added yet
    rows: set[int] = field(default_factory=set)  # of its calls in the ledger
    refused: Counter[str] = field(default_factory=Counter)  # calls above `watch.max_calls`
    settled: bool = False  # it was complete, and did not change until the end

    def read_batch(self) -> None:
        """Read the next calls; an empty batch is the end. Blocking."""
        batch: list[NewCall] = []
        with suppress(ConfigError):  # its problems are in `problems`
            batch.extend(map(new_call, islice(self.calls, BATCH_SIZE)))
        if not batch:
            path = self.change.path
            self.settled = self.change.settled and stat_file(path) == self.change.stat
        self.batches.append(batch)


class FilesSource(Source):
    """Reads the files that match the patterns, and reads them again when they change.

    Each file is a source of its own in the ledger: a call that no file contains any more is
    removed. Disks and networks may fail: nothing is removed for an invalid file, for a missing file
    that a pattern names without a wildcard, or for a file in a folder that cannot be listed.

    A file system that does not respond delays only its own files: a check waits `timeout` once,
    and later checks skip these files until the file system responds. Then reading continues where
    it was, because a batch of a large file with many invalid calls may take longer than `timeout`.
    """

    name = "files"

    def __init__(
        self,
        tracker: CallTracker,
        *,
        find: Callable[[str], Found] = find_files,
        read: Callable[..., Iterator[CallConfig]] = read_calls,
        timeout: float = ANSWER_TIMEOUT,
        limit: int = MAX_FILES,
        retry_interval: float = RETRY_INTERVAL,
    ) -> None:
        super().__init__(tracker)
        self._find = find
        self._read = read
        self._limit = limit
        self._retry_interval = retry_interval
        self._threads = DetachedThreads(timeout)
        self._lock = asyncio.Lock()  # one check at a time
        self._patterns: Sequence[str] = ()
        self._context: tuple[Sequence[str], Sequence[str]] = (), ()  # accounts and labels
        self._late: dict[str, list[Found]] = {}  # results of searches that timed out
        self._readings: dict[str, _Reading] = {}  # of files whose reading timed out
        self._watcher = FileWatcher()
        self._named: set[str] = set()  # files that were read, or have calls in the ledger
        self._missing: set[str] = set()  # of those, not found in the last check
        self._full: dict[str, float] = {}  # when to try refused calls again
        # Of the last search: the paths, the patterns that timed out, and whether these are all.
        self._paths: Collection[str] = ()
        self._silent, self._complete = set[str](), False

    async def configure(self, watch: WatchConfig, context: SourceContext) -> None:
        """Apply a configuration: read all files again if it has changed, else check for changes."""
        async with self._lock:
            names = context.accounts, context.labels
            same = (self._patterns, self._context) == (watch.files, names)
            if not same:
                self._status.configure(shown=bool(watch.files))
                self._patterns, self._context = watch.files, names
                self._watcher = FileWatcher()
                self._full, self._readings, self._missing = {}, {}, set()
                sources = await self._tracker.sources()
                self._named = {
                    name.removeprefix(PREFIX) for name in sources if name.startswith(PREFIX)
                }
            await self._add(wait=same)

    async def remove_missing(self) -> None:
        async with self._lock:
            await self._remove_missing()

    async def run(self) -> None:
        """Check for changes twice a second, until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL)
            await self.check()

    async def check(self) -> None:
        """Check for changes once; the next check retries what failed."""
        problem = None
        async with self._lock:
            try:
                await self._add(wait=True)
                await self._remove_missing()
            except LedgerError as error:
                problem = str(error)
        self._report("the ledger", problem)

    async def _add(self, *, wait: bool) -> None:
        """Add the calls of new and changed files."""
        files = await self._search()
        now = time.monotonic()
        for path in [path for path, due in self._full.items() if due <= now]:
            del self._full[path]
            self._watcher.forget(path)
        first = {path: files[path] for path in sorted(files)[: self._limit]}
        for change in self._watcher.compare(first, wait=wait):
            if self._threads.hangs(change.path):
                continue  # already reported
            try:
                await self._read_file(change, report=wait or change.settled)
            except SourceError as error:
                self._report(change.path, f"cannot be read: {error}")
                return  # the next check skips this file and reads the others

    async def _search(self) -> dict[str, FileStat]:
        items = {f"{OPTION}: {pattern}": pattern for pattern in self._patterns}
        results = await asyncio.gather(*map(self._find_files, items, items.values()))
        files: dict[str, FileStat] = {}
        self._silent, self._complete = set(), True
        for (item, pattern), result in zip(items.items(), results, strict=True):
            if isinstance(result, SourceError):
                self._silent.add(pattern)
                problem: str | None = f"cannot be searched: {result}"
            else:
                found, problem = result
                files |= found
                self._complete = self._complete and len(found) <= self._limit
            self._report(item, problem)
        self._report(
            OPTION, f"finds over {self._limit} files" if len(files) > self._limit else None
        )
        self._paths = files.keys()
        return files

    async def _find_files(self, item: str, pattern: str) -> Found | SourceError:
        """Return the result of a search, possibly of an earlier one that timed out."""
        results = self._late.setdefault(item, [])
        if not results:
            try:
                await self._threads.run(item, lambda: results.append(self._find(pattern)))
            except SourceError as error:
                return error
        del self._late[item]
        return results[0]

    async def _read_file(self, change: Change, *, report: bool) -> None:
        path = change.path
        self._named.add(path)
        reading = await self._add_calls(change)
        if reading.settled and not reading.problems.total:
            # Removing calls that are not in the file any more may make room for others.
            await self._tracker.keep_only(PREFIX + path, reading.rows)
            if reading.refused:
                reading = await self._add_calls(change)
        _log.debug("call file read", file=path)
        problem = "\n".join(map(str, reading.problems.listed()))
        if reading.refused:
            problem = problem or too_many(reading.refused)
            self._full[path] = time.monotonic() + self._retry_interval
        if reading.settled:
            self._watcher.mark_read(reading.change)
        if report:
            self._report(path, problem or None)

    async def _add_calls(self, change: Change) -> _Reading:
        """Add the calls of a file in batches; continue an attempt that timed out."""
        path = change.path
        if (reading := self._readings.pop(path, None)) is None:
            problems = Problems(path)
            calls = self._read(path, *self._context, problems, whole=change.settled)
            reading = _Reading(change, calls, problems)
        while True:
            if not reading.batches:
                try:
                    await self._threads.run(path, reading.read_batch)
                except SourceError:
                    self._readings[path] = reading
                    raise
            if not (batch := reading.batches.pop()):
                return reading
            rows, refused = await self._tracker.add(PREFIX + path, batch)
            reading.rows |= rows
            reading.refused += refused

    async def _remove_missing(self) -> None:
        """Remove the calls of removed files, and update the status."""
        if self._complete:
            gone = self._named.difference(self._paths)
            missing = {path for path in gone if not matches(path, self._silent)}
            for path in sorted(missing):
                if not matches(path, self._patterns) or (
                    path in self._missing and await self._is_removed(path)
                ):
                    await self._tracker.keep_only(PREFIX + path, set())
                    self._named.discard(path)
                    self._readings.pop(path, None)
                    self._status.forget(path)
                    _log.info("call file removed", file=path)
            self._missing = missing
        for path in literals(set(self._patterns) - self._silent):
            if path not in self._paths:
                self._report(path, "cannot be read: no such file")
        if self._patterns and not self._status.problem:
            self._status.succeed()

    async def _is_removed(self, path: str) -> bool:
        """Return whether a file that patterns do not find any more was removed on purpose."""
        folder = Path(path).parent
        if path in literals(self._patterns) or self._threads.hangs(folder):
            return False  # already reported
        try:
            listable = await self._threads.run(folder, partial(_can_be_listed, folder))
        except SourceError:
            listable = False
        if not listable:
            self._report(path, "cannot be read: its folder is missing or cannot be listed")
        return listable

    def _report(self, item: str, problem: str | None) -> None:
        if self._status.report(item, problem):
            self._status.count_error()


def check_files(patterns: Sequence[str], accounts: Sequence[str], labels: Sequence[str]) -> int:
    """Read every file once, and return the number of their calls. Blocking.

    Raises a `ConfigError` with every problem of every file.
    """
    paths = set(literals(patterns))
    found: list[Problem] = []
    for pattern in patterns:
        files, problem = find_files(pattern)
        paths |= files.keys()
        if problem:
            found.append(Problem(f"{OPTION}: {pattern}", 0, "", problem))
    if len(paths) > MAX_FILES:
        found.append(Problem(OPTION, 0, "", f"finds over {MAX_FILES} files"))
    calls = 0
    for path in sorted(paths):
        problems = Problems(path)
        with suppress(ConfigError):  # its problems are in `problems`
            calls += sum(1 for _ in read_calls(path, accounts, labels, problems))
        found += problems.listed()
    if found:
        raise ConfigError(tuple(found))
    return calls
