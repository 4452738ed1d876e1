"""Control input: JSON objects become dataclasses, or an error that says what was expected."""

from __future__ import annotations

import functools
import json
import types
from collections.abc import Hashable, Mapping
from dataclasses import MISSING, fields
from enum import StrEnum
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")
_MAX_NUMBER = 1e300


class InputError(ValueError):
    """Control input that cannot be used; the message says why."""


def parse(body: bytes) -> object:
    """The JSON value of a body.

    Raises:
        InputError: it is not JSON.
    """
    try:
        return json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"expected JSON: {error}") from None


def mapping(value: object) -> Mapping[str, object]:
    """The value, if it is a JSON object.

    Raises:
        InputError: it is not.
    """
    if not isinstance(value, dict):
        raise InputError("expected a JSON object")
    return value


def read(kind: type[T], value: object, /, **given: object) -> T:
    """Make a dataclass from a JSON object.

    Args:
        kind: the dataclass.
        value: the JSON value.
        given: fields that come from elsewhere, unless the object names them.

    Raises:
        InputError: an unknown or missing field, or a value that does not fit.
    """
    hints = _hints(cast("Hashable", kind))
    values = dict(given)
    for name, item in mapping(value).items():
        if name not in hints:
            raise InputError(f"{name}: unknown; expected one of {', '.join(hints)}")
        values[name] = _fitting(name, hints[name], item)
    # `kind` is a dataclass, which no type variable can say.
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name not in values and field.default is MISSING:
            raise InputError(f"{field.name}: missing")
    try:
        return kind(**values)
    except ValueError as error:
        raise InputError(str(error)) from None


@functools.cache
def _hints(kind: Hashable) -> dict[str, Any]:  # a type hint may be any object
    return get_type_hints(kind)


def _fitting(name: str, hint: Any, value: object) -> object:  # as above
    choices = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for choice in choices:
        wanted = get_origin(choice) or choice
        if wanted is float and _is_number(value):
            return value
        if isinstance(wanted, type) and issubclass(wanted, StrEnum):
            if isinstance(value, str) and value in list(wanted):
                return wanted(value)
        elif wanted is int and isinstance(value, bool):
            continue
        elif isinstance(value, wanted):
            return value
    raise InputError(f"{name}: expected {' or '.join(_told(choice) for choice in choices)}")


def _is_number(value: object) -> bool:
    # The bound keeps integers out that no float can hold.
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _MAX_NUMBER
    )


def _told(choice: Any) -> str:  # as above
    wanted = get_origin(choice) or choice
    if issubclass(wanted, StrEnum):
        return "one of " + ", ".join(wanted)
    names = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}
    return names.get(wanted, "null" if wanted is types.NoneType else "an object")


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")
