from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.config.validation import DURATION_PATTERN, format_duration, parse_duration

WEEK = 604_800


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("0s", 0),
        ("100ms", 0.1),
        ("15s", 15),
        ("1m30s", 90),
        ("6h", 21_600),
        ("3d", 259_200),
        ("1w", WEEK),
        ("1y", 365 * 86_400),
        ("1y2w3d4h5m6s7ms", 365 * 86_400 + 2 * WEEK + 3 * 86_400 + 4 * 3600 + 5 * 60 + 6.007),
        ("0090s", 90),
    ],
)
def test_a_duration_is_read_as_prometheus_reads_it(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)
    assert re.search(DURATION_PATTERN, text)


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "15 s", " 15s", "15s\n", "1h 30m", "1234567890s", "15", "s", "1.5s", "-1s"),
        *("+1s", "15S", "15sec", "1s1m", "1s1s", "30ms1s", "00", "\u0661s"),
    ],
)
def test_what_is_no_duration_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ValueError, match=r"^expected a duration such as `15s`, `1m30s` or `3d`$"):
        parse_duration(text)
    assert not re.search(DURATION_PATTERN.replace("$", r"\Z"), text, re.ASCII)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.1, "100ms"), (90, "1m30s"), (2_592_000, "30d"), (300, "5m")],
)
def test_a_duration_is_written_in_few_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.integers(min_value=0, max_value=10**14))
def test_what_is_written_is_read_back(milliseconds: int) -> None:
    assert parse_duration(format_duration(milliseconds / 1000)) == milliseconds / 1000
