"""A ledger in a PostgreSQL database, which several exporters can share."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import structlog
from sqlalchemy import URL, Connection, Engine, create_engine, event, text

from exporter.config.databases import database_url
from exporter.errors import LedgerConflictError, LedgerError
from exporter.ledger.clock import MIN_STEP, LedgerClock
from exporter.ledger.engine import READ_TIMEOUT, Database
from exporter.secrets import Secret

_log = structlog.get_logger(__name__)

OLDEST: Final = 130_000
"""The oldest supported `server_version_num`: PostgreSQL 13."""

# One each for the ledger's thread, the leases and the reader.
_CONNECTIONS: Final = 3

# The key of an advisory lock: one exporter upgrades, the others wait.
_UPGRADE_LOCK: Final = 0x65534D53

_CLOCK: Final = text("SELECT extract(epoch FROM clock_timestamp())::float8")

# Set these for each transaction: PgBouncer may run each one on another server connection. The
# timeouts keep an exporter that hangs in a transaction from blocking the others. READ COMMITTED
# makes a statement that waited for a lock see the changes of the transaction that held it.
_BEGIN: Final = (
    "BEGIN ISOLATION LEVEL READ COMMITTED; "
    "SET LOCAL idle_in_transaction_session_timeout = '5s'; "
    "SET LOCAL lock_timeout = '10s'; SET LOCAL statement_timeout = '60s'"
)

_OPTIONS: Final[dict[str, Any]] = {  # Any: numbers and strings
    "connect_timeout": 5,
    "application_name": "esms-exporter",
    # Detect a broken connection within seconds, not hours.
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}

# Messages by prefix of the SQLSTATE, longer prefixes first: the problem, and what to do.
_ADVICE: Final = {
    "08": "the connection broke",
    "23503": "needed a row that another exporter has just deleted; it is tried again",
    "25006": "cannot be written: the server is a standby, or read-only; name the primary",
    "25P03": "took too long within a transaction; this exporter was blocked",
    "28": "refuses the user or the password; see `ledger.url` and the server's pg_hba.conf",
    "3D000": "does not exist; create the database",
    "40": "had a conflict with another transaction; it is tried again",
    "42501": "may not be used by this user; grant it the right to create and write tables",
    "53100": "cannot grow; the server's disk is full",
    "53300": "has too many connections; raise max_connections, or use PgBouncer",
    "53": "lacks resources; check the server",
    "55P03": "is locked by another program; end it",
    "57014": "took too long; check the server's load",
    "57P": "is being stopped or started",
}


_CONFLICTS: Final = ("23503", "25P03", "40")
"""Errors that a retry may solve; the transaction had no effect."""

_QUOTED: Final = re.compile(r""""[^"]*"|'[^']*'""")
"""Names of hosts, users and databases in messages."""

# For failed connections, libpq returns a message without an SQLSTATE. It contains the name of the
# user, so it is replaced. For messages in other languages, only the last pattern matches.
_WITHOUT_STATE: Final = (
    ("too many|connection slots|no more connections", _ADVICE["53300"]),
    ("authentication|password|pg_hba|role |no such user", _ADVICE["28"]),
    ("database .*not exist|no such database", _ADVICE["3D000"]),
    ("the database system is|shutting down", _ADVICE["57P"]),
    ("SSL|certificate", "no connection over TLS; see `sslmode`, `sslrootcert` in `ledger.url`"),
    ("option|invalid .* value", "`ledger.url` has an option that libpq does not know"),
    ("translate host|resolve", "its host cannot be found; see `ledger.url`"),
    ("refused", "refuses connections; check that the server runs, and `ledger.url`"),
    ("closed|consuming input|lost|reset", _ADVICE["08"]),
    ("", "cannot be reached, or refuses the user"),
)


class PostgresqlDatabase(Database):
    """An open database.

    Args:
        url: may contain options of libpq, such as `?sslmode=verify-full`.
        upgrade: create the schema, or upgrade it; false for commands that only read.
    """

    shared = True

    def __init__(self, url: str, *, upgrade: bool = True) -> None:
        self.engine = _make_engine(database_url(Secret(url)))
        if not upgrade:
            return
        try:
            with self.translated(), self.engine.begin() as connection:
                self._prepare(connection)
        except BaseException:
            self.close()
            raise

    @contextmanager
    def read(self, timeout: float = READ_TIMEOUT) -> Iterator[Connection]:
        milliseconds = max(1, int(timeout * 1000)) if timeout < math.inf else 0
        with self.begin() as connection:
            # One snapshot for all statements, as in SQLite: rows may move between tables meanwhile.
            connection.exec_driver_sql(
                "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY; "
                f"SET LOCAL statement_timeout = {milliseconds}"
            )
            yield connection

    def keep_time(self, clock: LedgerClock, *, opened: bool = False) -> None:
        """Set a clock to the server's time, which all exporters use."""
        with self.begin() as connection:
            asked = clock.now()
            server = float(connection.execute(_CLOCK).scalar_one())
            took = clock.now() - asked
        late = server - asked
        # A slow answer is inaccurate; use it only at the start.
        if abs(late) >= MIN_STEP and (opened or took < MIN_STEP):
            _log.warning("clock differs from database server", seconds=round(late, 1))
            clock.move(late)

    def translate(self, error: BaseException) -> LedgerError:
        name, state = type(error).__name__, getattr(error, "sqlstate", None)
        if not state:
            message = _QUOTED.sub("", str(error))
            advice = next(advice for words, advice in _WITHOUT_STATE if re.search(words, message))
            return self.failed(f"{advice} ({name})")
        fitting = (advice for start, advice in _ADVICE.items() if state.startswith(start))
        kind = LedgerConflictError if state.startswith(_CONFLICTS) else LedgerError
        return self.failed(f"{next(fitting, 'failed')} ({name}, {state})", kind)

    def _prepare(self, connection: Connection) -> None:
        version = connection.scalar(text("SELECT current_setting('server_version_num')::int"))
        if version < OLDEST:
            raise self.failed(f"uses PostgreSQL {version // 10_000}; 13 or newer is needed")
        # Creating an index takes long with millions of rows, here or in an exporter that upgrades.
        # A busy machine may delay this process between statements.
        connection.exec_driver_sql(
            "SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = '10min'; "
            "SET LOCAL idle_in_transaction_session_timeout = '10min'"
        )
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _UPGRADE_LOCK})
        self.upgrade(connection)


def _make_engine(url: URL) -> Engine:
    options = {key: value for key, value in _OPTIONS.items() if key not in url.query}
    try:
        engine = create_engine(
            url,
            # Prepared statements belong to a server connection, which PgBouncer may change.
            connect_args={**options, "prepare_threshold": None},
            # `_BEGIN` begins transactions.
            isolation_level="AUTOCOMMIT",
            pool_size=_CONNECTIONS,
            max_overflow=0,
            # Replace connections that a restart of the server has closed.
            pool_pre_ping=True,
            hide_parameters=True,
        )
    except ImportError:
        raise LedgerError(
            "ledger: the driver for PostgreSQL is not installed; "
            "install `esms-exporter[postgresql]`"
        ) from None
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(_BEGIN))
    return engine
