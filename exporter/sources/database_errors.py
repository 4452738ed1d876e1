"""What is said of a database that fails: nothing of its address, and nothing of its users."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from exporter.errors import SourceError

_USER: Final = re.compile(r"'[^']*'@'[^']*'|(?<=\buser )'[^']*'", re.IGNORECASE)
"""As MySQL and MariaDB name those who may not: with their address, as the server sees it."""

_NO_CONNECTION: Final = "it cannot be reached, or refuses the user"
_BROKEN: Final = "the connection broke, or the driver does not say why"


@contextmanager
def translated(*, connecting: bool = False) -> Iterator[None]:
    """Turn whatever a database raises into a `SourceError`.

    Args:
        connecting: nothing has been asked yet; what is said then is all about addresses and users.
    """
    try:
        yield
    except DBAPIError as error:
        raise SourceError(_words(error.orig or error, connecting=connecting)) from None
    except SQLAlchemyError as error:
        # Its own words may hold the statement or the address.
        raise SourceError(f"the query cannot be run ({type(error).__name__})") from None
    except SourceError:
        raise
    except Exception as error:  # noqa: BLE001 - drivers raise what they like, as for odd text
        raise SourceError(f"the driver failed ({type(error).__name__})") from None


def _words(error: BaseException, *, connecting: bool) -> str:
    """Return what a driver says, as far as it may be shown."""
    number = next(iter(error.args), None)
    name = type(error).__name__
    if isinstance(number, int):  # PyMySQL
        name = f"{name} {number}"
    message = _NO_CONNECTION if connecting else (_told(error) or _BROKEN)
    if isinstance(error, sqlite3.Error):
        message = str(error)  # never more than what is wrong
    return f"the database failed: {message} ({name})"


def _told(error: BaseException) -> str:
    """Return the first line of what a server says of a query."""
    match error.args:
        case (int(), str(message), *_):  # PyMySQL
            pass
        case _:
            message = (
                getattr(getattr(error, "diag", None), "message_primary", None) or ""
            )  # psycopg
    return _USER.sub("'***'", message.partition("\n")[0])[:200]
