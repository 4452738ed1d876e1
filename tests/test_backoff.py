from __future__ import annotations

import pytest

from exporter.backoff import ExponentialBackoff


@pytest.mark.parametrize(
    ("failures", "expected"), [(1, 5), (2, 10), (3, 20), (8, 640), (9, 900), (10**6, 900)]
)
def test_each_wait_is_twice_as_long_up_to_a_quarter_less(failures: int, expected: float) -> None:
    back_off = ExponentialBackoff(5.0, 900.0, jitter=0.25)
    assert back_off.wait(failures) == expected
    assert back_off.wait(failures, 1.0) == 0.75 * expected
