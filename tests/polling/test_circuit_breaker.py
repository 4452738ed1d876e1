from __future__ import annotations

import math
import time
from collections.abc import Callable
from enum import Enum

import pytest

from exporter.esms.answers import Answer
from exporter.esms.codes import Outcome
from exporter.polling.circuit_breaker import MAX_PAUSE, OUTAGE, RECHECK, CircuitBreaker, Evidence
from exporter.polling.rate_limiter import RateLimiter
from exporter.polling.stats import AccountStats

BAD = [Outcome.TIMEOUT, Outcome.CONNECTION, Outcome.TLS, Outcome.HTTP_ERROR, Outcome.BAD_RESPONSE,
       Outcome.API_ERROR]  # fmt: skip
REFUSED = [Outcome.AUTH, Outcome.THROTTLED]


class Change(Enum):
    """What an answer did: a pause began, possibly right after another one, or ended."""

    OPENED = 0
    CLOSED = 1


class Bench(CircuitBreaker):
    """A breaker whose requests are sent and answered as a test says."""

    def __init__(self, rate: float = 100.0, jitter: Callable[[], float] = lambda: 1.0) -> None:
        self.limiter = RateLimiter(rate)
        super().__init__("main", self.limiter, AccountStats(), {}, jitter)

    def send(self, now: float) -> None:
        self.limiter.sent(now, poll=True)
        self.sent()

    def answer(
        self,
        outcome: Outcome,
        sent_at: float,
        now: float,
        retry_after: float | None = None,
        evidence: Evidence = Evidence.RELIABLE,
    ) -> Change | None:
        was = self.paused_by
        self.answered(Answer(outcome, retry_after=retry_after), evidence, sent_at, now)
        if self.paused_by is was:
            return None
        return Change.OPENED if self.paused_by else Change.CLOSED

    def ask(
        self,
        now: float,
        outcome: Outcome,
        retry_after: float | None = None,
        evidence: Evidence = Evidence.RELIABLE,
    ) -> Change | None:
        """Send a request that is answered at once."""
        assert self.wait(now) <= 0
        self.send(now)
        return self.answer(outcome, now, now, retry_after, evidence)


def closed() -> Bench:
    breaker = Bench()
    breaker.ask(0.0, Outcome.OK)
    return breaker


def pauses(
    breaker: Bench, outcome: Outcome, count: int, evidence: Evidence = Evidence.RELIABLE
) -> list[float]:
    """Fail each time that the account may be polled; returns the lengths of the pauses."""
    now = max(1.0, breaker.paused_until)
    lengths: list[float] = []
    while len(lengths) < count:
        if breaker.ask(now, outcome, evidence=evidence):
            lengths.append(breaker.paused_until - now)
        now = max(now + 0.1, breaker.paused_until)
    return lengths


def test_one_request_tries_an_account() -> None:
    breaker = Bench()
    assert breaker.half_open
    assert breaker.wait(0.0) <= 0
    breaker.send(0.0)
    assert breaker.wait(100.0) == math.inf
    assert breaker.answer(Outcome.NOT_FOUND, 0.0, 0.5) is None
    assert not breaker.half_open
    assert breaker.wait(0.5) <= 0


def test_a_trial_that_fails_is_followed_by_another() -> None:
    breaker = Bench()
    assert breaker.ask(0.0, Outcome.TIMEOUT) is None
    assert breaker.half_open
    assert breaker.wait(1.0) <= 0


@pytest.mark.parametrize("outcome", REFUSED)
def test_one_refusal_stops_an_account_until_another_call_is_tried(outcome: Outcome) -> None:
    breaker = closed()
    assert breaker.ask(1.0, outcome, 900.0) is None
    assert breaker.reason is None
    assert breaker.half_open
    assert breaker.wait(1.0) == RECHECK
    assert breaker.ask(1.0 + RECHECK, Outcome.OK) is None
    assert not breaker.half_open
    assert breaker.wait(1.1 + RECHECK) <= 0


@pytest.mark.parametrize("outcome", REFUSED)
def test_a_refusal_that_a_different_kind_of_failure_follows_is_not_confirmed(
    outcome: Outcome,
) -> None:
    breaker = closed()
    breaker.ask(1.0, outcome)
    assert breaker.ask(5.0, Outcome.TIMEOUT) is None
    assert breaker.half_open
    assert breaker.ask(6.0, outcome) is Change.OPENED


def test_refused_credentials_pause_longer_and_longer() -> None:
    breaker = closed()
    assert pauses(breaker, Outcome.AUTH, 7) == [30, 60, 120, 240, 480, 900, 900]
    assert breaker.reason is Outcome.AUTH


def test_pauses_do_not_grow_while_only_calls_fail_that_were_never_answered() -> None:
    breaker = Bench()
    assert pauses(breaker, Outcome.AUTH, 60, Evidence.WEAK) == [30] * 60
    assert pauses(breaker, Outcome.AUTH, 6, Evidence.WEAK) == [30, 60, 120, 240, 480, 900]


@pytest.mark.parametrize("outcome", BAD)
def test_different_calls_that_fail_in_a_row_open_it(outcome: Outcome) -> None:
    breaker = closed()
    for number in range(OUTAGE - 1):
        assert breaker.ask(1.0 + number, outcome) is None
    assert breaker.half_open  # the last one is asked for alone
    assert breaker.ask(8.0, outcome) is Change.OPENED
    assert breaker.paused_until == 13.0
    # After a pause one failure is enough.
    assert pauses(breaker, outcome, 6) == [10, 20, 40, 80, 120, 120]
    now = breaker.paused_until
    assert breaker.ask(now, Outcome.OK) is Change.CLOSED
    assert breaker.reason is None
    assert breaker.wait(now + 1) <= 0


@pytest.mark.parametrize("outcome", BAD + REFUSED)
def test_a_sick_call_says_nothing_about_the_account(outcome: Outcome) -> None:
    breaker = closed()
    for number in range(100):
        assert breaker.ask(1.0 + number, outcome, evidence=Evidence.SICK) is None
        assert not breaker.half_open


@pytest.mark.parametrize("outcome", BAD + REFUSED)
def test_good_answers_in_between_keep_it_closed(outcome: Outcome) -> None:
    breaker, now = closed(), 1.0
    for _ in range(100):
        assert breaker.ask(now, outcome, evidence=Evidence.WEAK) is None
        now += RECHECK
        assert breaker.ask(now, Outcome.OK) is None
        now += 1


@pytest.mark.parametrize("outcome", [Outcome.TIMEOUT, *REFUSED])
def test_an_account_whose_calls_often_fail_needs_longer_runs(outcome: Outcome) -> None:
    breaker = closed()

    def run(now: float, length: int, evidence: Evidence = Evidence.WEAK) -> Change | None:
        change = None
        for _ in range(length):
            now = max(now + 1, breaker.paused_until)
            change = breaker.ask(now, outcome, evidence=evidence)
        return change

    assert run(100.0, OUTAGE) is Change.OPENED
    now = breaker.paused_until
    breaker.ask(now, Outcome.OK)
    assert run(now + 70, OUTAGE) is None
    assert breaker.half_open  # one at a time, until a good answer ends it
    breaker.ask(now + 80, Outcome.OK)
    # Calls that were answered lately are believed at once.
    assert run(now + 90, OUTAGE, Evidence.RELIABLE) is Change.OPENED
    breaker.ask(breaker.paused_until, Outcome.OK)
    # It is forgotten with time.
    assert run(20_000.0, OUTAGE) is Change.OPENED


def test_a_failure_that_was_sent_before_the_last_good_answer_is_no_evidence() -> None:
    breaker = closed()
    for _ in range(10):
        breaker.send(1.0)
    breaker.send(2.0)
    breaker.answer(Outcome.OK, 2.0, 2.1)
    for _ in range(10):
        assert breaker.answer(Outcome.TIMEOUT, 1.0, 11.0) is None
    assert not breaker.half_open


def test_a_refusal_is_rechecked_at_once_where_another_was_contradicted_lately() -> None:
    breaker = closed()
    breaker.ask(1.0, Outcome.AUTH, evidence=Evidence.WEAK)
    assert breaker.wait(1.1) > 2
    breaker.ask(5.0, Outcome.OK)
    breaker.ask(6.0, Outcome.AUTH, evidence=Evidence.WEAK)
    assert breaker.half_open
    assert breaker.wait(6.1) <= 0
    breaker.ask(6.1, Outcome.OK)
    breaker.ask(1_000.0, Outcome.AUTH, evidence=Evidence.WEAK)
    assert breaker.wait(1_000.1) > 2


def test_jitter_keeps_accounts_apart_but_within_the_bound() -> None:
    breaker = Bench(jitter=lambda: 1.1)
    assert pauses(breaker, Outcome.AUTH, 7) == pytest.approx([33, 66, 132, 264, 528, 900, 900])


@pytest.mark.parametrize(
    ("retry_after", "pause"),
    [(None, 5.0), (0.0, 5.0), (17.0, 17.0), (86_400.0, MAX_PAUSE), (math.inf, MAX_PAUSE)],
)
def test_a_confirmed_retry_after_is_kept(retry_after: float | None, pause: float) -> None:
    breaker = closed()
    breaker.ask(10.0, Outcome.THROTTLED, retry_after)
    assert breaker.paused_until == 13.0
    assert breaker.ask(13.0, Outcome.THROTTLED) is Change.OPENED
    assert breaker.paused_until == 13.0 + pause
    assert breaker.reason is Outcome.THROTTLED


def sustained(breaker: Bench, now: float, seconds: float = 1.0) -> float:
    count, end = 0, now + seconds
    while now < end:
        breaker.send(now)
        count += 1
        now += max(0.0, breaker.wait(now))
    return count / seconds


def throttle(breaker: Bench, now: float) -> None:
    breaker.ask(now, Outcome.THROTTLED)
    assert breaker.ask(now + RECHECK, Outcome.THROTTLED) is Change.OPENED


def test_a_throttled_account_is_polled_more_slowly_for_a_while() -> None:
    breaker = closed()
    throttle(breaker, 10.0)
    breaker.ask(18.0, Outcome.OK)
    assert sustained(breaker, 19.0) == pytest.approx(50, rel=0.05)
    for at in range(40, 320, 10):
        breaker.ask(at, Outcome.OK)
    assert sustained(breaker, 321.0) == pytest.approx(100, rel=0.05)
    throttle(breaker, 330.0)
    pauses(breaker, Outcome.THROTTLED, 20)
    now = breaker.paused_until
    breaker.ask(now, Outcome.OK)
    # Down to a twentieth, and two minutes of growing back in the pause.
    assert sustained(breaker, now + 1, 10) == pytest.approx(25, rel=0.1)


def test_throttled_calls_that_are_answered_later_show_that_the_account_was_throttled() -> None:
    breaker = closed()
    for _ in range(10):
        breaker.recovered(1, 20.0)  # one that is throttled now and then says nothing
    for number in range(4):
        breaker.recovered(number, 20.0 + 50 * number)
    assert sustained(breaker, 221.0) == pytest.approx(100, rel=0.05)
    for number in range(5):
        breaker.recovered(number, 230.0)
    assert sustained(breaker, 231.0) == pytest.approx(50, rel=0.05)


def test_a_new_rate_counts_at_once_and_keeps_the_share() -> None:
    breaker = closed()
    breaker.limiter.set_rate(10.0)
    assert sustained(breaker, 5.0, 10) == pytest.approx(10, rel=0.1)
    throttle(breaker, 100.0)
    breaker.limiter.set_rate(100.0)
    breaker.ask(108.0, Outcome.OK)
    assert sustained(breaker, 109.0) == pytest.approx(50, rel=0.05)


def test_answers_to_what_was_sent_before_a_pause_do_not_change_it() -> None:
    breaker = closed()
    for _ in range(3):
        breaker.send(1.0)
    assert breaker.answer(Outcome.AUTH, 1.0, 2.0) is None
    assert breaker.answer(Outcome.AUTH, 1.0, 2.1) is None
    assert breaker.answer(Outcome.OK, 1.0, 2.2) is None
    assert breaker.wait(2.2) == pytest.approx(2.8)
    assert breaker.ask(5.0, Outcome.AUTH) is Change.OPENED
    assert breaker.answer(Outcome.OK, 1.0, 5.1) is None
    assert breaker.reason is Outcome.AUTH
    assert breaker.paused_until == 35.0


def test_new_credentials_end_a_pause() -> None:
    breaker = closed()
    pauses(breaker, Outcome.AUTH, 1)
    now = breaker.paused_until - 29.0
    breaker.reset(now)
    assert breaker.reason is None
    assert breaker.half_open
    breaker.send(now)
    # What was asked with the old ones says nothing of the new.
    assert breaker.answer(Outcome.AUTH, now - 0.5, now + 0.2) is None
    assert breaker.wait(now + 0.3) == math.inf
    assert breaker.answer(Outcome.AUTH, now, now + 0.5) is None
    assert breaker.wait(now + 0.5) == RECHECK


def test_a_pause_can_be_ended() -> None:
    breaker = closed()
    pauses(breaker, Outcome.AUTH, 3)
    now = breaker.paused_until - 100.0
    breaker.added(0.0)
    assert breaker.half_open
    assert breaker.ask(now, Outcome.AUTH) is Change.OPENED
    assert breaker.paused_until == now + 240


def test_the_end_of_a_pause_is_shown_by_the_clock_of_now() -> None:
    stats = AccountStats()
    assert stats.paused_until == 0
    stats.pause_ends = time.monotonic() + 900
    assert stats.paused_until == pytest.approx(time.time() + 900, abs=60)


def test_an_account_is_healthy_where_a_good_answer_changes_nothing() -> None:
    breaker = Bench()
    assert not breaker.healthy
    breaker.ask(0.0, Outcome.OK)
    assert breaker.healthy
    breaker.ask(1.0, Outcome.TIMEOUT)
    assert not breaker.healthy
    breaker.ask(2.0, Outcome.NOT_FOUND)
    assert breaker.healthy
    throttle(breaker, 4.0)
    breaker.ask(breaker.paused_until, Outcome.OK)
    assert not breaker.healthy  # its share has not grown back yet
    for at in range(1_000, 1_100):
        breaker.ask(at, Outcome.OK)
    assert breaker.healthy
    breaker.reset(1_101.0)
    assert not breaker.healthy
