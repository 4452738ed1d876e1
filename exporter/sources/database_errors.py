"""What is said of a database that fails: nothing of its address."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from exporter.errors import SourceError

FROM_CLIENT: Final = 2000
"""Error numbers of MySQL and MariaDB from here on are the client's, about connecting."""


@contextmanager
def translated() -> Iterator[None]:
    """Turn whatever a database raises into a `SourceError`."""
    try:
        yield
    except DBAPIError as error:
        raise SourceError(_words(error.orig or error)) from None
    except SQLAlchemyError as error:
        # Its own words may hold the statement or the address.
        raise SourceError(f"the query cannot be run ({type(error).__name__})") from None
    except SourceError:
        raise
    except Exception as error:  # noqa: BLE001 - drivers raise what they like, as for odd text
        raise SourceError(f"the driver failed ({type(error).__name__})") from None


def _words(error: BaseException) -> str:
    """Return the first line of a driver's words; those about connecting may hold the address."""
    name = type(error).__name__
    if isinstance(error, sqlite3.Error):
        return f"the database failed: {error} ({name})"
    code, message = next(iter(error.args), ""), None
    if isinstance(code, int) and len(error.args) > 1 and code < FROM_CLIENT:
        message = error.args[1]  # PyMySQL
    elif primary := getattr(getattr(error, "diag", None), "message_primary", None):
        message = primary  # psycopg
    shown = str(message).splitlines()[0][:200] if message else "it cannot be reached"
    return f"the database failed: {shown} ({name})"
