"""The JSON Schema of the configuration file, for editors and other tools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from exporter.config.credentials import CREDENTIALS
from exporter.config.durations import format_duration
from exporter.config.models import Config

_ANNOTATIONS: Final = ("title", "description", "default")
_VARIABLE = {"type": "string", "pattern": r"^\$\{.+\}$"}


def json_schema() -> dict[str, object]:
    """Return the JSON Schema (draft 2020-12) of the file, as it is before `${NAME}` is replaced."""
    schema: dict[str, Any] = Config.model_json_schema()  # Any: as pydantic declares it
    definitions = schema["$defs"]
    for model in (schema, *definitions.values()):
        model["properties"] = {
            key: _as_in_file(value) for key, value in model["properties"].items()
        }
    for described, keys in CREDENTIALS.items():
        _offer_files(definitions[described.__name__], keys)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _as_in_file(value: dict[str, Any]) -> dict[str, Any]:
    """Describe one key as it is written: times as durations, numbers also as variables."""
    if "$ref" in value:
        # The defaults stand with the keys themselves, as durations.
        return {"$ref": value["$ref"]}
    if value.get("format") == "duration" and "default" in value:
        value = {**value, "default": format_duration(value["default"])}
    if value.get("type") in {"integer", "number"} or value.get("format") == "duration":
        about: dict[str, Any] = {key: value.pop(key) for key in _ANNOTATIONS if key in value}
        value = {**about, "anyOf": [value, _VARIABLE]}
    return value


def _offer_files(model: dict[str, Any], keys: Sequence[str]) -> None:
    """Let each credential be named as a file instead."""
    properties = model["properties"]
    for key in keys:
        properties[f"{key}_file"] = {
            "title": f"{properties[key]['title']} File",
            "description": f"A file that holds the value of `{key}`, relative to this one;"
            " read again when it changes.",
            "type": "string",
            "minLength": 1,
        }
    needed = model.get("required", [])
    required = [key for key in keys if key in needed]
    if not required:
        return
    model["required"] = [key for key in needed if key not in required]
    model["allOf"] = [
        {"oneOf": [{"required": [key]}, {"required": [f"{key}_file"]}]} for key in required
    ]
