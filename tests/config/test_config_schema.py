from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from exporter.config import AccountConfig, Config, json_schema, load_config
from exporter.config.validation import parse_duration
from exporter.secrets import Secret

EXAMPLE = Path(__file__).parents[2] / "config.example.yaml"
SCHEMA: dict[str, Any] = json_schema()  # Any: JSON
MODELS = [SCHEMA, *(it for it in SCHEMA["$defs"].values() if it["type"] == "object")]


def keys(schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Give every key below a schema, wherever it stands."""
    found: dict[str, dict[str, Any]] = {}
    if "$ref" in schema:
        found |= keys(SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")])
    for key, value in schema.get("properties", {}).items():
        found |= {key: value} | keys(value)
    for part in [schema.get("items", {}), *schema.get("anyOf", [])]:
        if part:
            found |= keys(part)
    return found


def example() -> Config:
    return load_config(EXAMPLE, {"ESMS_API_KEY": "k", "ESMS_SECRET_KEY": "s"})


def test_the_example_needs_two_variables_and_shows_the_defaults() -> None:
    config = example()
    account = AccountConfig(name="main", api_key=Secret("k"), secret_key=Secret("s"))
    default = Config(accounts=(account,))
    assert config.accounts == default.accounts
    assert config.polling == default.polling
    assert config.ledger == default.ledger
    assert config.metrics == default.metrics
    assert config.shutdown_timeout == default.shutdown_timeout
    without = {"labels", "calls"}
    assert config.watch.model_dump(exclude=without) == default.watch.model_dump(exclude=without)
    assert len(config.watch.calls) == 2


@pytest.mark.parametrize("key", keys(SCHEMA))
def test_the_example_explains_every_key(key: str) -> None:
    assert re.search(rf"^ *(?:- |# *)*{key}:", EXAMPLE.read_text(), re.MULTILINE)


@pytest.mark.parametrize("key", keys(SCHEMA))
def test_every_key_is_described(key: str) -> None:
    about = keys(SCHEMA)[key]
    target = about.get("$ref", "").removeprefix("#/$defs/")
    about = SCHEMA["$defs"][target] if target else about
    assert about["title"]
    assert about["description"].endswith(".")


def test_it_is_a_schema_of_draft_2020_12() -> None:
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA
    assert all(model["additionalProperties"] is False for model in MODELS)
    assert SCHEMA["required"] == ["accounts"]


def test_a_key_may_be_a_file_instead() -> None:
    account = SCHEMA["$defs"]["AccountConfig"]
    assert account["required"] == ["name"]
    assert account["allOf"] == [
        {"oneOf": [{"required": ["api_key"]}, {"required": ["api_key_file"]}]},
        {"oneOf": [{"required": ["secret_key"]}, {"required": ["secret_key_file"]}]},
    ]


def test_every_secret_may_be_in_a_file() -> None:
    for model in MODELS:
        known = model["properties"]
        secrets = {key for key, about in known.items() if '"password"' in json.dumps(about)}
        certificates = known.keys() & {"ca", "cert"}
        assert secrets | certificates == {key for key in known if f"{key}_file" in known}


def test_durations_are_described_as_they_are_written() -> None:
    about = keys(SCHEMA)["max_interval"]
    assert about["default"] == "5m"
    duration, variable = about["anyOf"]
    assert parse_duration(about["default"]) == 300
    assert duration["type"] == "string"
    assert re.search(duration["pattern"], "1m30s")
    assert not re.search(duration["pattern"], "15")
    assert re.search(variable["pattern"], "${INTERVAL:-15s}")
