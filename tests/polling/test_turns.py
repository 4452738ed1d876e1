from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.polling.turns import Lease, Turns

LATE = 0.025  # seconds for which a turn waits to be taken


class Bench:
    """One exporter's turns, by a lease that does not end, and how often some were asked for."""

    def __init__(self, rate: float = 100.0) -> None:
        self.lease = Lease()
        self.lease.until = math.inf
        self.asked = 0
        self.turns = Turns(self.lease, self._ask, rate)

    def _ask(self) -> None:
        self.asked += 1

    def grant(self, first: float) -> int:
        """Grant what is wished for; returns how many turns that is."""
        slots, apart = self.turns.wish()
        self.turns.granted(first, slots, apart)
        return slots

    def take(self, now: float) -> bool:
        if self.turns.wait(now) > 0:
            return False
        self.turns.sent(now, poll=True)
        return True


@pytest.mark.parametrize(
    ("rate", "wishes"),
    [
        (1000, [2, 4, 8, 16, 32, 64, 128, 250, 250]),
        (100, [2, 4, 8, 16, 25, 25]),
        (20, [2, 4, 5, 5]),
        (4, [1, 1]),
        (0.1, [1, 1]),
    ],
)
def test_more_is_wished_for_up_to_a_quarter_of_a_second(rate: float, wishes: list[int]) -> None:
    bench = Bench(rate)
    for wish in wishes:
        slots, apart = bench.turns.wish()
        assert slots == wish
        assert apart == pytest.approx(1.025 / rate)
        bench.turns.granted(1000.0, slots, apart)
        for number in range(slots):
            assert bench.take(1000.001 + number * apart)


def test_turns_are_taken_one_after_the_other() -> None:
    bench = Bench(100.0)
    bench.turns.granted(50.0, 3, 0.01)
    bench.turns.granted(60.0, 1, 0.01)
    taken = []
    now = 49.0
    for _ in range(4):
        now += bench.turns.wait(now)
        taken.append(now)
        bench.turns.sent(now, poll=True)
    assert taken == pytest.approx([50.0, 50.01, 50.02, 60.0])
    assert bench.turns.wait(now) == math.inf


def test_the_next_ones_are_asked_for_when_half_are_taken() -> None:
    bench = Bench(100.0)
    asked = []
    assert bench.turns.wait(0.0) == math.inf
    for round_ in range(3):
        slots = bench.grant(round_ * 10.0)
        for number in range(slots):
            before = bench.asked
            now = round_ * 10.0 + number * 0.01025
            assert bench.turns.wait(now) <= 0
            asked.append((slots - number, bench.asked - before))
            bench.turns.sent(now, poll=True)
    assert asked == [
        *((2, 0), (1, 1)),
        *((4, 0), (3, 0), (2, 1), (1, 0)),
        *((8, 0), (7, 0), (6, 0), (5, 0), (4, 1), (3, 0), (2, 0), (1, 0)),
    ]


def test_they_are_asked_for_once_until_there_is_an_answer() -> None:
    bench = Bench()
    for _ in range(3):
        assert bench.turns.wait(1.0) == math.inf
    assert bench.asked == 1
    bench.turns.refused()
    assert bench.turns.wait(1.0) == math.inf
    assert bench.turns.wait(1.0) == math.inf
    assert bench.asked == 2
    bench.grant(2.0)
    assert bench.turns.wait(1.0) == 1.0


@pytest.mark.parametrize(
    ("late", "taken", "left"),
    [
        (0.0, True, 7),
        (0.024, True, 7),  # in time, by the grain of timers
        (0.026, True, 6),  # the first is lost, and the second in its stead
        (0.046, True, 5),
        (0.144, True, 1),
        (0.166, True, 0),  # the last one, up to the end of its time
        (0.17, False, 0),
        (9.9, False, 0),
    ],
)
def test_turns_that_are_missed_are_lost(late: float, taken: bool, left: int) -> None:  # noqa: FBT001
    bench = Bench()
    bench.turns.granted(100.0, 8, 0.0205)
    assert bench.take(100.0 + late) is taken
    assert sum(count for *_, count in bench.turns._turns) == left


def test_to_miss_some_halves_the_wish() -> None:
    bench, now = Bench(1000.0), 0.0
    while bench.grant(now) < 64:
        while bench.take(now):
            now += 0.001025
    sizes = []
    for _ in range(8):
        bench.turns.wait(now)
        now += 1.0  # nothing was due
        bench.turns.wait(now)
        sizes.append(bench.grant(now))
    assert sizes == [32, 16, 8, 4, 2, 1, 1, 1]
    assert bench.take(now)
    assert bench.grant(now) == 2  # and grows again where it is used


def test_nothing_is_asked_after_the_end_of_the_lease() -> None:
    bench = Bench()
    bench.grant(10.0)
    bench.lease.until = 10.0
    assert bench.turns.wait(9.999) == pytest.approx(0.001)
    asked = bench.asked
    for now in (10.0, 10.01, 99.0):
        assert bench.turns.wait(now) == math.inf
    assert bench.asked == asked  # nor are others kept from asking
    bench.lease.until = math.inf
    assert bench.turns.wait(99.0) == math.inf  # the turns were missed meanwhile
    assert bench.asked == asked + 1


def test_another_rate_counts_from_the_next_turns_on() -> None:
    bench = Bench(100.0)
    bench.grant(0.0)
    bench.turns.set_rate(10.0)
    bench.turns.sent(0.0, poll=True)
    assert bench.turns.wait(0.0) == pytest.approx(0.01025)
    bench.turns.sent(0.01025, poll=True)
    assert bench.turns.wish()[1] == pytest.approx(0.1025)
    bench.turns.set_rate(1000.0)
    assert bench.turns.wish()[1] == pytest.approx(0.001025)


@dataclass
class Ledger:
    """Gives turns out as `Sharing.reserve` does, by its own clock."""

    ahead: float  # of the exporters' clock, in seconds
    next_slot: float = -math.inf

    def reserve(self, slots: int, apart: float, now: float, lead: float) -> float:
        now += self.ahead
        first = max(min(self.next_slot, now + 60 + 1000 * apart), now + lead)
        self.next_slot = first + slots * apart
        return first - self.ahead


@dataclass
class Replica:
    """One of several exporters, whose questions are answered when the test says so."""

    turns: Turns = field(init=False)
    lease: Lease = field(default_factory=Lease)
    wishing: bool = False
    answers: list[tuple[float, int, float]] = field(default_factory=list)

    def wish(self) -> None:
        self.wishing = True


# Which of the exporters takes a turn; how late, as a part of how late it may be, or for how many
# turns it does something else; whether the ledger is slow.
STEPS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from([0.0, 0.0, 0.5, 0.99, 1.01, 1.9]) | st.floats(0, 1),
        st.sampled_from([0.0, 0.0, 0.0, 0.5, 3.0]),
        st.sampled_from([False, False, False, True]),
    ),
    min_size=10,
    max_size=200,
)


@given(
    rate=st.sampled_from([0.3, 1, 2, 7, 20]) | st.floats(0.05, 5000),
    steps=STEPS,
    ahead=st.floats(-1e6, 1e6),
    lead=st.sampled_from([0.0, 0.001, 0.5]),
)
def test_no_second_sees_more_than_the_rate_of_all(
    rate: float, steps: list[tuple[int, float, float, bool]], ahead: float, lead: float
) -> None:
    ledger, now, sent = Ledger(ahead), 1000.0, []
    replicas = [Replica() for _ in range(3)]
    for replica in replicas:
        replica.lease.until = math.inf
        replica.turns = Turns(replica.lease, replica.wish, rate)
    for which, late, idle, slow in steps:
        replica = replicas[which]
        now += idle / rate
        while replica.answers and not slow:
            replica.turns.granted(*replica.answers.pop(0))
        if 0 < (wait := replica.turns.wait(now)) < math.inf:
            now += wait + late * LATE  # a timer is never early
        if replica.wishing:
            replica.wishing = False
            slots, apart = replica.turns.wish()
            replica.answers.append((ledger.reserve(slots, apart, now, lead), slots, apart))
        # As many as a poller that was held up sends at once.
        while replica.turns.wait(now) <= 0:
            replica.turns.sent(now, poll=True)
            sent.append(now)
    for number, start in enumerate(sent):
        # What is a second apart but for the rounding of a large clock is a second apart.
        within = [at for at in sent[number:] if at < start + 1 - 1e-6]
        assert len(within) <= max(1, math.ceil(rate))


@given(
    waits=st.lists(st.floats(0, 3), min_size=1, max_size=50),
    ends=st.floats(1000, 1010),
)
def test_nothing_is_sent_from_the_end_of_a_lease_on(waits: list[float], ends: float) -> None:
    bench, now = Bench(50.0), 1000.0
    bench.lease.until = ends
    for wait in waits:
        now += wait
        bench.grant(now)
        while bench.take(now):
            assert now < ends
            now += max(0.0, min(bench.turns.wait(now), 1.0))
