from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from exporter.calls import WatchedCall
from exporter.ids import reference_id
from exporter.polling.timing_wheel import TICK, TimingWheel

CALLS = st.integers(0, 7)
AHEAD = st.floats(0, 300)


class TimingWheelMachine(RuleBasedStateMachine):
    """A schedule does what a plain dict of due times would do, within a tick."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = [WatchedCall(n, reference_id(f"c{n}"), 0.0) for n in range(8)]
        self.wheel = TimingWheel(lambda _: 0)
        self.due: dict[int, int] = {}
        self.now = 1000.0

    @rule(number=CALLS, ahead=AHEAD)
    def add(self, number: int, ahead: float) -> None:
        due = self.now + ahead
        self.wheel.add(self.calls[number], due)
        self.due[number] = int(due / TICK)

    @rule(number=CALLS)
    def discard(self, number: int) -> None:
        self.wheel.discard(self.calls[number])
        self.due.pop(number, None)

    @rule(passed=AHEAD, trial=st.booleans())
    def pop(self, passed: float, trial: bool) -> None:  # noqa: FBT001 - drawn
        self.now = now = self.now + passed
        pop = self.wheel.pop_for_trial if trial else self.wheel.pop
        found = pop(now)
        ready = {n: tick for n, tick in self.due.items() if tick * TICK <= now}
        if found is None:
            assert not ready
            return
        call, due = found
        # Moved while it was due, it is due since the first time.
        assert due <= self.due.pop(call.id) * TICK <= now
        assert call.tick == -1

    @rule(passed=AHEAD)
    def drain(self, passed: float) -> None:
        self.now += passed
        while found := self.wheel.pop(self.now):
            del self.due[found[0].id]  # fails for a call that comes twice
        assert not [n for n, tick in self.due.items() if tick * TICK <= self.now]

    @invariant()
    def nothing_is_forgotten(self) -> None:
        when = self.wheel.next_due()
        if self.due:
            # It may be early, for a call that has been moved: then the schedule is asked again.
            assert when is not None
            assert when <= min(self.due.values()) * TICK

    @invariant()
    def the_backlog_is_shown(self) -> None:
        backlog = self.wheel.backlog(self.now)
        due = [call.tick * TICK for call in self.calls if 0 <= call.tick * TICK <= self.now]
        assert backlog.calls == len(due)
        assert backlog.lag == (self.now - min(due) if due else 0.0)


TestTimingWheel = TimingWheelMachine.TestCase
TestTimingWheel.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_calls_that_are_due_together_share_their_tick() -> None:
    wheel = TimingWheel(lambda _: 0)
    one, other = (WatchedCall(n, reference_id(f"c{n}"), 0.0) for n in range(2))
    wheel.add(one, 1000.01)
    wheel.add(other, 1000.02)
    assert one.tick is other.tick


def test_the_call_that_waits_longest_is_first() -> None:
    wheel = TimingWheel(lambda _: 0)
    calls = [WatchedCall(n, reference_id(f"c{n}"), 0.0) for n in range(50)]
    for call in calls:
        wheel.add(call, 50.0 - call.id)
    assert wheel.next_due() == 1.0
    assert wheel.pop(0.9) is None
    order = [found[0].id for _ in calls if (found := wheel.pop(100.0))]
    assert order == list(range(49, -1, -1))
    assert wheel.pop(100.0) is None
    assert wheel.next_due() is None


def test_a_call_that_was_moved_while_due_comes_after_those_that_wait_longer() -> None:
    wheel = TimingWheel(lambda _: 0)
    moved, waiting = (WatchedCall(n, reference_id(f"c{n}"), 0.0) for n in range(2))
    wheel.add(moved, 1.0)
    wheel.add(waiting, 2.0)
    assert wheel.backlog(3.0).calls == 2
    wheel.add(moved, 10.0)
    assert wheel.backlog(12.0)[:2] == (2, 10.0)
    assert wheel.pop(12.0) == (waiting, 2.0)
    assert wheel.pop(12.0) == (moved, 10.0)
