"""Addresses of databases and queries on them, as SQLAlchemy takes them."""

from __future__ import annotations

import re
from typing import Final

from sqlalchemy import URL, make_url, text
from sqlalchemy.exc import SQLAlchemyError

from exporter.secrets import Secret

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


def database_problem(secret: Secret) -> str | None:
    """Return what is wrong with an address, without repeating any of it; None if it will do."""
    text = secret.reveal()
    rest = text.partition("://")[2]
    # As a person means it. SQLAlchemy ends a password at the first `@`: the rest of it would become
    # a host, which is printed and looked up.
    user, at, _ = rest.rpartition("@")
    if at and not rest.startswith("/") and _UNENCODED.search(user):
        return (
            "the user or the password holds a reserved character (any of `@/?#[]%`) or one that is "
            "not ASCII; percent-encode it, such as `%40` for `@` and `%25` for `%`"
        )
    try:
        url = database_url(secret)
        dialect = url.get_dialect()
        dialect.import_dbapi()
    except (SQLAlchemyError, ValueError):
        return "expected a URL such as `postgresql://USER:PASSWORD@HOST/DATABASE`"
    except ImportError as error:
        return f"the driver of this database is not installed: `{error.name}`"
    if url.get_backend_name() == "sqlite":
        return _sqlite_problem(url.database or "")
    return None


def _sqlite_problem(name: str) -> str | None:
    if not name or name.startswith(("file:", ":memory:")):
        return "expected the path of a file; a database in memory ends with its connection"
    if name.endswith(("/", "/.", "/..")) or name in {".", ".."}:
        return "expected the path of a file, not of a folder"
    return None


def query_problem(query: str) -> str | None:
    """Return what is wrong with the parameters of a query; None if they will do."""
    if ":since::" in query:
        # SQLAlchemy takes it for no parameter, and the database for none of its own.
        return "expected `CAST(:since AS TYPE)` in place of `:since::TYPE`"
    if not text(query).compile().params.keys() <= {"since"}:
        return "expected no parameter but `:since`; write `\\:` for a colon"
    return None
