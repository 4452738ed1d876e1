"""Durations as Prometheus writes them: `15s`, `1m30s`, `3d`."""

from __future__ import annotations

import re

# As prometheus/common's model.ParseDuration: every unit at most once, from large to small.
_MILLISECONDS = {
    "y": 365 * 86_400_000,
    "w": 7 * 86_400_000,
    "d": 86_400_000,
    "h": 3_600_000,
    "m": 60_000,
    "s": 1_000,
    "ms": 1,
}
# Nine digits of years are far beyond every bound, and keep the arithmetic exact.
_UNITS = "".join(rf"(?:([0-9]{{1,9}}){unit})?" for unit in _MILLISECONDS)
_DURATION = re.compile(rf"(?!$)(?:{_UNITS}|0)", re.ASCII)

JSON_PATTERN = r"^(0|(?=[0-9])" + "".join(f"([0-9]{{1,9}}{unit})?" for unit in _MILLISECONDS) + ")$"
"""The same as a regular expression of JSON Schema (ECMA-262)."""


def parse_duration(text: str) -> float:
    """Return the seconds that `text` stands for.

    Units are y (365 days), w, d, h, m, s and ms, in this order, each at most once; a bare `0`
    needs no unit. See "Float literals and time durations" in Prometheus' querying basics.

    Raises:
        ValueError: `text` is not a duration. The message does not repeat it.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError("expected a duration such as `15s`, `1m30s` or `3d`")
    return (
        sum(
            int(number) * milliseconds
            for number, milliseconds in zip(match.groups(), _MILLISECONDS.values(), strict=True)
            if number
        )
        / 1000
    )


def format_duration(seconds: float) -> str:
    """Write `seconds`, 0 or more, in the fewest units of a week or less; rounds to milliseconds.

    Years and weeks are left out: `30d` says more than `4w2d`.
    """
    rest = round(seconds * 1000)
    parts = []
    for unit in ("d", "h", "m", "s", "ms"):
        number, rest = divmod(rest, _MILLISECONDS[unit])
        if number:
            parts.append(f"{number}{unit}")
    return "".join(parts) or "0s"
