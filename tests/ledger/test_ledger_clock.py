from __future__ import annotations

import time

import pytest

from exporter.ledger.clock import LedgerClock, Mark, Moment, machine_clocks, resumed
from exporter.ledger.engine import Database
from tests.ledger.machine import Machine

T = 1_764_000_000.0
HOUR = 3600.0
DAYS = 4 * 86_400.0


@pytest.mark.parametrize("step", [HOUR, -HOUR, 1.0, -86_400.0, -T])
def test_a_clock_that_is_set_moves_no_age(step: float) -> None:
    machine = Machine(T)
    clock = LedgerClock(machine)
    assert clock.now() == T
    machine.pass_time(10.0)
    machine.wall += step
    assert (clock.now(), clock.ahead) == (T + 10, -step)
    machine.pass_time(10.0)
    assert (clock.now(), clock.ahead) == (T + 20, -step)
    machine.wall -= step
    assert (clock.now(), clock.ahead) == (T + 20, 0.0)


def test_a_clock_that_is_slewed_is_followed_and_time_that_passes_is_no_step() -> None:
    machine = Machine(T)
    clock = LedgerClock(machine)
    machine.pass_time(86_400.0)
    assert (clock.now(), clock.ahead) == (T + 86_400.0, 0.0)
    for _ in range(8):
        machine.pass_time(10.0)
        machine.wall += 0.4
        assert (clock.now(), clock.ahead) == (machine.wall, 0.0)


# What was marked at T, and what the clocks say at the next start; then how far ahead it is.
AFTER_A_STOP = {
    "nothing": (0.0, Moment(T, 100.0, "a"), 0.0),
    "an hour": (0.0, Moment(T + HOUR, 100.0 + HOUR, "a"), 0.0),
    "put forward": (0.0, Moment(T + DAYS + 10, 110.0, "a"), -DAYS),
    "put back": (0.0, Moment(T - DAYS + 10, 110.0, "a"), DAYS),
    "put right, which was behind": (DAYS, Moment(T + DAYS + 10, 110.0, "a"), 0.0),
    "still behind": (DAYS, Moment(T + 10, 110.0, "a"), DAYS),
    "booted": (0.0, Moment(T + HOUR, 5.0, "b"), 0.0),
    "booted with a clock that is behind": (0.0, Moment(T - DAYS, 5.0, "b"), DAYS),
    "booted, and put right, which was behind": (DAYS, Moment(T + DAYS + 10, 5.0, "b"), 0.0),
    "booted, and still behind": (DAYS, Moment(T + 10, 5.0, "b"), DAYS - 10),
    "booted, and put right, which was ahead": (-DAYS, Moment(T - DAYS + 10, 5.0, "b"), -10.0),
    "booted, and still ahead": (-DAYS, Moment(T + 10, 5.0, "b"), -DAYS),
    "no boot can be told": (0.0, Moment(T + HOUR, 5.0, ""), 0.0),
    "a boot of the same name": (0.0, Moment(T + HOUR, 5.0, "a"), 0.0),
}


@pytest.mark.parametrize("what", AFTER_A_STOP)
def test_where_it_goes_on_after_a_stop(what: str) -> None:
    ahead, now, expected = AFTER_A_STOP[what]
    boot = "" if not now.boot else "a"
    assert resumed(Mark(ahead, Moment(T, 100.0, boot)), now) == expected


def test_the_machine_has_clocks() -> None:
    first, second = machine_clocks()(), machine_clocks()()
    assert first.boot == second.boot
    assert second.steady >= first.steady
    assert first.wall == pytest.approx(time.time(), abs=60)


def test_a_ledger_remembers_what_its_clock_said(database: Database) -> None:
    """One that is shared has a clock of its own, which is right."""
    machine = Machine(T)
    machine.wall = time.time() - DAYS
    for shown in (DAYS, 0.0, DAYS, -DAYS):
        clock = LedgerClock(machine)
        database.keep_time(clock, opened=True)
        began = clock.now()
        if database.shared:
            assert began == pytest.approx(time.time(), abs=60)
        machine.pass_time(10.0)
        machine.wall += shown
        assert clock.now() == pytest.approx(began + 10.0, abs=0.001)
        database.keep_time(clock)
        again = LedgerClock(machine)
        database.keep_time(again, opened=True)
        assert again.now() == pytest.approx(clock.now(), abs=60 if database.shared else 0.001)
        machine.wall -= shown  # while nobody looks
    machine.restart(after=10.0)
    clock = LedgerClock(machine)
    database.keep_time(clock, opened=True)
    if not database.shared:
        assert clock.now() == pytest.approx(machine.wall, abs=60)


@pytest.mark.parametrize("jump", [DAYS, -DAYS])
def test_a_clock_that_is_set_while_an_exporter_starts(database: Database, jump: float) -> None:
    machine = Machine(time.time())
    clock = LedgerClock(machine)
    database.keep_time(clock, opened=True)
    machine.pass_time(10.0)
    began = clock.now()
    again = LedgerClock(machine)
    machine.wall += jump  # before the ledger is open
    database.keep_time(again, opened=True)
    assert again.now() == pytest.approx(began, abs=60 if database.shared else 0.001)
    machine.wall -= jump
    assert again.now() == pytest.approx(began, abs=60 if database.shared else 0.001)
