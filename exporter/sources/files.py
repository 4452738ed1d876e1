"""The watch source of files: `watch.files`."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice, starmap
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import structlog

from exporter.config.calls import CallConfig
from exporter.config.problems import Problems
from exporter.errors import ConfigError, LedgerError, Problem, SourceError
from exporter.ledger.records import CHUNK, NewCall, Tally
from exporter.source_status import SourceStatuses
from exporter.sources.call_files import read_calls
from exporter.sources.changes import Change, Stamp, Watched, stamp_of
from exporter.sources.patterns import covered, found, literals
from exporter.threads import DetachedThreads

SOURCE: Final = "files"
"""The source's name in metrics."""

OPTION: Final = "watch.files"
"""What names the patterns in the configuration."""

PREFIX: Final = "file:"
"""Before a file's path, its name in the ledger."""

MAX_FILES: Final = 10_000

SHOWN: Final = 10
"""Files whose problems are shown at a time."""

RETRY_EVERY: Final = 60.0
"""Seconds after which calls that there was no room for are tried again."""

ANSWER_TIMEOUT: Final = 10.0
"""Seconds that a look waits for a file system."""

Calls = Iterator[CallConfig]

_log = structlog.get_logger(__name__)


class Intake(Protocol):
    """Who takes calls in: `exporter.tracker.CallTracker`."""

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


class Found(NamedTuple):
    """What a pattern finds.

    Attributes:
        files: the first of them, as they are.
        odd: how many have a name that the ledger and the log cannot hold as text.
    """

    files: dict[str, Stamp]
    odd: int


def find_files(pattern: str) -> Found:
    """Look for the files of a pattern, up to one more than `MAX_FILES`. Blocking."""
    files: dict[str, Stamp] = {}
    odd = 0
    for path in found(pattern):
        if stamp := stamp_of(path):
            if path.isprintable():
                files[path] = stamp
            else:
                odd += 1
        if len(files) > MAX_FILES:
            break
    return Found(files, odd)


class _Search:
    """Looks for the files of a pattern, for as long as that takes."""

    def __init__(self, find: Callable[[], Found]) -> None:
        self._find = find
        self._found: Found | None = None

    def run(self) -> None:
        """Look. Blocking."""
        self._found = self._find()

    async def result(self, threads: DetachedThreads) -> Found:
        """Return what was found: also by a search that was slow, and has ended since.

        Raises:
            SourceError: the file system does not answer.
        """
        if self._found is None:
            await threads.run(self, self.run)
        result, self._found = self._found, None
        assert result is not None  # noqa: S101 - `run` has ended
        return result


class _Reading:
    """A file that is being read, chunk by chunk.

    Attributes:
        change: the file as it was found.
        problems: what is wrong with it.
        settled: the file lay still until its end was reached.
        rows: of the calls that are known by now.
        refused: how many calls of each account there was no room for.
        count: calls that were read.
    """

    def __init__(self, change: Change, settings: Settings, read: Callable[..., Calls]) -> None:
        self.change = change
        self.problems = Problems(change.path)
        self.settled = change.settled
        self.rows: set[int] = set()
        self.refused = Counter[str]()
        self.count = 0
        self._calls = read(
            change.path,
            settings.accounts,
            settings.labels,
            self.problems,
            whole=change.settled,
        )
        self._chunk: list[NewCall] | None = None
        self._error: ConfigError | None = None

    def run(self) -> None:
        """Read the next chunk. Blocking."""
        try:
            calls = islice(self._calls, CHUNK)
            self._chunk = [NewCall(c.account, c.reference_id, c.labels) for c in calls]
        except ConfigError as error:
            self._error = error
        if not self._chunk and stamp_of(self.change.path) != self.change.stamp:
            self.settled = False  # what it names now was not read

    async def chunk(self, threads: DetachedThreads) -> list[NewCall]:
        """Return the next calls; none at the end.

        Raises:
            ConfigError: the file cannot be read any further.
            SourceError: the file system does not answer; where it does later, this may go on.
        """
        if self._chunk is None and self._error is None:
            await threads.run(self, self.run)
        if self._error is not None:
            raise self._error
        chunk, self._chunk = self._chunk, None
        assert chunk is not None  # noqa: S101 - `run` has ended
        self.count += len(chunk)
        return chunk


class CallFiles:
    """Reads the files that the patterns of a configuration find, again when they change.

    Each file is a source of its own in the ledger, named by its path: a call that no file names any
    more is let go. A file that is not as it should be lets go of nothing. Nor does one that is
    gone though it is named without a wildcard, or whose folder cannot be looked into: such things
    happen to disks and networks. One that a wildcard found and does not find any more was removed.

    A file system that does not answer holds up only the patterns that lead to it, and the files
    there: a look waits for `timeout` once, and later ones go on without until there is an answer.

    Args:
        intake: takes the calls.
        statuses: the state of each source.
        find: looks for the files of a pattern.
        read: reads a file, as `read_calls`.
        timeout: seconds that a look waits for a file system.
    """

    def __init__(
        self,
        intake: Intake,
        statuses: SourceStatuses,
        find: Callable[[str], Found] = find_files,
        read: Callable[..., Calls] = read_calls,
        timeout: float = ANSWER_TIMEOUT,
    ) -> None:
        self._intake = intake
        self._statuses = statuses
        self._find = find
        self._read = read
        self._threads = DetachedThreads(timeout)
        self._settings = Settings((), (), ())
        self._searches: dict[str, _Search] = {}  # by pattern
        self._readings: dict[str, _Reading] = {}  # by file
        self._watched = Watched()
        self._named: set[str] = set()  # files that name calls in the ledger
        self._missing: set[str] = set()  # of those, not there at the last look
        self._failing: dict[str, str] = {}  # by file, what was said
        self._full: dict[str, float] = {}  # files to be read again, and when

    def close(self) -> None:
        """End the threads."""
        self._threads.close()

    async def configure(self, settings: Settings) -> None:
        """Go over to other settings, and read everything anew; returns once all is taken in.

        Where nothing has changed, this is but another look.

        Raises:
            LedgerError: the ledger failed.
        """
        if settings == self._settings:
            await self._look(wait=True)
            return
        self._statuses.configure(SOURCE, used=bool(settings.patterns))
        self._watched = Watched()
        self._failing, self._full, self._readings = {}, {}, {}
        named = await self._intake.sources()
        self._named = {name.removeprefix(PREFIX) for name in named if name.startswith(PREFIX)}
        self._missing = set()
        self._settings = settings
        self._searches = {
            pattern: self._searches.get(pattern) or _Search(partial(self._find, pattern))
            for pattern in settings.patterns
        }
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
        there, silent, complete = await self._search()
        self._retry()
        looked_at = {path: there[path] for path in sorted(there)[:MAX_FILES]}
        changes = self._watched.compare(looked_at, wait=wait)
        # New ones first, so that a call that moves from file to file is watched all the time.
        await self._take_all(changes, wait=wait)
        if complete:
            missing = {path for path in self._named - there.keys() if not covered(path, silent)}
            await self._miss_all(missing)
        for path in literals(self._searches.keys() - silent):
            if path not in there:
                self._say(path, "cannot be read: no such file")
        if self._searches and not self._failing:
            self._statuses[SOURCE].succeeded()
        troubles = islice(self._failing.items(), SHOWN)
        problem = "\n".join(starmap(_with_path, troubles))
        if self._searches:
            self._statuses[SOURCE].problem = problem

    async def _search(self) -> tuple[dict[str, Stamp], set[str], bool]:
        """Return the files that there are, the patterns without an answer, and if these are all."""
        asked = [p for p, search in self._searches.items() if not self._threads.hangs(search)]
        results = await asyncio.gather(
            *(self._searches[pattern].result(self._threads) for pattern in asked),
            return_exceptions=True,
        )
        silent = set(self._searches).difference(asked)
        for pattern in silent:
            if (key := f"{OPTION}: {pattern}") not in self._failing:
                self._say(key, "cannot be looked for: no answer")  # since it was told last
        there: dict[str, Stamp] = {}
        complete = True
        for pattern, result in zip(asked, results, strict=True):
            if isinstance(result, SourceError):
                silent.add(pattern)
                self._say(f"{OPTION}: {pattern}", f"cannot be looked for: {result}")
            elif isinstance(result, BaseException):
                raise result
            else:
                there |= result.files
                complete = complete and len(result.files) <= MAX_FILES
                odd = f"finds {result.odd} files whose names are no printable text"
                self._say(f"{OPTION}: {pattern}", odd if result.odd else None)
        too_many = len(there) > MAX_FILES
        self._say(OPTION, f"finds over {MAX_FILES} files" if too_many else None)
        return there, silent, complete

    async def _take_all(self, changes: Iterable[Change], *, wait: bool) -> None:
        for change in changes:
            reading = self._readings.get(change.path)
            if reading and self._threads.hangs(reading):
                continue  # as was told
            try:
                await self._take(change, tell=wait or change.settled)
            except SourceError as error:
                self._say(change.path, f"cannot be read: {error}")
                return  # the others get their turn at the next look, which does not wait for it

    async def _take(self, change: Change, *, tell: bool) -> None:
        path, source = change.path, PREFIX + change.path
        try:
            reading = await self._add(change)
            if reading.settled and not reading.problems.total:
                # What it does not name any more may be all that there is no room for.
                await self._intake.keep_only(source, reading.rows)
                if reading.refused:
                    reading = await self._add(change)
        except ConfigError as error:
            reading = self._readings.pop(path)
            if reading.settled:
                self._watched.read(reading.change)
            if tell:
                self._say(path, str(error))
            return
        if reading.settled:
            self._watched.read(reading.change)
        _log.debug("file of calls read", file=path, calls=reading.count)
        problem = "\n".join(map(str, reading.problems.told()))
        if reading.refused:
            full = ", ".join(sorted(reading.refused))
            problem = f"some of its calls are beyond `watch.max_calls` (account {full})"
            self._full[path] = time.monotonic() + RETRY_EVERY
        if tell:
            self._say(path, problem or None)

    async def _add(self, change: Change) -> _Reading:
        """Add the calls of a file to its end; goes on where the file system did not answer."""
        path = change.path
        reading = self._readings.get(path) or _Reading(change, self._settings, self._read)
        self._readings[path] = reading
        while chunk := await reading.chunk(self._threads):
            try:
                taken = await self._intake.watch(PREFIX + path, chunk)
            except BaseException:
                del self._readings[path]  # its next chunk is not the one to go on with
                raise
            self._named.add(path)
            reading.rows |= taken.rows
            reading.refused += taken.refused
        del self._readings[path]
        return reading

    def _retry(self) -> None:
        """Have files whose calls there was no room for be read again after a while."""
        now = time.monotonic()
        for path in [path for path, due in self._full.items() if due <= now]:
            del self._full[path]
            self._watched.forget(path)

    async def _miss_all(self, missing: set[str]) -> None:
        for path in sorted(missing):
            if path in self._missing or not covered(path, self._searches):
                await self._miss(path)
        self._missing = missing

    async def _miss(self, path: str) -> None:
        """Let go of the calls of a file that was removed."""
        if covered(path, self._searches):
            folder = Path(path).parent
            if path in literals(self._searches) or self._threads.hangs(folder):
                return  # told by who looks
            look = partial(_can_be_listed, folder)
            try:
                listed = await self._threads.run(folder, look)
            except SourceError:
                listed = False
            if not listed:
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
            self._statuses[SOURCE].errors += 1
            _log.warning("file of calls is not as it should be", file=path, problem=problem)


def check_files(settings: Settings) -> int:
    """Read every file once; returns how many calls they name. Blocking.

    Raises:
        ConfigError: with every problem of every file.
    """
    paths = set(literals(settings.patterns))
    told: list[Problem] = []
    for pattern in settings.patterns:
        result = find_files(pattern)
        paths |= result.files.keys()
        if result.odd:
            message = f"finds {result.odd} files whose names are no printable text"
            told.append(Problem(f"{OPTION}: {pattern}", 0, "", message))
    if len(paths) > MAX_FILES:
        told.append(Problem(OPTION, 0, "", f"finds over {MAX_FILES} files"))
    calls = 0
    for path in sorted(paths):
        problems = Problems(path)
        try:
            calls += sum(1 for _ in read_calls(path, settings.accounts, settings.labels, problems))
        except ConfigError as error:
            told += error.problems
        else:
            told += problems.told()
    if told:
        raise ConfigError(tuple(told))
    return calls


def _with_path(path: str, problem: str) -> str:
    return problem if problem.startswith(path) else f"{path}: {problem}"


def _can_be_listed(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            next(entries, None)
    except OSError:
        return False
    return True
