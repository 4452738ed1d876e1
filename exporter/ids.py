"""ReferenceIds: validation, comparison and kinds. Pure."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final, NewType


class Kind(StrEnum):
    """The kind of an id: calls and messages have separate operations in the provider's API."""

    CALL = "call"
    MESSAGE = "message"  # a Voice OTP, an SMS, a Zalo or Viber message; the id is its `SMSID`


ReferenceId = NewType("ReferenceId", str)
"""The id of a call as the source wrote it, trimmed. Requests to the provider use it."""

ReferenceKey = NewType("ReferenceKey", str)
"""The id for comparison: in lower case, without whitespace and dashes."""

MAX_REFERENCE_ID_LENGTH: Final = 128

ID_PATTERN: Final = (
    r"(?![0-9]+[.][0-9]*([eE][0-9]+)?(\s|$))"
    rf"[A-Za-z0-9][A-Za-z0-9!#$%&*./:?@\\^_~-]{{0,{MAX_REFERENCE_ID_LENGTH - 1}}}"
)
"""The syntax of an id. Stricter than `[!-~]+`, to refuse ids that spreadsheets, scripts or float
columns have mangled."""

_ID: Final = re.compile(ID_PATTERN)
_COLUMN_NAMES: Final = frozenset({"reference_id", "referenceid", "smsid"})
_NULLS: Final = frozenset({"null", "none", "nan", "undefined"})
_LOOKS_LIKE: Final = (
    (
        r"[0-9]+([.][0-9]*|([.,][0-9]+)?[eE]\+?[0-9]+)$",
        "looks like a number rounded by a spreadsheet",
    ),
    ("=", "looks like a formula"),
    (".*[\t,;|]", "looks like a row of CSV"),
    (".*[\"'`]", "looks quoted; write the id alone"),
    ("", "contains a character that is not allowed in an id, or at its start"),
)


def reference_id(text: str) -> ReferenceId:
    """Return `text` as a trimmed id; the documented `SMSID` ends in a space.

    Raises:
        ValueError: the text is not an id; the message says what was expected.
    """
    trimmed = text.strip()
    if problem := _problem(trimmed):
        raise ValueError(f"expected an id; the text {problem}")
    return ReferenceId(trimmed)


def _problem(text: str) -> str | None:
    if not text:
        return "is empty"
    if len(text) > MAX_REFERENCE_ID_LENGTH:
        return f"is longer than {MAX_REFERENCE_ID_LENGTH} characters"
    if not _ID.fullmatch(text):
        return next(words for like, words in _LOOKS_LIKE if re.match(like, text))
    if text.lower() in _COLUMN_NAMES:
        return "looks like a column name"
    return "looks like a null value" if text.lower() in _NULLS else None


def reference_key(text: str) -> ReferenceKey:
    """Return the id for comparison.

    In the documentation, the `SMSID` of a placed call lacks a dash of its ReferenceId.
    """
    return ReferenceKey("".join(text.split()).replace("-", "").lower())
