"""Small charts of bars, as paths of SVG. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

STEP: Final = 6
HEIGHT: Final = 72
_BAR: Final = 4
_LEAST: Final = 2.0
"""Height of the smallest bar: one that is there has to be seen."""


class Chart(NamedTuple):
    """Bars above a line and below it: which side tells what, not the colour alone.

    Attributes:
        width: of the whole, in units of SVG; `height` likewise.
        line: where the line is, from the top.
        above: the path of the bars above it; empty where there are none. `below` likewise.
        most: the largest sum of both at one place.
    """

    width: int
    height: int
    line: float
    above: str
    below: str
    most: int


def chart(above: Sequence[int], below: Sequence[int]) -> Chart:
    """Draw two rows of numbers of the same length, none negative."""
    high, low = max(above, default=0), max(below, default=0)
    # Both sides have one scale, and room for the smallest bar.
    room = HEIGHT - 2 * _LEAST
    scale = room / (high + low) if high + low else 0.0
    line = round(_LEAST + (high * scale if high + low else room), 1)
    return Chart(
        STEP * len(above),
        HEIGHT,
        line,
        "".join(_bar(i, line - _height(n, scale), _height(n, scale)) for i, n in _there(above)),
        "".join(_bar(i, line, _height(n, scale)) for i, n in _there(below)),
        max((up + down for up, down in zip(above, below, strict=True)), default=0),
    )


def _there(numbers: Sequence[int]) -> list[tuple[int, int]]:
    return [(place, number) for place, number in enumerate(numbers) if number]


def _height(number: int, scale: float) -> float:
    return max(_LEAST, number * scale)


def _bar(place: int, top: float, height: float) -> str:
    return f"M{place * STEP + 1} {top:.1f}h{_BAR}v{height:.1f}h-{_BAR}z"
