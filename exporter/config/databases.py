"""The sections `ledger` and `watch.sql`, and addresses of databases as SQLAlchemy takes them."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import AfterValidator, Field
from sqlalchemy import URL, make_url
from sqlalchemy import text as sql_text
from sqlalchemy.exc import SQLAlchemyError

from exporter.config.types import Expected, KnownAccount, Name, SecretAddress, duration, text
from exporter.config.validation import Section, invalid
from exporter.secrets import Secret

MAX_QUERY: Final = 10_000
DEFAULT_LEDGER: Final = "sqlite:///esms-exporter.db"

# The drivers that the extras install, in place of those that SQLAlchemy would take.
_DRIVERS: Final = {
    "postgresql": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mariadb": "mariadb+pymysql",
}
_UNENCODED: Final = re.compile(r"[^!-~]|[@/?#\[\]]|%(?![0-9A-Fa-f]{2})")


def database_url(secret: Secret) -> URL:
    """Return an address with its driver.

    Raises:
        SQLAlchemyError: it is none; the exception may hold it.
    """
    url = make_url(secret.reveal())
    return url.set(drivername=_DRIVERS.get(url.drivername, url.drivername))


def _database_url(secret: Secret) -> Secret:
    # No message repeats any of it.
    rest = secret.reveal().partition("://")[2]
    # As a person means it. SQLAlchemy ends a password at the first `@`: the rest of it would become
    # a host, which is printed and looked up.
    user, at, _ = rest.rpartition("@")
    if at and not rest.startswith("/") and _UNENCODED.search(user):
        raise invalid(
            "the user or the password holds a reserved character (any of `@/?#[]%`) or one that is "
            "not ASCII; percent-encode it, such as `%40` for `@` and `%25` for `%`"
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
                "expected the path of a file; a database in memory ends with its connection"
            )
        if name.endswith(("/", "/.", "/..")) or name in {".", ".."}:
            raise invalid("expected the path of a file, not of a folder")
    return secret


def _ledger_url(secret: Secret) -> Secret:
    # SQLAlchemy would take what follows a question mark for options.
    if not re.fullmatch(r"sqlite:///[^\x00-\x1f\x7f?]+|postgresql://.+", secret.reveal()):
        raise ValueError
    return secret


def _query(query: str) -> str:
    if ":since::" in query:
        # SQLAlchemy takes it for no parameter, and the database for none of its own.
        raise invalid("expected `CAST(:since AS TYPE)` in place of `:since::TYPE`")
    if not sql_text(query).compile().params.keys() <= {"since"}:
        raise invalid("expected no parameter but `:since`; write `\\:` for a colon")
    return query


DatabaseUrl = Annotated[SecretAddress, AfterValidator(_database_url)]
LedgerUrl = Annotated[
    SecretAddress,
    Field(
        json_schema_extra={"pattern": "^(sqlite:///|postgresql://).+", "default": DEFAULT_LEDGER}
    ),
    AfterValidator(_ledger_url),
    Expected("sqlite:///PATH or postgresql://USER:PASSWORD@HOST/DATABASE"),
    AfterValidator(_database_url),
]
Query = Annotated[
    str,
    text(f"a query of 1 to {MAX_QUERY} characters", min_length=1, max_length=MAX_QUERY),
    AfterValidator(_query),
]


class LedgerConfig(Section):
    """The durable record of calls and totals."""

    secrets = ("url",)

    url: LedgerUrl = Secret(DEFAULT_LEDGER)
    """A file of SQLite; a relative path starts at the working directory. Or a database of
    PostgreSQL, which any number of exporters share; user and password are percent-encoded."""

    keep_finished: Annotated[float, duration("1s", "10y")] = 2_592_000.0
    """How long a finished call is remembered, so as not to count it again, from when it was last
    named. At least for two runs of every query in `watch.sql`."""

    heartbeat: Annotated[float, duration("1s", "5m")] = 10.0
    """For how long an exporter may be silent before others take its accounts, where they share the
    ledger."""


class SqlConfig(Section):
    """A query on a database of yours, which returns calls to watch."""

    secrets = ("url",)

    name: Name
    """Its name in metrics: the label `source` is `sql:NAME`. Unique."""

    url: DatabaseUrl
    """The database, as SQLAlchemy names it, with user and password percent-encoded. Either this or
    `url_file`."""

    query: Query
    """Returns `reference_id`, perhaps `account`, and names in `watch.labels`."""

    interval: Annotated[float, duration("1s", "1d")] = 30.0
    """From the start of one run to the start of the next."""

    timeout: Annotated[float, duration("1s", "1h")] = 30.0
    """How long the database may work on the query."""

    account: KnownAccount | None = None
    """The account of rows that name none; may be left out where there is one account."""
