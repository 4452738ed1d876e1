"""A ledger in an SQLite file, for one exporter, and its backups."""

from __future__ import annotations

import fcntl
import math
import os
import sqlite3
import stat
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final

import structlog
from sqlalchemy import Connection, Engine, create_engine, delete, event, insert, make_url, select
from sqlalchemy.pool import NullPool, StaticPool

from exporter.errors import LedgerBusyError, LedgerError
from exporter.ledger.clock import LedgerClock, Mark, Moment
from exporter.ledger.engine import READ_TIMEOUT, Database, open_reader, revision
from exporter.ledger.schema import HEAD, clock_marks
from exporter.new_file import new_file

_log = structlog.get_logger(__name__)

BUSY_TIMEOUT: Final = 5.0
"""Seconds to wait for another program that has locked the file, such as a copy."""

# Far beyond the end of the file and the bytes that SQLite locks.
_LOCKED_BYTE: Final = 1 << 62

# Values of `PRAGMA user_version`, which show whether a -wal belongs to the file. Any even number
# except 0 means in use, any odd number closed. Backups are marked as closed.
_CLOSED: Final = 1
_IN_USE: Final = 2

_DIRECTORY: Final = (
    "is a directory; name a file in it (Docker creates a directory if a file to mount does not "
    "exist)"
)

# Messages for SQLite's result codes: the problem, and what to do.
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

# Of the copy, in a backup: the ledger itself is only read.
_WRITE_ERRORS: Final = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR_WRITE,
    sqlite3.SQLITE_IOERR_FSYNC,
}

# SQLite instructions between two checks of the timeout: a fraction of a millisecond.
_STEPS: Final = 10_000

_PRAGMAS: Final = (
    # Survive power failures; for grouped commits it costs some 10 microseconds a row.
    "PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; "
    # The ledger's folder may be the only writable one.
    "PRAGMA temp_store = MEMORY; "
    # 8 MiB of cache, whatever the size of the ledger.
    "PRAGMA cache_size = -8192"
)


class SqliteFile(Database):
    """An SQLite file: opens and reads it, and translates its errors."""

    shared = False

    def __init__(self, url: str) -> None:
        path = make_url(url).database
        if not path:
            raise LedgerError("ledger: expected a file, as in `sqlite:///esms-exporter.db`")
        self.path = Path(os.path.realpath(path))
        self._opening = True  # errors name the path

    def keep_time(self, clock: LedgerClock, *, opened: bool = False) -> None:
        """Store the mark of a clock; if `opened`, first continue from the stored mark."""
        with self.begin() as connection:
            if opened:
                _resume(clock, connection)
            ahead, at = clock.mark()
            connection.execute(delete(clock_marks))
            connection.execute(insert(clock_marks).values(ahead=ahead, **at._asdict()))

    @contextmanager
    def read(self, timeout: float = READ_TIMEOUT) -> Iterator[Connection]:
        with self.translated(), self._reader.begin() as connection:
            # Without a timeout, no handler: SQLite would report a Ctrl-C in it as a timeout.
            if timeout < math.inf:
                end = time.monotonic() + timeout
                _driver(connection).set_progress_handler(lambda: time.monotonic() > end, _STEPS)
            yield connection

    @cached_property
    def _reader(self) -> Engine:
        return self._make_engine(write=False)

    def _make_engine(self, *, write: bool) -> Engine:
        engine = create_engine(
            "sqlite://",
            creator=partial(self._connect, write=write),
            # A new connection for each read takes 0.1 ms. It always opens the current file, and no
            # idle connection delays checkpoints of the WAL.
            poolclass=StaticPool if write else NullPool,
            hide_parameters=True,
        )
        # Lock for writing at once: a transaction that starts with a read may fail to upgrade.
        begin = "BEGIN IMMEDIATE" if write else "BEGIN"
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
        return engine

    def _connect(self, *, write: bool) -> sqlite3.Connection:
        # SQLite creates a missing -wal; in mode `rw`, it removes the -wal at the end. An existing
        # -wal must stay: an exporter that was killed needs it for its recovery.
        mode = "rw" if write or not self._sibling("-wal").exists() else "ro"
        connection = sqlite3.connect(
            f"{self.path.as_uri()}?mode={mode}",
            uri=True,
            timeout=BUSY_TIMEOUT,
            # Let SQLAlchemy begin transactions: the driver would begin them at the first write.
            isolation_level=None,
            check_same_thread=False,  # one thread at a time uses it
        )
        connection.executescript(_PRAGMAS)
        return connection

    def failed(self, problem: str, kind: type[LedgerError] = LedgerError) -> LedgerError:
        """Return an error with a message; it contains the path only while the file is opened."""
        return kind(f"ledger {self.path}: {problem}" if self._opening else f"ledger: {problem}")

    def translate(self, error: BaseException) -> LedgerError:
        code = getattr(error, "sqlite_errorcode", None)
        # The low byte is the primary result code.
        advice = _ADVICE.get(code & 0xFF) if isinstance(code, int) else None
        name = getattr(error, "sqlite_errorname", type(error).__name__)
        return self.failed(f"{advice or 'failed'} ({name})")

    def _sibling(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)

    def open_file(self, flags: int) -> int:
        """Open the file without SQLite.

        Closing the descriptor releases SQLite's locks on the file in this process.
        """
        try:
            # The file will hold ids and labels: only its owner may read it. SQLite creates the -wal
            # and -shm with the same mode.
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
                f"has {found.st_nlink} names (hard links), but only one of them has the -wal; "
                "delete the other names, or copy the file"
            )
        elif _mounted(self.path, descriptor):
            problem = "is mounted as a single file, without its -wal; mount the folder"
        if problem:
            os.close(descriptor)
            raise self.failed(problem)
        return descriptor

    def _pragma(self, pragma: str) -> Any:  # Any: a number or a text
        with self.translated(), self.engine.connect() as connection:
            row = _driver(connection).execute(f"PRAGMA {pragma}").fetchone()
            return row and row[0]

    def _mark(self, mark: int) -> None:
        """Write a mark to the file itself; while a program reads the file, only to its -wal."""
        self._pragma(f"user_version = {mark}")
        self._pragma("wal_checkpoint(TRUNCATE)")


class SqliteDatabase(SqliteFile):
    """The ledger of an exporter, locked: another exporter that opens it gets `LedgerBusyError`."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._lock = self._lock_file()
        try:
            self._check_wal()
            self.engine = self._make_engine(write=True)
            with self.translated(), self.engine.begin() as connection:
                self.upgrade(connection)
            # Not before: the file may belong to another program.
            self._pragma("journal_mode = WAL")
            self._mark(_IN_USE)
        except BaseException:
            self.close()
            raise
        self._opening = False

    def close(self) -> None:
        """Close the database and release the lock."""
        if hasattr(self, "engine"):
            if not self._opening:
                with suppress(LedgerError):  # the commits before have reported the problem
                    self._mark(_CLOSED)
            super().close()
        os.close(self._lock)

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """Run a transaction, after checking that the path still names the open file."""
        self._check_file()
        with super().begin() as connection:
            yield connection

    def _lock_file(self) -> int:
        """Open and lock the file, creating it if necessary."""
        descriptor = self.open_file(os.O_RDWR | os.O_CREAT)
        try:
            _lock(descriptor)
        except OSError as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                raise self.failed(
                    "is in use by another esms-exporter; stop it, or name another file in "
                    "`ledger.url`",
                    LedgerBusyError,
                ) from None
            raise self.failed(
                f"cannot be locked ({error.strerror}); "
                "use a file system that supports locks, such as a local disk"
            ) from None
        return descriptor

    def _check_wal(self) -> None:
        """Warn if the -wal is missing, or from another file: SQLite applies any that it finds."""
        header, size, problem = os.pread(self._lock, 64, 0), -1, None
        with suppress(OSError):
            size = self._sibling("-wal").stat().st_size
        in_wal_mode, mark = header[18:19] == b"\2", int.from_bytes(header[60:64])
        if size > 32 and (mark % 2 or not header):  # more than the header of a -wal
            problem = (
                "its -wal is from another file: delete -wal and -shm before you restore a backup"
            )
        elif size < 0 and mark and mark % 2 == 0 and in_wal_mode:
            problem = "it was copied while in use, without its -wal: the newest data is missing"
        if problem:
            _log.warning("ledger may be incomplete", path=str(self.path), problem=problem)

    def _check_file(self) -> None:
        """Verify that the path still names the open file; restore the file if it was deleted."""
        held = os.fstat(self._lock)
        try:
            found = os.stat(self.path)  # noqa: PTH116 - a third of the time, before each transaction
        except FileNotFoundError:
            self._recreate()
        except OSError as error:
            raise self.failed(f"cannot be accessed any more ({error.strerror})") from None
        else:
            if (found.st_dev, found.st_ino) != (held.st_dev, held.st_ino):
                raise self.failed(
                    "was replaced by another file; restart the exporter to use that one, or put "
                    "the old one back"
                )

    def _recreate(self) -> None:
        """Copy the deleted file, which is still open, to a new file."""
        held, self._lock = self._lock, self._lock_file()
        try:
            # SQLite would apply those of the old file to the new one.
            for suffix in ("-wal", "-shm"):
                self._sibling(suffix).unlink(missing_ok=True)
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
            raise self.failed(f"was deleted and cannot be restored ({error.strerror})") from None
        # The next connection opens the new file.
        self.engine.dispose()
        os.close(held)
        _log.warning("missing ledger file recreated")


class SqliteReader(SqliteFile):
    """An existing ledger that is only read, also while an exporter uses it."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        os.close(self.open_file(os.O_RDONLY | os.O_NONBLOCK))
        self.engine = self._reader

    def keep_time(self, clock: LedgerClock, *, opened: bool = False) -> None:
        """Continue from the stored mark if `opened`; store nothing."""
        if opened:
            with self.read() as connection:
                _resume(clock, connection)


class UnlockedSqliteDatabase(SqliteFile):
    """A ledger that an exporter may have open, for short commands.

    It does not take the exporter's lock, so that an exporter can start meanwhile. SQLite serializes
    the transactions; commands do not change the calls that the exporter polls.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        with suppress(LedgerBusyError):
            # If no exporter runs, create or upgrade the file.
            SqliteDatabase(url).close()
        self.engine = self._make_engine(write=True)
        with self.begin() as connection:
            found = revision(connection)
        if found != HEAD:
            self.close()
            raise self.failed(
                "is in use by an exporter of another version; use the command of that version"
            )
        if self._pragma("user_version") % 2:
            self._mark(0)  # no exporter has the file open, and this process may be killed


def back_up(url: str, target: Path) -> int:
    """Copy an SQLite ledger to a new file, also while an exporter writes to it.

    Return the number of calls in the copy. Raises as `new_file` does, and `LedgerError`.
    """
    if make_url(url).get_backend_name() == "postgresql":
        raise LedgerError("ledger: is a PostgreSQL database; back it up with `pg_dump`")
    for suffix in ("-wal", "-journal"):
        if os.path.lexists(f"{target}{suffix}"):
            raise LedgerError(f"{target}{suffix}: exists already; name another file")
    with (
        open_reader(url, any_revision=True) as source,
        new_file(target) as file,
        source.read(math.inf) as connection,
        closing(sqlite3.connect(file.name)) as copy,  # SQLite needs a name
    ):
        copy.execute("PRAGMA journal_mode = OFF")  # a copy that fails is deleted
        try:
            _driver(connection).backup(copy)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode not in _WRITE_ERRORS:
                raise
            problem = f"cannot be written; check the disk ({error.sqlite_errorname})"
            raise LedgerError(f"{target}: {problem}") from None
        # Without a -wal, the copy is one file, also readable on a read-only file system.
        copy.execute("PRAGMA journal_mode = DELETE")
        copy.execute(f"PRAGMA user_version = {_CLOSED}")
        (count,) = copy.execute("SELECT count(*) FROM calls").fetchone()
    return int(count)


def _resume(clock: LedgerClock, connection: Connection) -> None:
    """Let a clock continue from the mark in the ledger, if there is one."""
    known = connection.execute(select(clock_marks)).first()
    if known is not None:
        clock.resume(Mark(known.ahead, Moment(known.wall, known.steady, known.boot)))


def _driver(connection: Connection) -> Any:  # Any: whatever the driver's type is
    return connection.connection.driver_connection


def _lock(descriptor: int) -> None:
    """Lock an SQLite file until this descriptor is closed, or the process ends.

    The lock belongs to the file, not to a path, and works across containers. It is not a POSIX
    lock, which would be released whenever SQLite closes a descriptor of the file. Closing this
    descriptor releases SQLite's locks: close SQLite first.
    """
    if sys.platform == "linux":
        # struct flock: type, whence, start, length, process.
        wanted = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, _LOCKED_BYTE, 1, 0)
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, wanted)
    else:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _LOCKED_BYTE)


def _mounted(path: Path, descriptor: int) -> bool:
    """Return whether an open file is a mount of its own; False if that cannot be determined."""
    mounts = set[str]()
    with suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for opened in (folder, descriptor):
                info = Path(f"/proc/self/fdinfo/{opened}").read_text()
                mounts.update(line for line in info.splitlines() if line.startswith("mnt_id:"))
        finally:
            os.close(folder)
    return len(mounts) > 1
