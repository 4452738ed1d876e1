"""The source `files`: files of calls that the patterns of `watch.files` find."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final, Generic, NamedTuple, TypeVar

import structlog

from exporter.config import WatchConfig
from exporter.config.document import Problems
from exporter.config.watch import CallConfig
from exporter.errors import ConfigError, LedgerError, Problem, SourceError
from exporter.ledger.types import BATCH_SIZE, NewCall
from exporter.sources import globs
from exporter.sources.file_watcher import INTERVAL, Change, FileStat, FileWatcher, stat_file
from exporter.sources.source import CallSink, Source, SourceContext
from exporter.sources.tabular import read_calls
from exporter.threads import DetachedThreads

OPTION: Final = "watch.files"
"""What names the patterns in the configuration."""

PREFIX: Final = "file:"
"""Before a file's path, its name as a source in the ledger."""

MAX_FILES: Final = 10_000

RETRY_INTERVAL: Final = 60.0
"""Seconds after which calls that there was no room for are tried again."""

ANSWER_TIMEOUT: Final = 10.0
"""Seconds that a look waits for a file system."""

T = TypeVar("T")

_log = structlog.get_logger(__name__)


class Found(NamedTuple):
    """What patterns find.

    Attributes:
        files: the files, as they are.
        unprintable: how many have a name that the ledger and the log cannot hold as text.
    """

    files: dict[str, FileStat]
    unprintable: int = 0


def find_files(pattern: str, limit: int = MAX_FILES) -> Found:
    """Return the files of a pattern, up to one more than the limit. Blocking."""
    files: dict[str, FileStat] = {}
    unprintable = 0
    for path in globs.find(pattern):
        if found := stat_file(path):
            if path.isprintable():
                files[path] = found
            else:
                unprintable += 1
        if len(files) > limit:
            break
    return Found(files, unprintable)


def _can_be_listed(folder: Path) -> bool:
    """Return whether a folder exists and can be listed. Blocking."""
    with suppress(OSError), os.scandir(folder) as entries:
        next(entries, None)
        return True
    return False


class _BlockingCall(Generic[T]):
    """Calls a blocking function on a file system that may not answer.

    A result that comes too late is returned by the next call.
    """

    def __init__(self, threads: DetachedThreads) -> None:
        self._threads = threads
        self._results: list[T] = []

    @property
    def hangs(self) -> bool:
        return self._threads.hangs(self)

    async def result(self, function: Callable[[], T]) -> T:
        """Return what a function returns, or returned to an earlier call that gave up.

        Raises:
            SourceError: the file system does not answer.
        """
        if not self._results:
            await self._threads.run(self, lambda: self._results.append(function()))
        return self._results.pop()


class _Reading:
    """A file that is being read, a batch of calls at a time.

    Attributes:
        change: the file as it was found.
        problems: what is wrong with it.
        settled: the file was complete, and did not change until its end was reached.
        rows: of the calls that are known by now.
        refused: how many calls of each account there was no room for.
        count: calls that were read.
    """

    def __init__(
        self,
        change: Change,
        calls: Iterator[CallConfig],
        problems: Problems,
        threads: DetachedThreads,
    ) -> None:
        self.change = change
        self.problems = problems
        self.settled = change.settled
        self.rows: set[int] = set()
        self.refused = Counter[str]()
        self.count = 0
        self._calls = calls
        self._batch = _BlockingCall[list[NewCall] | ConfigError](threads)

    @property
    def hangs(self) -> bool:
        return self._batch.hangs

    async def batch(self) -> list[NewCall]:
        """Return the next calls; none at the end.

        Raises:
            ConfigError: the file cannot be read any further.
            SourceError: the file system does not answer; once it does, this may go on.
        """
        batch = await self._batch.result(self._read_batch)
        if isinstance(batch, ConfigError):
            raise batch
        self.count += len(batch)
        return batch

    def _read_batch(self) -> list[NewCall] | ConfigError:
        result: list[NewCall] | ConfigError
        try:
            calls = islice(self._calls, BATCH_SIZE)
            result = [NewCall(call.account, call.reference_id, call.labels) for call in calls]
        except ConfigError as error:
            result = error
        at_end = result == [] or isinstance(result, ConfigError)
        if at_end and stat_file(self.change.path) != self.change.stat:
            self.settled = False  # what it names now was not read
        return result


class FilesSource(Source):
    """Reads the files that the patterns of a configuration find, again when they change.

    Each file is a source of its own in the ledger, named by its path: a call that no file names any
    more is removed. A file with a problem removes nothing. Nor does one that is missing though it
    is named without a wildcard, or whose folder cannot be listed: such things happen to disks and
    networks. One that a wildcard found and does not find any more was removed.

    A file system that does not answer holds up only the patterns that lead to it, and its files: a
    look waits for `timeout` once, and later ones go on without until there is an answer.

    Args:
        sink: takes the calls.
        find: returns the files of a pattern.
        read: reads a file, as `read_calls`.
        timeout: seconds that a look waits for a file system.
        limit: files that are read.
        retry_interval: seconds after which calls that there was no room for are tried again.
    """

    name = "files"

    def __init__(
        self,
        sink: CallSink,
        *,
        find: Callable[[str], Found] = find_files,
        read: Callable[..., Iterator[CallConfig]] = read_calls,
        timeout: float = ANSWER_TIMEOUT,
        limit: int = MAX_FILES,
        retry_interval: float = RETRY_INTERVAL,
    ) -> None:
        super().__init__(sink)
        self._find = find
        self._read = read
        self._limit = limit
        self._retry_interval = retry_interval
        self._threads = DetachedThreads(timeout)
        self._lock = asyncio.Lock()  # one look at a time
        self._context: tuple[Sequence[str], Sequence[str]] = (), ()  # accounts and labels
        self._searches: dict[str, _BlockingCall[Found]] = {}  # by pattern
        self._readings: dict[str, _Reading] = {}  # by file
        self._watcher = FileWatcher()
        self._named: set[str] = set()  # files that name calls in the ledger
        self._missing: set[str] = set()  # of those, not found at the last look
        self._full: dict[str, float] = {}  # files to be read again, and when
        # Of the last look: the paths, the patterns without an answer, and whether these are all.
        self._found: tuple[Collection[str], set[str], bool] = (), set(), False

    async def configure(self, watch: WatchConfig, context: SourceContext) -> None:
        """Read everything anew; where nothing has changed, this is but another look."""
        async with self._lock:
            same = self._context == (context.accounts, context.labels)
            if same and self._searches.keys() == set(watch.files):
                await self._add(wait=True)
                return
            self._status.configure(shown=bool(watch.files))
            self._watcher = FileWatcher()
            self._full, self._readings, self._missing = {}, {}, set()
            named = await self._sink.sources()
            self._named = {name.removeprefix(PREFIX) for name in named if name.startswith(PREFIX)}
            self._context = context.accounts, context.labels
            self._searches = {
                pattern: self._searches.get(pattern) or _BlockingCall(self._threads)
                for pattern in watch.files
            }
            await self._add(wait=False)

    async def remove_missing(self) -> None:
        """Remove the calls of files that were removed."""
        async with self._lock:
            await self._remove_missing()

    async def run(self) -> None:
        """Look for changes twice a second, until cancelled."""
        try:
            while True:
                await asyncio.sleep(INTERVAL)
                await self.look()
        finally:
            self._threads.close()

    async def look(self) -> None:
        """Look for changes once; what fails is tried again at the next look."""
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
        files, silent, complete = await self._search()
        self._found = files.keys(), silent, complete
        now = time.monotonic()
        for path in [path for path, due in self._full.items() if due <= now]:
            del self._full[path]
            self._watcher.forget(path)
        looked_at = {path: files[path] for path in sorted(files)[: self._limit]}
        for change in self._watcher.compare(looked_at, wait=wait):
            reading = self._readings.get(change.path)
            if reading and reading.hangs:
                continue  # reported before
            try:
                await self._read_file(change, report=wait or change.settled)
            except SourceError as error:
                self._report(change.path, f"cannot be read: {error}")
                return  # the others follow at the next look, which does not wait for this one

    async def _search(self) -> tuple[dict[str, FileStat], set[str], bool]:
        """Return the files, the patterns without an answer, and whether these are all files."""
        asked = [pattern for pattern, search in self._searches.items() if not search.hangs]
        results = await asyncio.gather(
            *(self._searches[one].result(partial(self._find, one)) for one in asked),
            return_exceptions=True,
        )
        silent = set(self._searches).difference(asked)
        for pattern in silent:
            if not self._status.has_problem(item := f"{OPTION}: {pattern}"):
                self._report(item, "cannot be looked for: no answer")
        files: dict[str, FileStat] = {}
        complete = True
        for pattern, result in zip(asked, results, strict=True):
            problem = None
            if isinstance(result, SourceError):
                silent.add(pattern)
                problem = f"cannot be looked for: {result}"
            elif isinstance(result, BaseException):
                raise result
            else:
                files |= result.files
                complete = complete and len(result.files) <= self._limit
                if count := result.unprintable:
                    problem = f"finds {count} files whose names are no printable text"
            self._report(f"{OPTION}: {pattern}", problem)
        too_many = len(files) > self._limit
        self._report(OPTION, f"finds over {self._limit} files" if too_many else None)
        return files, silent, complete

    async def _read_file(self, change: Change, *, report: bool) -> None:
        path, source = change.path, PREFIX + change.path
        problem = None
        try:
            reading = await self._add_calls(change)
            if reading.settled and not reading.problems.total:
                # What it does not name any more may be all that there is no room for.
                await self._sink.keep_only(source, reading.rows)
                if reading.refused:
                    reading = await self._add_calls(change)
            problem = "\n".join(map(str, reading.problems.listed()))
        except ConfigError as error:
            reading = self._readings.pop(path)
            problem = str(error)
        else:
            _log.debug("file of calls read", file=path, calls=reading.count)
            if reading.refused:
                full = ", ".join(sorted(reading.refused))
                problem = f"some of its calls are beyond `watch.max_calls` (account {full})"
                self._full[path] = time.monotonic() + self._retry_interval
        if reading.settled:
            self._watcher.mark_read(reading.change)
        if report:
            self._report(path, problem or None)

    async def _add_calls(self, change: Change) -> _Reading:
        """Add the calls of a file to its end; resume where the file system did not answer."""
        path = change.path
        reading = self._readings.get(path) or self._open(change)
        self._readings[path] = reading
        while batch := await reading.batch():
            try:
                added = await self._sink.add(PREFIX + path, batch)
            except BaseException:
                del self._readings[path]  # its next batch is not the one to resume with
                raise
            self._named.add(path)
            reading.rows |= added.rows
            reading.refused += added.refused
        del self._readings[path]
        return reading

    def _open(self, change: Change) -> _Reading:
        problems = Problems(change.path)
        calls = self._read(change.path, *self._context, problems, whole=change.settled)
        return _Reading(change, calls, problems, self._threads)

    async def _remove_missing(self) -> None:
        """Remove the calls of files that were removed, and note whether all is well."""
        paths, silent, complete = self._found
        if complete:
            missing = {
                path for path in self._named.difference(paths) if not globs.matches(path, silent)
            }
            for path in sorted(missing):
                if path in self._missing or not globs.matches(path, self._searches):
                    await self._remove_file(path)
            self._missing = missing
        for path in globs.literals(self._searches.keys() - silent):
            if path not in paths:
                self._report(path, "cannot be read: no such file")
        if self._searches and not self._status.problem:
            self._status.succeed()

    async def _remove_file(self, path: str) -> None:
        if globs.matches(path, self._searches):
            folder = Path(path).parent
            if path in globs.literals(self._searches) or self._threads.hangs(folder):
                return  # reported elsewhere
            try:
                listable = await self._threads.run(folder, partial(_can_be_listed, folder))
            except SourceError:
                listable = False
            if not listable:
                self._report(path, "cannot be read: its folder is gone, or cannot be listed")
                return
        await self._sink.keep_only(PREFIX + path, set())
        self._named.discard(path)
        self._watcher.forget(path)  # it may come back as it was
        self._status.forget(path)
        _log.info("file of calls was removed", file=path)

    def _report(self, item: str, problem: str | None) -> None:
        if self._status.report(item, problem):
            self._status.count_error()


def check_files(patterns: Sequence[str], accounts: Sequence[str], labels: Sequence[str]) -> int:
    """Read every file once; return how many calls they name. Blocking.

    Raises:
        ConfigError: with every problem of every file.
    """
    paths = set(globs.literals(patterns))
    found: list[Problem] = []
    for pattern in patterns:
        result = find_files(pattern)
        paths |= result.files.keys()
        if result.unprintable:
            message = f"finds {result.unprintable} files whose names are no printable text"
            found.append(Problem(f"{OPTION}: {pattern}", 0, "", message))
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
