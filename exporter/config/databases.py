"""Addresses of databases and queries on them, as SQLAlchemy takes them."""

from __future__ import annotations

from typing import Final

from sqlalchemy import URL, make_url, text
from sqlalchemy.exc import SQLAlchemyError

from exporter.secret import Secret

# The drivers that the extras install, in place of those that SQLAlchemy would take.
_DRIVERS: Final = {
    "postgresql": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mariadb": "mariadb+pymysql",
}


def database_url(secret: Secret) -> URL:
    """Return an address with its driver.

    Raises:
        SQLAlchemyError: it is none; the exception may hold it.
    """
    url = make_url(secret.reveal())
    return url.set(drivername=_DRIVERS.get(url.drivername, url.drivername))


def database_problem(secret: Secret) -> str | None:
    """Return what is wrong with an address, without repeating any of it; None if it will do."""
    try:
        dialect = database_url(secret).get_dialect()
        dialect.import_dbapi()
    except (SQLAlchemyError, ValueError):
        return "expected a URL such as `postgresql://USER:PASSWORD@HOST/DATABASE`"
    except ImportError as error:
        return f"the driver of this database is not installed: `{error.name}`"
    return None


def query_problem(query: str) -> str | None:
    """Return what is wrong with the parameters of a query; None if they will do."""
    if ":since::" in query:
        # SQLAlchemy takes it for no parameter, and the database for none of its own.
        return "expected `CAST(:since AS TYPE)` in place of `:since::TYPE`"
    if not text(query).compile().params.keys() <= {"since"}:
        return "expected no parameter but `:since`; write `\\:` for a colon"
    return None
