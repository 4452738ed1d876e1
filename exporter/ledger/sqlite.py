"""A ledger in a file of SQLite: one exporter at a time, durable settings, copies."""

from __future__ import annotations

import fcntl
import math
import os
import secrets
import sqlite3
import stat
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import structlog
from sqlalchemy import Connection, Engine, create_engine, delete, event, insert, make_url, select
from sqlalchemy.pool import NullPool, StaticPool

from exporter.errors import LedgerBusyError, LedgerError
from exporter.ledger.clock import LedgerClock, Mark, Moment, resumed
from exporter.ledger.engine import READ_TIMEOUT, Database, revision
from exporter.ledger.schema import HEAD, clock_marks

_log = structlog.get_logger(__name__)

BUSY_TIMEOUT: Final = 5.0
"""Seconds to wait for another program that holds the file, such as one that copies it."""

# Far behind any byte that is written, and any that SQLite locks.
_LOCKED_BYTE: Final = 1 << 62

_RETRIES: Final = 1000
"""Marks that may follow each other in one -wal: two for each start beside the same reader."""

_DIRECTORY: Final = (
    "is a directory; name a file in it (Docker makes a directory where a file that is to be "
    "mounted does not exist)"
)

# What SQLite says, and what a person can do about it.
_ADVICE: Final = {
    sqlite3.SQLITE_NOTADB: "is not an SQLite database; name another file in `ledger.url`",
    sqlite3.SQLITE_CORRUPT: "is damaged; restore it from a backup, or name another file",
    sqlite3.SQLITE_READONLY: "cannot be written; make the file and its folder writable",
    sqlite3.SQLITE_PERM: "cannot be accessed; make the file and its folder writable",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened; make sure its folder exists and is writable",
    sqlite3.SQLITE_FULL: "cannot grow; the disk is full",
    sqlite3.SQLITE_IOERR: "cannot be read or written; check the disk",
    sqlite3.SQLITE_BUSY: "is locked by another program; end it",
    sqlite3.SQLITE_INTERRUPT: "took too long; check the disk",
}

# Steps of SQLite's machine between two looks at the time: a fraction of a millisecond.
_STEPS: Final = 10_000


class SqliteFile(Database):
    """A file of SQLite: how it is opened and read, and what its errors mean."""

    shared = False

    def __init__(self, url: str) -> None:
        path = make_url(url).database
        if not path:
            raise LedgerError("ledger: expected a file, as in `sqlite:///esms-exporter.db`")
        self.path = Path(os.path.realpath(path))
        self._opening = True  # errors name the path

    def keep_time(self, clock: LedgerClock, *, opened: bool = False) -> None:
        """Have the ledger remember what a clock says, and the clock go on where it was."""
        with self.begin() as connection:
            known = connection.execute(select(clock_marks)).first()
            if opened and known is not None:
                mark = Mark(known.ahead, Moment(known.wall, known.steady, known.boot))
                clock.move(resumed(mark, clock.mark().at))
            ahead, at = clock.mark()
            connection.execute(delete(clock_marks))
            connection.execute(insert(clock_marks).values(ahead=ahead, **at._asdict()))

    @contextmanager
    def read(self, timeout: float = READ_TIMEOUT) -> Iterator[Connection]:
        """Run a read-only transaction; see `Database.read`."""
        with self.translated(), self._reader.begin() as connection:
            end = time.monotonic() + timeout
            _driver(connection).set_progress_handler(lambda: time.monotonic() > end, _STEPS)
            yield connection

    @cached_property
    def _reader(self) -> Engine:
        # A new connection each time: it always reads the file that is there now, holds back no
        # checkpoint of the WAL when it is idle, and takes 0.1 ms.
        engine = create_engine(
            "sqlite://", creator=self._connect, poolclass=NullPool, hide_parameters=True
        )
        event.listen(engine, "connect", lambda raw, _: raw.execute("PRAGMA temp_store = MEMORY"))
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
        return engine

    def _connect(self) -> sqlite3.Connection:
        # SQLite makes a -wal where there is none, and removes it only where it may write. An
        # existing one stays as it is: an exporter that was killed has to find it.
        mode = "ro" if self._beside("-wal").exists() else "rw"
        return sqlite3.connect(
            f"{self.path.as_uri()}?mode={mode}",
            uri=True,
            timeout=BUSY_TIMEOUT,
            isolation_level=None,
            check_same_thread=False,
        )

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turn what the database raises into `LedgerError`."""
        try:
            with super().translated():
                yield
        except sqlite3.Error as error:  # past SQLAlchemy: a copy that is made
            raise self.failure(error) from None

    def failed(self, problem: str, kind: type[LedgerError] = LedgerError) -> LedgerError:
        """Return the error that says what is wrong; its path only to the one that opens it."""
        return kind(f"ledger {self.path}: {problem}" if self._opening else f"ledger: {problem}")

    def failure(self, error: BaseException) -> LedgerError:
        """Return what the driver raised, and what a person can do about it, as an error."""
        code = getattr(error, "sqlite_errorcode", None)
        # The low byte is the kind; the rest is detail.
        advice = _ADVICE.get(code & 0xFF) if isinstance(code, int) else None
        name = getattr(error, "sqlite_errorname", type(error).__name__)
        return self.failed(f"{advice or 'failed'} ({name})")

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)

    def open_file(self, flags: int) -> int:
        """Open the file that the path leads to, past SQLite.

        Closing the descriptor ends the locks that SQLite holds in this process.
        """
        try:
            # A new file holds ids and labels: only its owner is to read it. SQLite gives the files
            # beside it the same mode.
            descriptor = os.open(self.path, flags | os.O_CLOEXEC, 0o600)
        except IsADirectoryError:
            raise self.failed(_DIRECTORY) from None
        except OSError as error:
            raise self.failed(
                f"cannot be opened ({error.strerror}); "
                "make sure its folder exists, and the file and its folder are writable"
            ) from None
        found, problem = os.fstat(descriptor), None
        if stat.S_ISDIR(found.st_mode):
            problem = _DIRECTORY
        elif not stat.S_ISREG(found.st_mode):
            problem = "is not a file; name a file in `ledger.url`"
        elif found.st_nlink > 1:
            problem = (
                f"has {found.st_nlink} names (hard links), and its -wal lies beside one of them; "
                "delete the others, or copy the file"
            )
        elif _mounted(self.path, descriptor):
            problem = "is a mount of its own, and its -wal would lie outside; mount the folder"
        if problem:
            os.close(descriptor)
            raise self.failed(problem)
        return descriptor

    def _mark(self, number: int) -> bool:
        """Have the file itself, not its -wal, say whether it is in use; see `_new_mark`.

        Returns:
            Whether it does: another program that reads holds the -wal as it is.
        """
        with self.translated(), self.engine.connect() as connection:
            _driver(connection).execute(f"PRAGMA user_version = {number}")
            result = _driver(connection).execute("PRAGMA wal_checkpoint(TRUNCATE)")
            busy, *_ = result.fetchone()
        return not busy

    def _read_mark(self) -> int:
        with self.translated(), self.engine.connect() as connection:
            return int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())

    def _make_engine(self, url: str) -> Engine:
        engine = create_engine(
            url,
            # One connection, used by one thread at a time; `check_same_thread` is about that.
            poolclass=StaticPool,
            connect_args={"check_same_thread": False, "timeout": BUSY_TIMEOUT},
            hide_parameters=True,
        )
        event.listen(engine, "connect", _configure)
        # At once for writing: a transaction that starts by reading cannot always go on to write.
        event.listen(
            engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE")
        )
        with self.translated(), engine.connect():
            pass
        return engine


class SqliteDatabase(SqliteFile):
    """The open ledger of an exporter, locked against others: `LedgerBusyError` to them."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._lock = self._lock_file()
        if odd := _oddity(self._lock, self._beside("-wal")):
            _log.warning("ledger may be incomplete", path=str(self.path), problem=odd)
        try:
            self.engine = self._make_engine(url)
            with self.translated(), self.engine.begin() as connection:
                self.upgrade(connection)
            number = self._read_mark()
            self._number = number + 2 - number % 2
            if self._mark(self._number):
                self._number = _new_mark(closed=False)
                self._mark(self._number)
        except BaseException:
            self.close()
            raise
        self._opening = False

    def close(self) -> None:
        """Close the database and let others open it."""
        if hasattr(self, "engine"):
            if not self._opening:
                with suppress(LedgerError):  # it could not be written before, either
                    self._mark(self._number + 1)
            super().close()
        os.close(self._lock)

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """Run a transaction on the file that the path leads to: others lose what is written."""
        self._keep_file()
        with super().begin() as connection:
            yield connection

    def _lock_file(self) -> int:
        """Open and lock the file that the path leads to; make it where there is none."""
        descriptor = self.open_file(os.O_RDWR | os.O_CREAT)
        try:
            _lock(descriptor)
        except BlockingIOError:
            os.close(descriptor)
            raise self.failed(
                "is in use by another esms-exporter; end it, or name another file in `ledger.url`",
                LedgerBusyError,
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise self.failed(
                f"cannot be locked ({error.strerror}); "
                "put it on a file system with locks, such as a local disk"
            ) from None
        return descriptor

    def _keep_file(self) -> None:
        """Verify that the path still leads to the open file; write it anew where it was deleted."""
        held = os.fstat(self._lock)
        try:
            found = os.stat(self.path)  # noqa: PTH116 - a third of the time, before each transaction
        except FileNotFoundError:
            self._write_anew()
        except OSError as error:
            raise self.failed(f"cannot be seen any more ({error.strerror})") from None
        else:
            if (found.st_dev, found.st_ino) != (held.st_dev, held.st_ino):
                raise self.failed(
                    "another file was put in its place; restart the exporter to go on with that "
                    "one, or put the old one back"
                )

    def _write_anew(self) -> None:
        """Write to a new file what the deleted one held: all of it can still be read."""
        held, self._lock = self._lock, self._lock_file()
        try:
            # Those of the old file would be taken for the new one's.
            for suffix in ("-wal", "-shm"):
                self._beside(suffix).unlink(missing_ok=True)
            with (
                self.translated(),
                closing(sqlite3.connect(self.path)) as target,
                self.engine.connect() as source,
            ):
                _driver(source).backup(target)
        except (OSError, LedgerError) as error:
            self.path.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = held
            if isinstance(error, LedgerError):
                raise
            raise self.failed(
                f"was deleted, and cannot be written anew ({error.strerror})"
            ) from None
        # The next connection is one to the new file.
        self.engine.dispose()
        os.close(held)
        _log.warning("missing ledger file recreated")


class UnlockedSqliteDatabase(SqliteFile):
    """A ledger that an exporter may have open: SQLite makes transactions wait for each other.

    The lock that keeps a second exporter away is not taken, so that an exporter may start
    meanwhile; what it protects, the calls that are polled, is not touched.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.engine = self._make_engine(url)
        with self.begin() as connection:
            found = revision(connection)
        if found != HEAD:
            self.close()
            raise self.failed(
                "is in use by an exporter of another version; use the command of that one"
            )
        if self._read_mark() % 2:
            self._mark(0)  # no exporter has it open, and this may be killed


def back_up(url: str, target: Path) -> int:
    """Copy a ledger in a file of SQLite to a new file, also while an exporter writes to it.

    Returns:
        How many calls the copy holds.

    Raises:
        LedgerError: it cannot be copied; nothing is left behind.
    """
    if make_url(url).get_backend_name() == "postgresql":
        raise LedgerError("ledger: is a database of PostgreSQL; back it up with `pg_dump`")
    source = SqliteFile(url)
    os.close(source.open_file(os.O_RDONLY | os.O_NONBLOCK))
    for suffix in ("", "-wal", "-journal"):
        if os.path.lexists(f"{target}{suffix}"):
            raise LedgerError(f"{target}{suffix}: exists already; name another file")
    unfinished = target.with_name(f"{target.name}.unfinished")
    try:
        unfinished.unlink(missing_ok=True)
        unfinished.touch(0o600, exist_ok=False)
        with source.read(math.inf) as connection, closing(sqlite3.connect(unfinished)) as copy:
            if revision(connection) is None:
                raise source.failed("holds no ledger")
            _driver(connection).backup(copy)
            # In one file, which can be read where nothing can be written.
            copy.execute("PRAGMA journal_mode = DELETE")
            copy.execute(f"PRAGMA user_version = {_new_mark(closed=True)}")
            (count,) = copy.execute("SELECT count(*) FROM calls").fetchone()
        unfinished.rename(target)
    except OSError as error:
        raise LedgerError(f"{target}: cannot be written ({error.strerror})") from None
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
    return int(count)


def _driver(connection: Connection) -> Any:  # Any: whatever the driver's type is
    return connection.connection.driver_connection


def _new_mark(*, closed: bool) -> int:
    """Return a random `PRAGMA user_version` of a ledger.

    It is even while an exporter has the file open, and odd in a backup and once the file was
    closed, which leaves no -wal. 0 says nothing. Where the file itself cannot be marked, because
    another program reads, the next number in the -wal says that it belongs to the file.
    """
    return 2 * (secrets.randbelow(1 << 29) + 1) + closed


def _oddity(descriptor: int, wal_path: Path) -> str | None:
    """Return what is odd about a file and its -wal, before SQLite sees them; None if nothing is.

    SQLite writes any -wal that lies there into the file.
    """
    header = os.pread(descriptor, 64, 0)
    if header and not header.startswith(b"SQLite format 3\0"):
        return None  # SQLite says so
    pages, mark = int.from_bytes(header[28:32]), int.from_bytes(header[60:64])
    wal = _marks(wal_path)
    closed, in_wal_mode = mark % 2 == 1, header[18:19] == b"\2"
    if wal is None:
        if mark and not closed and in_wal_mode:
            return "it was in use when it was copied, and has no -wal: what was new is missing"
        if header and not mark and pages <= 1:
            return "it is empty, but not new: was it copied without its -wal?"
    elif wal and (
        not header
        or (mark and (closed or wal != {0}) and wal.isdisjoint(range(mark, mark + _RETRIES)))
    ):
        return "its -wal is that of another file: before a backup is restored, delete -wal and -shm"
    return None


def _marks(wal: Path) -> set[int] | None:
    """Return the marks in what a -wal holds, 0 for pages without; None where there is no -wal."""
    marks = set[int]()
    try:
        with wal.open("rb") as file:
            size = int.from_bytes(file.read(32)[8:12])  # of a page
            # Each has 24 bytes before it, the first four of which are its number.
            while size >= 512 and len(start := file.read(24 + 64)) == 24 + 64:
                first = int.from_bytes(start[:4]) == 1
                marks.add(int.from_bytes(start[24 + 60 :]) if first else 0)
                file.seek(size - 64, os.SEEK_CUR)
    except OSError:
        return None
    return marks


def _lock(descriptor: int) -> None:
    """Lock a file of SQLite for as long as this descriptor is open, however the process ends.

    The lock belongs to the file, not to a name, and is seen in other containers too. It leaves out
    the bytes that SQLite locks, and is no lock of POSIX, which would end as soon as SQLite closes
    any descriptor of the file. Closing this one ends SQLite's locks: SQLite has to be closed first.
    """
    if sys.platform == "linux":
        # struct flock: type, whence, start, length, process.
        wanted = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, _LOCKED_BYTE, 1, 0)
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, wanted)
    else:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _LOCKED_BYTE)


def _mounted(path: Path, descriptor: int) -> bool:
    """Return whether an open file is a mount of its own; False where the system does not tell."""
    mounts = set[str]()
    with suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for opened in (folder, descriptor):
                told = Path(f"/proc/self/fdinfo/{opened}").read_text()
                mounts.update(line for line in told.splitlines() if line.startswith("mnt_id:"))
        finally:
            os.close(folder)
    return len(mounts) > 1


def _configure(connection: Any, _record: object) -> None:  # Any: whatever the driver's type is
    # SQLAlchemy begins transactions, not the driver, which would begin them late.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    # Survives a power cut; in groups it costs some 10 microseconds a row.
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    # The ledger's folder may be the only one that can be written.
    cursor.execute("PRAGMA temp_store = MEMORY")
    # 8 MiB of cache, whatever the size of the ledger.
    cursor.execute("PRAGMA cache_size = -8192")
    cursor.close()
