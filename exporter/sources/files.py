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
from typing import Final, NamedTuple, TypeVar, cast

import structlog

from exporter.config import WatchConfig
from exporter.config.document import Problems
from exporter.config.watch import CallConfig
from exporter.errors import ConfigError, LedgerError, Problem, SourceError
from exporter.ledger.types import BATCH_SIZE, NewCall
from exporter.sources import file_watcher
from exporter.sources.file_watcher import (
    INTERVAL,
    Change,
    FileStat,
    FileWatcher,
    literals,
    matches,
    stat_file,
)
from exporter.sources.source import Source, SourceContext
from exporter.sources.tabular import read_calls
from exporter.threads import DetachedThreads
from exporter.tracker import CallTracker

OPTION: Final = "watch.files"
"""The configuration key of the patterns."""

PREFIX: Final = "file:"
"""Prefix of a file's path in its name as a source in the ledger."""

MAX_FILES: Final = 10_000

RETRY_INTERVAL: Final = 60.0
"""Seconds until calls above `watch.max_calls` are tried again."""

ANSWER_TIMEOUT: Final = 10.0
"""Seconds to wait for a file system."""

T = TypeVar("T")

_log = structlog.get_logger(__name__)


class Found(NamedTuple):
    """The result of a pattern.

    Attributes:
        files: the files that match, by path.
        problem: why other files are left out.
    """

    files: dict[str, FileStat]
    problem: str | None = None


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
    problem = f"finds {unprintable} files with unprintable names"
    return Found(files, problem if unprintable else None)


def _can_be_listed(folder: Path) -> bool:
    """Return whether a folder exists and can be listed. Blocking."""
    with suppress(OSError), os.scandir(folder) as entries:
        next(entries, None)
        return True
    return False


@dataclass(slots=True, eq=False)
class _Reading:
    """The progress of reading a file in batches.

    Attributes:
        change: the file as it was when reading started.
        calls: the remaining calls.
        problems: the problems of the file.
        rows: ledger rows of the calls that were added or known.
        refused: number of calls above `watch.max_calls` by account.
        settled: the file was complete, and did not change until it was read to the end.
    """

    change: Change
    calls: Iterator[CallConfig]
    problems: Problems
    rows: set[int] = field(default_factory=set)
    refused: Counter[str] = field(default_factory=Counter)
    settled: bool = False

    def next_batch(self) -> list[NewCall] | ConfigError:
        """Return the next calls, or an empty list at the end, or the error. Blocking."""
        batch: list[NewCall] | ConfigError
        try:
            calls = islice(self.calls, BATCH_SIZE)
            batch = [NewCall(call.account, call.reference_id, call.labels) for call in calls]
        except ConfigError as error:
            batch = error
        if not isinstance(batch, list) or not batch:
            self.settled = self.change.settled and stat_file(self.change.path) == self.change.stat
        return batch


class FilesSource(Source):
    """Reads the files that match the patterns, and reads them again when they change.

    Each file is a source of its own in the ledger: a call that no file contains any more is
    removed. As disks and networks fail, nothing is removed for a file that is invalid, is missing
    though a pattern names it without a wildcard, or is in a folder that cannot be listed.

    A file system that does not respond delays only its own files: a check waits `timeout` once,
    and later checks skip these files until the file system responds.

    Args:
        tracker: receives the calls.
        find: returns the files that match a pattern.
        read: reads a file, as `read_calls` does.
        timeout: seconds to wait for a file system.
        limit: maximum number of files.
        retry_interval: seconds until calls above `watch.max_calls` are tried again.
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
        self._late: dict[str, list[object]] = {}  # results of calls that timed out
        self._readings: dict[str, _Reading] = {}  # by file
        self._watcher = FileWatcher()
        self._named: set[str] = set()  # files with calls in the ledger
        self._missing: set[str] = set()  # of those, not found in the last check
        self._full: dict[str, float] = {}  # when to try refused calls again
        # Of the last check: the paths, the patterns that timed out, and whether these are all.
        self._found: tuple[Collection[str], set[str], bool] = (), set(), False

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
                self._late = {key: self._late[key] for key in self._late if key.startswith(OPTION)}
                sources = await self._tracker.sources()
                self._named = {
                    name.removeprefix(PREFIX) for name in sources if name.startswith(PREFIX)
                }
            await self._add(wait=same)

    async def remove_missing(self) -> None:
        """Remove the calls of removed files."""
        async with self._lock:
            await self._remove_missing()

    async def run(self) -> None:
        """Check for changes twice a second, until cancelled."""
        try:
            while True:
                await asyncio.sleep(INTERVAL)
                await self.look()
        finally:
            self._threads.close()

    async def look(self) -> None:
        """Check for changes once; the next check retries what failed."""
        problem = None
        async with self._lock:
            try:
                await self._add(wait=True)
                await self._remove_missing()
            except LedgerError as error:
                problem = str(error)
        self._report("the ledger", problem)

    async def _answer(self, key: str, work: Callable[[], T]) -> T:
        """Return the result of a function on files, possibly of an earlier call that timed out.

        Raises:
            SourceError: the file system does not respond.
        """
        results = self._late.setdefault(key, [])
        if not results:
            await self._threads.run(key, lambda: results.append(work()))
        del self._late[key]
        return cast("T", results[0])

    async def _add(self, *, wait: bool) -> None:
        """Add the calls of new and changed files."""
        files, silent, complete = await self._search()
        self._found = files.keys(), silent, complete
        now = time.monotonic()
        for path in [path for path, due in self._full.items() if due <= now]:
            del self._full[path]
            self._watcher.forget(path)
        looked_at = {path: files[path] for path in sorted(files)[: self._limit]}
        for change in self._watcher.compare(looked_at, wait=wait):
            if self._threads.hangs(change.path):
                continue  # already reported
            try:
                await self._read_file(change, report=wait or change.settled)
            except SourceError as error:
                self._report(change.path, f"cannot be read: {error}")
                return  # the next check skips this file and reads the others

    async def _search(self) -> tuple[dict[str, FileStat], set[str], bool]:
        """Return the files, the patterns that timed out, and whether the list is complete."""
        items = {f"{OPTION}: {pattern}": pattern for pattern in self._patterns}
        results = await asyncio.gather(
            *(self._answer(item, partial(self._find, pattern)) for item, pattern in items.items()),
            return_exceptions=True,
        )
        files: dict[str, FileStat] = {}
        silent, complete = set[str](), True
        for (item, pattern), result in zip(items.items(), results, strict=True):
            if isinstance(result, Found):
                files |= result.files
                complete = complete and len(result.files) <= self._limit
                self._report(item, result.problem)
            elif isinstance(result, SourceError):
                silent.add(pattern)
                self._report(item, f"cannot be searched: {result}")
            else:
                raise result
        too_many = len(files) > self._limit
        self._report(OPTION, f"finds over {self._limit} files" if too_many else None)
        return files, silent, complete

    async def _read_file(self, change: Change, *, report: bool) -> None:
        path, source = change.path, PREFIX + change.path
        problem = None
        try:
            reading = await self._add_calls(change)
            if reading.settled and not reading.problems.total:
                # Removing calls that are not in the file any more may make room for others.
                await self._tracker.keep_only(source, reading.rows)
                if reading.refused:
                    reading = await self._add_calls(change)
            problem = "\n".join(map(str, reading.problems.listed()))
        except ConfigError as error:
            reading = self._readings.pop(path)
            problem = str(error)
        else:
            _log.debug("call file read", file=path)
            if reading.refused:
                full = ", ".join(sorted(reading.refused))
                problem = f"some of its calls exceed `watch.max_calls` (account {full})"
                self._full[path] = time.monotonic() + self._retry_interval
        if reading.settled:
            self._watcher.mark_read(reading.change)
        if report:
            self._report(path, problem or None)

    async def _add_calls(self, change: Change) -> _Reading:
        """Add the calls of a file; resume if reading timed out before."""
        path = change.path
        if (reading := self._readings.get(path)) is None:
            problems = Problems(path)
            calls = self._read(path, *self._context, problems, whole=change.settled)
            reading = self._readings[path] = _Reading(change, calls, problems)
        while batch := await self._answer(path, reading.next_batch):
            if isinstance(batch, ConfigError):
                raise batch
            try:
                added = await self._tracker.add(PREFIX + path, batch)
            except BaseException:
                del self._readings[path]  # a batch was lost: start again
                raise
            self._named.add(path)
            reading.rows |= added.rows
            reading.refused += added.refused
        return self._readings.pop(path)

    async def _remove_missing(self) -> None:
        """Remove the calls of removed files, and update the status."""
        paths, silent, complete = self._found
        if complete:
            missing = {path for path in self._named.difference(paths) if not matches(path, silent)}
            for path in sorted(missing):
                if path in self._missing or not matches(path, self._patterns):
                    await self._remove_file(path)
            self._missing = missing
        for path in literals(set(self._patterns) - silent):
            if path not in paths:
                self._report(path, "cannot be read: no such file")
        if self._patterns and not self._status.problem:
            self._status.succeed()

    async def _remove_file(self, path: str) -> None:
        if matches(path, self._patterns):
            folder = Path(path).parent
            if path in literals(self._patterns) or self._threads.hangs(folder):
                return  # already reported
            try:
                listable = await self._threads.run(folder, partial(_can_be_listed, folder))
            except SourceError:
                listable = False
            if not listable:
                self._report(path, "cannot be read: its folder is missing or cannot be listed")
                return
        await self._tracker.keep_only(PREFIX + path, set())
        self._named.discard(path)
        self._watcher.forget(path)  # it may be restored unchanged
        self._status.forget(path)
        _log.info("call file removed", file=path)

    def _report(self, item: str, problem: str | None) -> None:
        if self._status.report(item, problem):
            self._status.count_error()


def check_files(patterns: Sequence[str], accounts: Sequence[str], labels: Sequence[str]) -> int:
    """Read every file once, and return the number of their calls. Blocking.

    Raises:
        ConfigError: a file is invalid; lists every problem of every file.
    """
    paths = set(literals(patterns))
    found: list[Problem] = []
    for pattern in patterns:
        result = find_files(pattern)
        paths |= result.files.keys()
        if result.problem:
            found.append(Problem(f"{OPTION}: {pattern}", 0, "", result.problem))
    if len(paths) > MAX_FILES:
        found.append(Problem(OPTION, 0, "", f"finds over {MAX_FILES} files"))
    calls = 0
    for path in sorted(paths):
        problems = Problems(path)
        try:
            calls += sum(1 for _ in read_calls(path, accounts, labels, problems))
        except ConfigError as error:
            found += error.problems
        else:
            found += problems.listed()
    if found:
        raise ConfigError(tuple(found))
    return calls
