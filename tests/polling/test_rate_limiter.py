from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.polling.rate_limiter import RateLimiter


@given(
    rate=st.floats(0.01, 100_000),
    late=st.lists(st.floats(0, 0.5), min_size=1, max_size=300),
)
def test_no_second_sees_more_than_the_rate(rate: float, late: list[float]) -> None:
    limit, now, sent = RateLimiter(rate), 1000.0, []
    for wait in late:
        # As a timer does: never early, late by anything.
        now += max(0.0, limit.wait(now)) + wait / rate
        limit.sent(now, poll=True)
        sent.append(now)
    for first, start in enumerate(sent):
        window = [at for at in sent[first:] if at < start + 1 - 1e-6]  # rounding
        assert len(window) <= max(1, math.ceil(rate))


def test_the_rate_is_reached_though_timers_are_late() -> None:
    limit, now, sent = RateLimiter(100.0), 0.0, 0
    while now < 60:
        limit.sent(now, poll=True)
        sent += 1
        now += max(0.0, limit.wait(now)) + 0.001
    assert sent == pytest.approx(6000, rel=0.01)
