"""What is said of a database that fails: nothing of its address, and nothing of its users."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from exporter.errors import SourceError

_USER: Final = re.compile(r"'[^']*'@'[^']*'|(?<=\buser )'[^']*'", re.IGNORECASE)
"""As MySQL and MariaDB name those who may not: with their address, as the server sees it."""

_PARTS: Final = frozenset(
    {"host", "hostaddr", "port", "user", "password", "dbname", "database", "service", "unix_socket"}
)
"""Options of drivers that say where a database is, and for whom."""

_NO_CONNECTION: Final = "it cannot be reached, or refuses the user"
_BROKEN: Final = "the connection broke, or the driver does not say why"


def parts_of(url: URL) -> re.Pattern[str]:
    """Return what finds the parts of a database's address in a message."""
    values = [url.host, url.username, url.password, url.database, url.port]
    for name in _PARTS & url.query.keys():
        value = url.query[name]
        values += (value if isinstance(value, str) else ",".join(value)).split(",")
    words = sorted({str(value) for value in values if value}, key=len, reverse=True)
    # As whole words; with none, nothing is found.
    found = "|".join(map(re.escape, words)) or "(?!)"
    return re.compile(rf"(?<!\w)(?:{found})(?!\w)", re.IGNORECASE)


@contextmanager
def translated(hidden: re.Pattern[str], *, connecting: bool = False) -> Iterator[None]:
    """Turn whatever a database raises into a `SourceError`.

    Args:
        hidden: finds what a message may not repeat.
        connecting: nothing has been asked yet; what is said then is all about addresses and users.
    """
    try:
        yield
    except DBAPIError as error:
        raise SourceError(_words(error.orig or error, hidden, connecting=connecting)) from None
    except SQLAlchemyError as error:
        # Its own words may hold the statement or the address.
        raise SourceError(f"the query cannot be run ({type(error).__name__})") from None
    except SourceError:
        raise
    except Exception as error:  # noqa: BLE001 - drivers raise what they like, as for odd text
        raise SourceError(f"the driver failed ({type(error).__name__})") from None


def _words(error: BaseException, hidden: re.Pattern[str], *, connecting: bool) -> str:
    """Return what a driver says, as far as it may be shown."""
    number = next(iter(error.args), None)
    name = type(error).__name__
    if isinstance(number, int):  # PyMySQL
        name = f"{name} {number}"
    told = hidden.sub("***", _USER.sub("'***'", _told(error).partition("\n")[0]))[:200]
    if connecting and not isinstance(error, sqlite3.Error):  # which never says more than is wrong
        told = _NO_CONNECTION
    return f"the database failed: {told or _BROKEN} ({name})"


def _told(error: BaseException) -> str:
    """Return what a server, or SQLite, says of a query."""
    match error.args:
        case (int(), str(message), *_):  # PyMySQL
            return message
    if isinstance(error, sqlite3.Error):
        return str(error)
    return getattr(getattr(error, "diag", None), "message_primary", None) or ""  # psycopg
