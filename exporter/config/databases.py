"""The sections `ledger` and `watch.sql`, and the database URLs in them."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import AfterValidator, Field
from sqlalchemy import URL, make_url
from sqlalchemy import text as sql_text
from sqlalchemy.exc import SQLAlchemyError

from exporter.config.validation import (
    ADDRESS_PATTERN,
    Expected,
    KnownAccount,
    Name,
    SecretAddress,
    Section,
    Switch,
    duration,
    invalid,
    secret,
    text,
)
from exporter.secrets import Secret

MAX_QUERY: Final = 10_000
DEFAULT_LEDGER: Final = "sqlite:///esms-exporter.db"

# The drivers that the extras install, instead of SQLAlchemy's defaults.
_DRIVERS: Final = {
    "postgresql": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mariadb": "mariadb+pymysql",
}
_UNENCODED: Final = re.compile(r"[^!-~]|[@/?#\[\]]|%(?![0-9A-Fa-f]{2})")


def database_url(secret: Secret) -> URL:
    """Return a database URL with its driver.

    Raises:
        SQLAlchemyError: the URL is invalid; the message may contain it.
    """
    url = make_url(secret.reveal())
    return url.set(drivername=_DRIVERS.get(url.drivername, url.drivername))


def _database_url(secret: Secret) -> Secret:
    # Messages must not repeat any part of the URL.
    rest = secret.reveal().partition("://")[2]
    # SQLAlchemy ends the password at the first `@`; it would print the rest of the password and
    # resolve it as a host name.
    user, at, _ = rest.rpartition("@")
    if at and not rest.startswith("/") and _UNENCODED.search(user):
        raise invalid(
            "the user or the password contains a reserved character (any of `@/?#[]%`) or one that "
            "is not ASCII; percent-encode it, such as `%40` for `@` and `%25` for `%`"
        )
    try:
        url = database_url(secret)
        url.get_dialect().import_dbapi()
    except (SQLAlchemyError, ValueError):
        raise invalid("expected a URL such as `postgresql://USER:PASSWORD@HOST/DATABASE`") from None
    except ImportError as error:
        raise invalid(f"the driver of this database is not installed: `{error.name}`") from None
    if url.get_backend_name() == "sqlite":
        name = url.database or ""
        if not name or name.startswith(("file:", ":memory:")):
            raise invalid(
                "expected the path of a file; an in-memory database does not survive its connection"
            )
        if name.endswith(("/", "/.", "/..")) or name in {".", ".."}:
            raise invalid("expected the path of a file, not of a folder")
    return secret


def _query(query: str) -> str:
    if ":since::" in query:
        # SQLAlchemy does not replace `:since` here, and the database cannot parse it.
        raise invalid("expected `CAST(:since AS TYPE)` instead of `:since::TYPE`")
    if not sql_text(query).compile().params.keys() <= {"since"}:
        raise invalid("expected no parameter except `:since`; write `\\:` for a colon")
    return query


DatabaseUrl = Annotated[SecretAddress, AfterValidator(_database_url)]
_LEDGER_URL: Final = "sqlite:///PATH or postgresql://USER:PASSWORD@HOST/DATABASE"
LedgerUrl = Annotated[
    Secret,
    # SQLAlchemy parses options after a question mark.
    secret(_LEDGER_URL, rf"(?=sqlite:///[^?]+\Z|postgresql://.+\Z){ADDRESS_PATTERN}"),
    Expected(_LEDGER_URL),
    AfterValidator(_database_url),
    Field(
        json_schema_extra={"pattern": "^(sqlite:///|postgresql://).+", "default": DEFAULT_LEDGER}
    ),
]
Query = Annotated[
    str,
    text(f"a query of 1 to {MAX_QUERY} characters", min_length=1, max_length=MAX_QUERY),
    AfterValidator(_query),
]


class LedgerConfig(Section):
    """The durable record of calls and totals."""

    url: LedgerUrl = Secret(DEFAULT_LEDGER)
    """An SQLite file; a relative path is relative to the working directory. Or a PostgreSQL
    database, which several exporters can share; user and password percent-encoded. Either this or
    `url_file`."""

    keep_finished: Annotated[float, duration("1s", "10y")] = 2_592_000.0
    """How long the ledger keeps a finished call after a source last listed it, so that it is not
    counted again, and a notification after it was given up. At least two runs of every query in
    `watch.sql`."""

    history: Switch = True
    """Store what happens to each call, for its page: changes of its state, callbacks and
    notifications. Kept as long as the call."""

    heartbeat: Annotated[float, duration("1s", "5m")] = 10.0
    """With a shared ledger: an exporter without a heartbeat for this long loses its accounts to
    the others."""


class SqlConfig(Section):
    """An SQL query on your database that returns calls to watch."""

    name: Name
    """The name of the query: the label `source` is `sql:NAME`. Unique."""

    url: DatabaseUrl
    """The SQLAlchemy URL of the database, with user and password percent-encoded. Either this or
    `url_file`."""

    query: Query
    """Returns the column `reference_id`, and optionally `account` and names in `watch.labels`."""

    interval: Annotated[float, duration("1s", "1d")] = 30.0
    """Interval between the starts of two runs."""

    timeout: Annotated[float, duration("1s", "1h")] = 30.0
    """Timeout of the query in the database."""

    account: KnownAccount | None = None
    """The account of rows without one. Optional if there is one account."""
