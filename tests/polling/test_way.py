from __future__ import annotations

import math

import pytest

from exporter.polling.way import Way


@pytest.mark.parametrize(("wait", "until"), [(0.1, 5.12), (1.0, 6.02), (30.0, 6.02)])
def test_a_turn_is_left_to_who_waits(wait: float, until: float) -> None:
    way = Way()
    assert way.until == -math.inf
    way.wanted(5.0, wait)
    assert way.until == pytest.approx(until)
    way.given()
    assert way.until == -math.inf


def test_it_is_every_other_turn() -> None:
    way = Way()
    way.given()
    way.wanted(5.0, 0.1)  # the next one is for a poll
    assert way.until == -math.inf
    way.polled()
    way.wanted(5.0, 0.1)
    assert way.until > 5.0
