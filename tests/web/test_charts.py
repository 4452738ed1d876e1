from __future__ import annotations

import re

import pytest

from exporter.web.status import HEIGHT, STEP, chart

BAR = re.compile(r"M([\d.]+) ([\d.]+)h4v([\d.]+)h-4z")


def bars(path: str) -> list[tuple[float, float, float]]:
    assert BAR.sub("", path) == ""
    return [(float(x), float(top), float(height)) for x, top, height in BAR.findall(path)]


def test_bars_stand_on_the_line_and_hang_from_it() -> None:
    drawn = chart([4, 0, 8], [0, 2, 1])
    above, below = bars(drawn.above), bars(drawn.below)
    assert [x for x, _, _ in above] == [1, 2 * STEP + 1]
    assert [x for x, _, _ in below] == [STEP + 1, 2 * STEP + 1]
    assert [top + height for _, top, height in above] == pytest.approx([drawn.line] * 2, abs=0.2)
    assert [top for _, top, _ in below] == [drawn.line] * 2
    # One scale for both.
    assert above[1][2] == pytest.approx(2 * above[0][2], abs=0.2)
    assert above[0][2] == pytest.approx(2 * below[0][2], abs=0.2)
    assert (drawn.width, drawn.most) == (3 * STEP, 9)


@pytest.mark.parametrize(
    ("above", "below"),
    [([1], [0]), ([0], [1]), ([10**9, 1], [1, 0]), ([1, 0], [0, 10**9]), ([5, 5], [5, 5])],
)
def test_all_is_inside_and_to_be_seen(above: list[int], below: list[int]) -> None:
    drawn = chart(above, below)
    for _, top, height in bars(drawn.above) + bars(drawn.below):
        assert height >= 2
        assert top >= -0.2
        assert top + height <= HEIGHT + 0.2


def test_nothing_is_a_line() -> None:
    assert chart([0] * 60, [0] * 60)[3:] == ("", "", 0)
    assert chart([], []).width == 0
