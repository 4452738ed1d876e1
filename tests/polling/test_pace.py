from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.esms.codes import Outcome
from exporter.polling.pace import FAILURES_BEFORE_PAUSE, MAX_PAUSE, Pace, RateLimit

BAD = [Outcome.TIMEOUT, Outcome.CONNECTION, Outcome.TLS, Outcome.HTTP_ERROR, Outcome.BAD_RESPONSE,
       Outcome.API_ERROR]  # fmt: skip


def make(rate: float = 100.0, jitter: Callable[[], float] = lambda: 1.0) -> Pace:
    return Pace(rate, jitter)


def ask(pace: Pace, now: float, outcome: Outcome, retry_after: float | None = None) -> bool:
    """Send a request that is answered at once; returns whether that paused the account."""
    assert pace.wait(now) <= 0
    pace.sent(now)
    return pace.answered(outcome, retry_after, now, now)


def opened() -> Pace:
    pace = make()
    ask(pace, 0.0, Outcome.OK)
    return pace


def pauses(pace: Pace, outcome: Outcome, count: int) -> list[float]:
    """Fail each time that the account may be asked again; returns the lengths of the pauses."""
    now = max(1.0, pace.paused_until)
    lengths: list[float] = []
    while len(lengths) < count:
        if ask(pace, now, outcome):
            lengths.append(pace.paused_until - now)
        now = max(now + 0.1, pace.paused_until)
    return lengths


@given(
    rate=st.floats(0.01, 100_000),
    late=st.lists(st.floats(0, 0.5), min_size=1, max_size=300),
)
def test_no_second_sees_more_than_the_rate(rate: float, late: list[float]) -> None:
    limit, now, sent = RateLimit(rate), 1000.0, []
    for wait in late:
        # As a timer does: never early, late by anything.
        now += max(0.0, limit.wait(now)) + wait / rate
        limit.take(now)
        sent.append(now)
    for first, start in enumerate(sent):
        window = [at for at in sent[first:] if at < start + 1]
        assert len(window) <= max(1, math.ceil(rate))


def test_the_rate_is_reached_though_timers_are_late() -> None:
    limit, now, sent = RateLimit(100.0), 0.0, 0
    while now < 60:
        limit.take(now)
        sent += 1
        now += max(0.0, limit.wait(now)) + 0.001
    assert sent == pytest.approx(6000, rel=0.01)


def test_one_request_tries_an_account() -> None:
    pace = make()
    assert pace.on_trial
    assert pace.wait(0.0) <= 0
    pace.sent(0.0)
    assert pace.wait(100.0) == math.inf
    assert not pace.answered(Outcome.NOT_FOUND, None, 0.0, 0.5)
    assert not pace.on_trial
    assert pace.wait(0.5) <= 0


def test_a_trial_that_brings_nothing_is_followed_by_another() -> None:
    pace = make()
    assert not ask(pace, 0.0, Outcome.TIMEOUT)
    assert pace.on_trial
    assert pace.wait(1.0) <= 0


def test_refused_credentials_pause_longer_and_longer() -> None:
    pace = opened()
    assert pauses(pace, Outcome.AUTH, 7) == [30, 60, 120, 240, 480, 900, 900]
    assert pace.reason is Outcome.AUTH


@pytest.mark.parametrize("outcome", BAD)
def test_failures_in_a_row_pause_longer_and_longer(outcome: Outcome) -> None:
    pace = opened()
    for number in range(FAILURES_BEFORE_PAUSE - 1):
        assert not ask(pace, 1.0 + number, outcome)
    ask(pace, 8.0, Outcome.OK)
    for number in range(FAILURES_BEFORE_PAUSE - 1):
        assert not ask(pace, 11.0 + number, outcome)
    assert ask(pace, 19.0, outcome)
    assert pace.paused_until == 24.0
    # After a pause one failure is enough.
    assert pauses(pace, outcome, 6) == [10, 20, 40, 80, 120, 120]
    now = pace.paused_until
    assert not ask(pace, now, Outcome.OK)
    assert pace.reason is None
    assert pace.wait(now + 1) <= 0


def test_jitter_keeps_accounts_apart_but_within_the_bound() -> None:
    pace = make(jitter=lambda: 1.1)
    assert pauses(pace, Outcome.AUTH, 7) == pytest.approx([33, 66, 132, 264, 528, 900, 900])


@pytest.mark.parametrize(
    ("retry_after", "pause"),
    [(None, 5.0), (0.0, 5.0), (17.0, 17.0), (86_400.0, MAX_PAUSE), (math.inf, MAX_PAUSE)],
)
def test_throttled(retry_after: float | None, pause: float) -> None:
    pace = opened()
    assert ask(pace, 10.0, Outcome.THROTTLED, retry_after)
    assert pace.paused_until == 10.0 + pause
    assert pace.reason is Outcome.THROTTLED


def sustained(pace: Pace, now: float, seconds: float = 1.0) -> float:
    count, end = 0, now + seconds
    while now < end:
        pace.sent(now)
        count += 1
        now += max(0.0, pace.wait(now))
    return count / seconds


def test_a_throttled_account_is_asked_more_slowly_for_a_while() -> None:
    pace = opened()
    ask(pace, 10.0, Outcome.THROTTLED)
    ask(pace, 15.0, Outcome.OK)
    assert sustained(pace, 16.0) == pytest.approx(50, rel=0.05)
    ask(pace, 315.0, Outcome.OK)
    assert sustained(pace, 316.0) == pytest.approx(100, rel=0.05)
    ask(pace, 320.0, Outcome.THROTTLED)
    pauses(pace, Outcome.THROTTLED, 20)
    now = pace.paused_until
    ask(pace, now, Outcome.OK)
    # Down to a twentieth, and two minutes of growing back in the pause.
    assert sustained(pace, now + 1, 10) == pytest.approx(25, rel=0.1)


def test_a_new_rate_counts_at_once_and_keeps_the_share() -> None:
    pace = opened()
    pace.set_rate_limit(10.0)
    assert sustained(pace, 5.0, 10) == pytest.approx(10, rel=0.1)
    ask(pace, 100.0, Outcome.THROTTLED)
    pace.set_rate_limit(100.0)
    ask(pace, 105.0, Outcome.OK)
    assert sustained(pace, 106.0) == pytest.approx(50, rel=0.05)


def test_answers_to_what_was_sent_before_a_pause_do_not_lengthen_it() -> None:
    pace = opened()
    for _ in range(3):
        pace.sent(1.0)
    assert pace.answered(Outcome.AUTH, None, 1.0, 2.0)
    assert not pace.answered(Outcome.AUTH, None, 1.0, 2.1)
    assert not pace.answered(Outcome.OK, None, 1.0, 2.2)
    assert pace.paused_until == 32.0
    assert pace.reason is Outcome.AUTH


def test_new_credentials_end_a_pause() -> None:
    pace = opened()
    ask(pace, 10.0, Outcome.AUTH)
    assert pace.wait(11.0) == 29.0
    pace.retry(11.0)
    assert pace.reason is None
    assert pace.on_trial
    pace.sent(11.0)
    # What was asked with the old ones says nothing of the new.
    assert not pace.answered(Outcome.AUTH, None, 10.5, 11.2)
    assert pace.wait(11.3) == math.inf
    assert pace.answered(Outcome.AUTH, None, 11.0, 11.5)
    assert pace.paused_until == 41.5


def test_an_account_is_well_where_a_good_answer_changes_nothing() -> None:
    pace = make()
    assert not pace.well
    ask(pace, 0.0, Outcome.OK)
    assert pace.well
    ask(pace, 1.0, Outcome.TIMEOUT)
    assert not pace.well
    ask(pace, 2.0, Outcome.NOT_FOUND)
    assert pace.well
    ask(pace, 3.0, Outcome.THROTTLED)
    ask(pace, pace.paused_until, Outcome.OK)
    assert not pace.well  # its share has not grown back yet
    ask(pace, 1_000.0, Outcome.OK)
    assert pace.well
    pace.retry(1_001.0)
    assert not pace.well
