"""The file that results are written to, and gone on with after a Ctrl-C or a crash."""

from __future__ import annotations

import csv
import fcntl
import io
import os
import shutil
import stat
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, NoReturn

from pydantic_core import from_json

from exporter.errors import ResultsError
from exporter.esms.codes import Outcome
from exporter.ids import reference_key
from exporter.lookup.line import COLUMNS, CallName, Line
from exporter.output import csv_header, csv_line, csv_text, json_line
from exporter.polling.circuit_breaker import GOOD

ENDINGS: Final = (".csv", ".json", ".jsonl", ".ndjson")


class ResultsFile:
    """A file with a line for each call, of which it may hold some already.

    Lines of calls that were not answered are taken out when they are asked for again, and so is a
    last line that was not written to its end. A file that holds anything else is left alone.

    Args:
        path: ends in one of `ENDINGS`; need not be there.
        wanted: the calls that are to be looked up.

    Attributes:
        answered: those of `wanted` that were answered before.

    Raises:
        ResultsError: it cannot be used; also from each method.
    """

    def __init__(self, path: Path, wanted: Collection[CallName]) -> None:
        self._path = path
        self._csv = path.suffix == ".csv"
        self._header = csv_header(COLUMNS).encode() if self._csv else b""
        self.answered: set[CallName] = set()
        self._files: list[BinaryIO] = []
        with self._told():
            # A link stays one, and what it leads to is replaced.
            self._place = path.resolve()
            file = self._locked(open(self._place, "a+b", buffering=0))  # noqa: SIM115, PTH123 - closed by `close`
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                self._fail("is no regular file")
            kept = self._read(file, wanted)
            if kept is not None:
                file = self._rewrite(kept)
            self._file = file
            self._size = file.seek(0, os.SEEK_END)
            if not self._size:
                self._append(self._header)

    def write(self, lines: Iterable[Line]) -> None:
        """Write some lines. Blocking."""
        as_line = csv_line if self._csv else json_line
        with self._told():
            self._append("".join(map(as_line, lines)).encode())

    def close(self) -> None:
        """See to it that what was written survives a power cut, too."""
        with self._told():
            os.fsync(self._file.fileno())
            self.abandon()

    def abandon(self) -> None:
        """Close it as it is."""
        for file in self._files:
            file.close()

    def _read(self, file: BinaryIO, wanted: Collection[CallName]) -> list[bytes] | None:
        """Note what was answered; return the lines to keep if that is not all of them."""
        file.seek(0)
        kept: list[bytes] = []
        dropped = False
        for number, data in enumerate(io.BytesIO(file.read()), 1):
            if not data.endswith(b"\n"):
                self._cut_off(data, number)
                dropped = True
            elif self._csv and number == 1:
                if data != self._header:
                    self._fail("is no file of results: its first line has other columns")
                kept.append(data)
            else:
                name, answered = self._parsed(data, number)
                if name in wanted and not answered:
                    dropped = True
                    continue
                kept.append(data)
                if answered:
                    self.answered.add(name)
        self.answered.intersection_update(wanted)
        return kept if dropped else None

    def _cut_off(self, data: bytes, number: int) -> None:
        start = b'{"reference_id":'
        if self._csv:
            # Whatever a line of CSV begins with, only the first is known.
            fits = number > 1 or self._header.startswith(data)
        else:
            fits = data.startswith(start) or start.startswith(data)
        if not fits:
            self._fail("is no file of results")

    def _parsed(self, data: bytes, number: int) -> tuple[CallName, bool]:
        try:
            if self._csv:
                (row,) = csv.reader([data.decode().rstrip("\n")], strict=True)
                fields = dict(zip(COLUMNS, map(csv_text, row), strict=True))
            else:
                fields = from_json(data)
            name = fields["account"], reference_key(fields["reference_id"])
            return name, Outcome(fields["outcome"]) in GOOD
        except (ValueError, KeyError, TypeError, AttributeError, csv.Error):
            self._fail(f"is no file of results: line {number} is none")

    def _rewrite(self, kept: Iterable[bytes]) -> BinaryIO:
        """Put a file with these lines in place of the old one, which stays whole until then."""
        aside = self._place.with_name(f".{self._place.name}.new")
        aside.unlink(missing_ok=True)
        new = self._locked(open(aside, "a+b", buffering=0))  # noqa: SIM115, PTH123 - closed by `close`
        shutil.copymode(self._place, aside)
        new.write(b"".join(kept))
        os.fsync(new.fileno())
        aside.replace(self._place)
        return new

    def _locked(self, file: BinaryIO) -> BinaryIO:
        self._files.append(file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._fail("is being written by another lookup")
        return file

    def _append(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._file.fileno(), rest) :]
        except OSError:
            # The disk is full, perhaps: no line stays that is half there.
            os.ftruncate(self._file.fileno(), self._size)
            raise
        self._size += len(data)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._fail(f"cannot be used: {error.strerror}")

    def _fail(self, message: str) -> NoReturn:
        self.abandon()
        raise ResultsError(f"{self._path}: {message}")
