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

    Variables `${NAME}` are not replaced.

    Args:
        path: the file.
        valid: whether it was loaded without a problem. Otherwise any value may be a misplaced
            secret: only small numbers, switches and durations are shown.

    Raises:
        ConfigError: the file is not a YAML mapping.
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
        if key.endswith("_file") and key.removesuffix("_file") in model.secrets:
            redacted[key] = _redacted(item, shown=valid)  # the path of a file
        elif about is None:
            redacted["?"] = HIDDEN  # an unknown key may be a secret itself
        elif section := next(_sections(about.annotation), None):
            redacted[key] = _section(item, section, valid=valid)
        else:
            fixed = _is_fixed(about.annotation) and (valid or _is_harmless(item))
            shown = fixed or (valid and key in _SHOWN)
            redacted[key] = _redacted(item, shown=shown and key not in model.secrets)
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


def _sections(annotation: Any) -> Iterator[type[Section]]:  # Any: a type, or a part of one
    """Yield the sections in the type of a key."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for part in get_args(annotation):
        yield from _sections(part)


def _is_fixed(annotation: Any) -> bool:  # Any: likewise
    """Return whether the values of a key are numbers, durations or words of a fixed set."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return True
    if origin is Annotated:
        return _is_fixed(parts[0])
    if parts:
        return all(_is_fixed(part) for part in parts if part not in (Ellipsis, NoneType))
    return isinstance(annotation, type) and issubclass(annotation, int | float | Enum)
