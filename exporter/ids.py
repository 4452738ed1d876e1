"""ReferenceIds: what they look like, and the form in which they are compared. Pure."""

from __future__ import annotations

import re
from typing import Final, NewType

ReferenceId = NewType("ReferenceId", str)
"""A call's id as its source wrote it, without surrounding blanks: what the provider is asked."""

ReferenceKey = NewType("ReferenceKey", str)
"""The same id as it is compared: without case, blanks and dashes, in which spellings differ."""

MAX_REFERENCE_ID_LENGTH: Final = 128

ID_PATTERN: Final = (
    r"(?![0-9]+[.][0-9]*([eE][0-9]+)?(\s|$))"
    rf"[A-Za-z0-9][A-Za-z0-9!#$%&*./:?@\\^_~-]{{0,{MAX_REFERENCE_ID_LENGTH - 1}}}"
)
"""What an id looks like. Not `[!-~]+`: what spreadsheets, scripts and columns of floating-point
numbers make of ids is refused, not polled."""

_ID: Final = re.compile(ID_PATTERN)
_COLUMN_NAMES: Final = frozenset({"reference_id", "referenceid", "smsid"})
_NULLS: Final = frozenset({"null", "none", "nan", "undefined"})
_LOOKS_LIKE: Final = (
    (
        r"[0-9]+([.][0-9]*|([.,][0-9]+)?[eE]\+?[0-9]+)$",
        "looks like a number that a spreadsheet has rounded",
    ),
    ("=", "looks like a formula"),
    (".*[\t,;|]", "looks like a row of CSV"),
    (".*[\"'`]", "looks quoted; write the id alone"),
    ("", "holds a character that no id has, or begins with one that none begins with"),
)


def reference_id(text: str) -> ReferenceId:
    """Return `text` as an id: trimmed, since the documented `SMSID` ends in a blank.

    Raises:
        ValueError: it cannot be one; the message says what it looks like.
    """
    trimmed = text.strip()
    if not trimmed:
        raise ValueError("is empty")
    if len(trimmed) > MAX_REFERENCE_ID_LENGTH:
        raise ValueError(f"is longer than {MAX_REFERENCE_ID_LENGTH} characters")
    if not _ID.fullmatch(trimmed):
        raise ValueError(next(words for like, words in _LOOKS_LIKE if re.match(like, trimmed)))
    if trimmed.lower() in _COLUMN_NAMES:
        raise ValueError("looks like the name of a column")
    if trimmed.lower() in _NULLS:
        raise ValueError("is a word for no value")
    return ReferenceId(trimmed)


def reference_key(text: str) -> ReferenceKey:
    """Return the form in which ids are compared.

    The documented `SMSID` of a placed call lacks a dash that its status has.
    """
    return ReferenceKey("".join(text.split()).replace("-", "").lower())
