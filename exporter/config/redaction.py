"""A configuration for bug reports: without secrets, ids and phone numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Final, Literal, get_args, get_origin

from exporter.config import MAX_FILE, Config
from exporter.config.document import Problems, Value, YamlMapping, YamlSequence, load_mapping
from exporter.config.validation import DURATION_PATTERN, Section
from exporter.errors import Problem
from exporter.secrets import mask_phone_numbers

HIDDEN: Final = "***"

# Keys with texts that are shown, in any section. The texts of all other keys are hidden, so that a
# new key reveals nothing; numbers, durations and words of a fixed set are shown.
_SHOWN: Final = frozenset(
    {"name", "account", "accounts", "base_url", "message_url", "balance_url", "codes", "labels"}
    | {"files", "cron", "timezone", "discovery_prefix", "topic_prefix"}
)

# The scheme of a secret URL is shown.
_SCHEME: Final = re.compile(r"(?:https?|mqtts?|sqlite|postgresql|mysql|mariadb)(?:\+[a-z]+)?://")

# The default of `${NAME:-default}`, which is not checked where the variable is set.
_DEFAULT: Final = re.compile(r"(?<=\w):-[^}]*(?=\})")

# The path in a problem with a file.
_FILE: Final = re.compile(r"(?<=the file )/.*(?= (?:cannot|contains|is) )")

_MAX_HARMLESS: Final = 1_000_000
"""Smaller numbers are neither ids nor phone numbers."""


def redacted_config(path: Path, *, valid: bool) -> object:
    """Return the content of a configuration file, with `***` for what is hidden.

    Variables `${NAME}` are not replaced. In a file that is not `valid`, any value may be a
    misplaced secret: only small numbers, switches and durations are shown. Raises a `ConfigError`
    if the file is not a YAML mapping.
    """
    document = load_mapping(path, MAX_FILE, None, Problems(str(path)), "accounts")
    return _section(document, Config, valid=valid)


def redacted_problem(problem: Problem) -> str:
    """Return the text of a problem, without unknown keys and paths: they may be secrets."""
    key = problem.key
    if problem.message.startswith("unknown key"):
        key = f"{key.rpartition('.')[0]}.?".lstrip(".")
    return str(replace(problem, key=key, message=_FILE.sub(HIDDEN, problem.message)))


def _section(value: Value, model: type[Section], *, valid: bool) -> object:
    """Redact a section, or a list of sections."""
    if isinstance(value, YamlSequence):
        return [_section(item, model, valid=valid) for item in value]
    if not isinstance(value, YamlMapping):
        return _redacted(value, shown=False)
    redacted: dict[str, object] = {}
    for key, item in value.items():
        about = model.model_fields.get(key)
        types = [] if about is None else [*_types(about.annotation)]
        if key.endswith("_file") and key.removesuffix("_file") in model.file_keys:
            redacted[key] = _redacted(item, shown=valid)  # the path of a file
        elif not types:
            redacted["?"] = HIDDEN  # an unknown key may be a secret itself
        elif section := next((one for one in types if issubclass(one, Section)), None):
            redacted[key] = _section(item, section, valid=valid)
        else:
            fixed = all(issubclass(one, int | float | Enum) for one in types)
            shown = (fixed and _is_harmless(item)) or (valid and (fixed or key in _SHOWN))
            redacted[key] = _redacted(item, shown=shown and key not in model.file_keys)
    return redacted


def _redacted(value: Value, *, shown: bool) -> object:
    if value is None or isinstance(value, bool):
        return value
    if not shown:
        scheme = _SCHEME.match(value) if isinstance(value, str) else None
        return (scheme[0] if scheme else "") + HIDDEN
    if isinstance(value, YamlMapping):
        return {key: _redacted(item, shown=True) for key, item in value.items()}
    if isinstance(value, YamlSequence):
        return [_redacted(item, shown=True) for item in value]
    if isinstance(value, str):
        return mask_phone_numbers(_DEFAULT.sub("", value))
    return value


def _is_harmless(value: Value) -> bool:
    if isinstance(value, int | float):
        return abs(value) < _MAX_HARMLESS
    return isinstance(value, str) and bool(re.match(DURATION_PATTERN, value))


def _types(annotation: Any) -> Iterator[type]:  # Any: a type, or a part of one
    """Yield the types of the values of a key, such as those of the items of a list.

    Words of a fixed set count as an `Enum`.
    """
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        yield Enum
    elif origin is Annotated:
        yield from _types(parts[0])
    elif parts:
        for part in parts:
            yield from _types(part)
    elif annotation not in (Ellipsis, NoneType):
        yield annotation
