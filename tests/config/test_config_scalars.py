from __future__ import annotations

import math

import pytest

from exporter.config.document import resolve


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("~", None),
        ("null", None),
        ("true", True),
        ("FALSE", False),
        ("12", 12),
        ("-3", -3),
        ("+3", 3),
        ("010", 10),
        ("0.5", 0.5),
        (".5", 0.5),
        ("1.", 1.0),
        ("1e3", 1000.0),
        ("-.inf", -math.inf),
        (".INF", math.inf),
        ("9" * 5000, math.inf),
        ("1" * 19, 1111111111111111111.0),
    ],
)
def test_the_core_schema_of_yaml_1_2_tells_what_a_scalar_is(text: str, value: object) -> None:
    resolved = resolve(text)
    assert resolved == value
    assert type(resolved) is type(value)


def test_not_a_number_is_a_number() -> None:
    assert math.isnan(resolve(".nan"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "yes",
        "no",
        "on",
        "off",
        "y",
        "N",
        "1:30",
        "190:20:30",
        "0x1F",
        "0o17",
        "1_000",
        "2026-01-02",
        "tRUE",
        "nULL",
        "1e",
        ".",
        "-",
        "=",
        "<<",
        "8eb2af6d-fb4c",
        "\u0661",
    ],
)
def test_everything_else_is_text(text: str) -> None:
    assert resolve(text) == text
