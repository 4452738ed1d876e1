from __future__ import annotations

import pytest

from exporter.polling.wall import WallClock


@pytest.mark.parametrize("step", [3600.0, -3600.0, 1.0, -86_400.0])
def test_a_step_is_seen_once(step: float) -> None:
    clock = WallClock(1_764_000_000.0, 100.0)
    assert clock.step(1_764_000_010.0 + step, 110.0) == step
    assert clock.step(1_764_000_020.0 + step, 120.0) == 0.0


@pytest.mark.parametrize("seconds", [0.0, 0.5, 60.0, 86_400.0])
def test_time_that_passes_is_no_step(seconds: float) -> None:
    clock = WallClock(1_764_000_000.0, 100.0)
    assert clock.step(1_764_000_000.0 + seconds, 100.0 + seconds) == 0.0


def test_a_clock_that_is_slewed_is_followed() -> None:
    clock = WallClock(0.0, 0.0)
    assert [clock.step(n * 10.4, n * 10.0) for n in range(1, 9)] == [0.0] * 8
