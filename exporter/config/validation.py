"""From what a document says to a model, or to every problem with the line that it stands on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError

from exporter.config.credentials import NO_SECRET
from exporter.config.document import BROKEN, Value, YamlMapping, YamlSequence
from exporter.config.problems import Problems

M = TypeVar("M", bound=BaseModel)

_MESSAGES: Final = {
    "missing": "missing required key",
    "model_type": "expected a mapping of keys to values",
    "dict_type": "expected a mapping of keys to values",
    "tuple_type": "expected a list",
    "too_short": "expected at least {min_length} item",
    "too_long": "expected at most {max_length} items",
}


def validated(
    model: type[M], data: Mapping[str, object], document: Value, problems: Problems
) -> M | None:
    """Return the model that is made of `data`, or None where `problems` has been told why not."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            # What is broken was told, and items that are wrong leave a list too short.
            given = detail["input"]
            told = given is BROKEN or given is NO_SECRET
            told = told or (detail["type"] == "too_short" and bool(given))
            if not told:
                # A key that is wrong has pydantic's own mark behind it.
                parts = [part for part in detail["loc"] if part != "[key]"]
                message = _MESSAGES.get(detail["type"], detail["msg"])
                message = message.format_map(detail.get("ctx", {}))
                problems.add(line_of(document, parts), parts, message)
        return None


def line_of(document: Value, parts: Iterable[str | int]) -> int:
    """Return the line of a key or item, or of the nearest above it that is there."""
    value, line = document, 1
    for part in parts:
        if isinstance(value, YamlMapping) and isinstance(part, str) and part in value:
            line, value = value.line_of(part), value[part]
        elif isinstance(value, YamlSequence) and isinstance(part, int):
            line, value = value.lines[part], value[part]
        else:
            break
    return line
