"""`${NAME}` and `${NAME:-default}` in values, from the environment."""

from __future__ import annotations

import re
from collections.abc import Mapping

_NAME = r"[A-Za-z_][A-Za-z0-9_]{0,254}"
_REFERENCE = rf"\$\{{({_NAME})(?::-([^}}]*))?\}}"
_TOKEN = re.compile(rf"\$\$|{_REFERENCE}|\$\{{", re.ASCII)
_WHOLE = re.compile(_REFERENCE, re.ASCII)


class Unresolved(str):
    """A plain scalar as text, such as the value of a single `${NAME}` without quotes.

    A key that is not a string may read it as a number; elsewhere it is text.
    """

    __slots__ = ()


class InterpolationError(ValueError):
    """A reference cannot be replaced; the message holds the variable's name, never a value."""


def interpolate(text: str, environ: Mapping[str, str], *, plain: bool) -> str:
    """Return `text` with references replaced, once: what comes in is not looked at again.

    As in a shell, the default also stands in for a variable that is empty. `$$` is a `$`, and
    a `$` before anything but `$` and `{` is itself.

    Args:
        text: the value as the file has it.
        environ: the variables.
        plain: the value was written without quotes.

    Raises:
        InterpolationError: a variable is not set, or a reference is malformed.
    """

    def replacement(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        name, default = match[1], match[2]
        if name is None or (default is not None and "${" in default):
            raise InterpolationError(
                "malformed `${`; expected `${NAME}` or `${NAME:-default}`, or `$$` for a `$`"
            )
        value = environ.get(name)
        if value is None and default is None:
            raise InterpolationError(
                f"the environment variable `{name}` is not set;"
                f" expected it, or a default as in `${{{name}:-default}}`"
            )
        return value or default or ""

    result = _TOKEN.sub(replacement, text)
    return Unresolved(result) if plain and _WHOLE.fullmatch(text) else result
