"""What a plain scalar of YAML means, by the core schema of YAML 1.2.

PyYAML follows YAML 1.1, where `no` is false, `010` is 8 and `1:30` is 90; a name, an id or a
label that happens to look like that would silently become something else.
"""

from __future__ import annotations

import re

Scalar = str | int | float | bool | None

_WORDS: dict[str, bool | None] = {
    "": None,
    "~": None,
    "null": None,
    "Null": None,
    "NULL": None,
    "true": True,
    "True": True,
    "TRUE": True,
    "false": False,
    "False": False,
    "FALSE": False,
}
# Longer runs of digits become floats: nothing here needs them, and int() refuses very long ones.
_INTEGER = re.compile(r"[-+]?[0-9]{1,18}", re.ASCII)
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)"
    r"|\.(?:nan|NaN|NAN)",
    re.ASCII,
)
_NUMBER_STARTS = frozenset("+-.0123456789")


def resolve(text: str) -> Scalar:
    """Return the value of a plain scalar: null, a boolean, a number, else the text itself."""
    if text[:1] not in _NUMBER_STARTS:
        return _WORDS.get(text, text)
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        # Python spells infinity and not-a-number without YAML's dot.
        return float(text.replace(".", "") if text[-1] in "fFnN" else text)
    return text
