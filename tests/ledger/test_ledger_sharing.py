"""What exporters that share a ledger tell each other."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import pairwise

import pytest
from sqlalchemy import text

from exporter.calls import CallState, PollAgain
from exporter.ledger.commit import commit
from exporter.ledger.engine import Database, open_database
from exporter.ledger.records import CHUNK, FORGET, HASTEN, Claimed
from exporter.ledger.sharing import MESSAGES, Grant, Member, Sharing, Wish
from exporter.ledger.taking import take
from exporter.ledger.totals import Total
from tests.databases import postgresql
from tests.ledger.racing import joined, together
from tests.ledger.test_ledger_store import (
    ANSWERED,
    BUSY,
    NOW,
    OTP,
    finish,
    ids,
    new,
    observed,
    push,
    roomy,
    rows,
)


class Exporter:
    """One that shares the ledger: its two kinds of statements, and its number."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.sharing = Sharing(database)
        self.store = joined(database)
        assert self.store.replica is not None
        self.id = self.store.replica

    def claim(self, *ended: Exporter, names: tuple[str, ...] = ("main",)) -> Claimed:
        return self.sharing.claim(self.id, names, [one.id for one in ended])

    def beat(self, silent: float | None = None) -> list[Member] | None:
        return self.sharing.beat(self.id, "peers", 0, silent or 60, None if silent is None else 0.0)

    def held(self, account: str = "main") -> list[str]:
        return ids(self.store.unfinished(account))

    def silent_since(self, seconds: float) -> None:
        """Have it have said nothing for so long."""
        with self.database.begin() as connection:
            connection.execute(
                text("UPDATE replicas SET beat_at = beat_at - :seconds WHERE id = :id"),
                {"seconds": seconds, "id": self.id},
            )

    def end(self) -> None:
        """Have the others declare it dead."""
        self.silent_since(3600)
        other = Exporter(self.database)
        other.beat(60)
        other.sharing.leave(other.id)


@pytest.fixture
def one_more(shared: Callable[[], Database]) -> Callable[[], Exporter]:
    return lambda: Exporter(shared())


@pytest.fixture
def a(one_more: Callable[[], Exporter]) -> Exporter:
    return one_more()


@pytest.fixture
def b(one_more: Callable[[], Exporter]) -> Exporter:
    return one_more()


# Who is there.


def test_numbers_are_never_used_again(a: Exporter) -> None:
    numbers = [a.id]
    for _ in range(3):
        numbers.append(a.sharing.join("made-up:1", 60))
        a.sharing.leave(numbers[-1])
        rows(a.store, "DELETE FROM replicas WHERE ended_at IS NOT NULL RETURNING id")
    assert numbers == sorted(set(numbers))


def test_a_beat_tells_who_is_there(a: Exporter, b: Exporter) -> None:
    a.sharing.beat(a.id, "x" * 64, 7, 60, None)
    members = b.sharing.beat(b.id, "y", 8, 60, 0.0)
    assert members is not None
    assert sorted(members) == [Member(a.id, "x" * 64, 7, True), Member(b.id, "y", 8, True)]
    b.sharing.leave(b.id)
    # Whoever has left is nobody, also to itself.
    assert b.beat() is None
    assert sorted(a.beat() or []) == [
        Member(a.id, "peers", 0, True),
        Member(b.id, "y", 8, False),
    ]


def test_whoever_is_silent_ends(a: Exporter, b: Exporter, one_more: Callable[[], Exporter]) -> None:
    c = one_more()
    b.silent_since(59)
    c.silent_since(61)
    a.silent_since(3600)
    # Who was held up itself knows nothing of the others; nor does one ever end itself.
    assert all(member.alive for member in a.beat(60) or [])
    alive = {member.id: member.alive for member in a.beat(60) or []}
    assert alive == {a.id: True, b.id: True, c.id: False}
    assert c.beat(1) is None
    assert a.beat(None) is not None
    # When it ended stays.
    (ended,) = rows(a.store, f"SELECT ended_at FROM replicas WHERE id = {c.id}")
    c.sharing.leave(c.id)
    a.beat(60)
    assert rows(a.store, f"SELECT ended_at FROM replicas WHERE id = {c.id}") == [ended]


def test_nobody_is_silent_who_beats_at_the_moment(a: Exporter, b: Exporter) -> None:
    """Nor do two wait for each other that have both been silent, as after an outage."""
    for exporter in (a, b):
        exporter.silent_since(3600)
    with a.database.begin() as connection:
        connection.execute(
            text("UPDATE replicas SET beat_at = beat_at WHERE id = :id"), {"id": a.id}
        )
        members = b.beat(60)
        assert members is not None
        assert all(member.alive for member in members)
    assert a.beat(60) is not None


def test_beats_at_the_same_time(a: Exporter, b: Exporter) -> None:
    for _ in range(20):
        for exporter in (a, b):
            exporter.silent_since(3600)
        told = together(partial(a.beat, 60), partial(b.beat, 60))
        # Both beat, or one was faster and took the other for dead.
        assert any(members is not None for members in told)
        rows(a.store, "UPDATE replicas SET ended_at = NULL RETURNING id")


def test_those_that_ended_long_ago_are_forgotten(a: Exporter, b: Exporter) -> None:
    push(b.store, new("held"))
    push(a.store, new("of a"), new("of b"))
    (held,) = b.claim().calls or b.store.unfinished("main")
    b.end()
    a.store.tell(held.call.id, HASTEN)
    a.sharing.forget_ended()
    assert b.id in [member.id for member in a.beat() or []]
    assert rows(a.store, "SELECT * FROM replica_messages") == []
    long_ago = "UPDATE replicas SET ended_at = ended_at - 90000 WHERE ended_at IS NOT NULL"
    rows(a.store, f"{long_ago} RETURNING id")
    a.sharing.forget_ended()
    # What it polled can still be claimed: nobody has taken it over yet.
    assert sorted(member.id for member in a.beat() or []) == sorted((a.id, b.id))
    assert ids(a.claim(b).calls) == ["held"]
    a.sharing.forget_ended()
    assert [member.id for member in a.beat() or []] == [a.id]


# Whose calls are whose.


def test_what_an_exporter_takes_in_is_its_own(a: Exporter, b: Exporter) -> None:
    push(a.store, new("a"))
    b.store.push([[new("A"), new("b")]], NOW)
    assert (a.held(), b.held()) == (["a"], ["b"])
    assert a.claim(names=("main", "other")).calls == []


def test_what_a_dead_exporter_takes_in_is_free(a: Exporter, b: Exporter) -> None:
    a.end()
    assert push(a.store, new("x")) == []
    assert a.store.push([[new("y")]], NOW).added == []
    assert ids(b.claim().calls) == ["x", "y"]
    assert b.held() == ["x", "y"]
    # It counts as its own what it finds out nevertheless.
    # Nor does it take over anything.
    a.sharing.release(b.id, [call.call.id for call in b.store.unfinished("main")])
    assert a.claim().calls == []
    b.claim()
    (call, _) = b.store.unfinished("main")
    assert a.store.commit([observed(call, BUSY)]).finished == 1


def test_a_claim_brings_calls_as_they_are(a: Exporter, b: Exporter) -> None:
    (stored,) = push(a.store, new("Ab", OTP))
    a.store.commit([observed(stored, PollAgain(CallState.QUEUED))])
    finish(a.store, *push(a.store, new("finished")))
    a.store.watch("file:a", [new("deleted")], NOW)
    a.store.keep_only("file:a", set())
    a.sharing.leave(a.id)
    claimed = b.claim(a)
    (taken,) = claimed.calls
    assert (taken.account, claimed.label_sets[taken.labels]) == ("main", OTP)
    call = taken.call
    assert (call.id, call.reference_id) == (stored.call.id, "Ab")
    assert (call.first_watched, call.state, call.state_since) == (
        NOW,
        CallState.QUEUED,
        NOW + 5,
    )
    assert b.claim(a) == Claimed([], {})
    assert b.held() == ["Ab"]


def test_a_claim_is_of_accounts_that_are_asked_for(a: Exporter, b: Exporter) -> None:
    push(a.store, new("x"), new("y", account="other"), new("z", account="third"))
    a.sharing.leave(a.id)
    assert b.claim(a, names=()).calls == []
    assert b.claim(a, names=("nobody",)).calls == []
    assert b.claim(names=("other",)).calls == []
    assert ids(b.claim(a, names=("other", "nobody")).calls) == ["y"]
    assert sorted(ids(b.claim(a, names=("main", "third")).calls)) == ["x", "z"]


def test_a_claim_has_a_bound(a: Exporter, b: Exporter) -> None:
    half = CHUNK // 2 + 100
    push(a.store, *(new(f"free{n}") for n in range(half)))
    a.sharing.release(a.id, [c.call.id for c in a.store.unfinished("main")])
    push(a.store, *(new(f"ended{n}") for n in range(half)))
    a.sharing.leave(a.id)
    claims = [len(b.claim(a).calls) for _ in range(3)]
    assert claims == [CHUNK, 2 * half - CHUNK, 0]


def test_a_call_is_claimed_once(one_more: Callable[[], Exporter]) -> None:
    exporters = [one_more() for _ in range(3)]
    gone = one_more()
    for first in range(0, 3 * CHUNK, CHUNK):
        push(gone.store, *(new(f"c{n}") for n in range(first, first + CHUNK)))
    free = [stored.call.id for stored in gone.store.unfinished("main")]
    gone.sharing.release(gone.id, free)
    gone.sharing.leave(gone.id)

    def claim_all(exporter: Exporter) -> list[int]:
        found: list[int] = []
        misses = 0
        while misses < 3:  # others may hold the last ones for a moment
            claimed = exporter.claim(gone).calls
            misses += not claimed
            found += [stored.call.id for stored in claimed]
        return found

    claims = together(*(partial(claim_all, exporter) for exporter in exporters))
    claimed = [row for one in claims for row in one]
    assert len(claimed) == len(set(claimed)) == 3 * CHUNK
    for exporter, one in zip(exporters, claims, strict=True):
        held = f"SELECT count(*) FROM calls WHERE replica_id = {exporter.id}"
        assert rows(exporter.store, held) == [(len(one),)]


def test_a_claim_waits_for_nobody(a: Exporter, b: Exporter) -> None:
    x, _ = push(a.store, new("x"), new("y"))
    a.sharing.leave(a.id)
    with a.database.begin() as connection:
        assert commit(connection, [observed(x, BUSY)]).finished == 1
        assert ids(b.claim(a).calls) == ["y"]
    assert b.claim(a).calls == []


def test_what_is_given_up_can_be_claimed(a: Exporter, b: Exporter) -> None:
    x, y, z = push(a.store, new("x"), new("y"), new("z"))
    b.sharing.release(b.id, [x.call.id])  # not its own
    assert b.claim().calls == []
    a.sharing.release(a.id, [x.call.id, z.call.id])
    assert sorted(ids(b.claim().calls)) == ["x", "z"]
    a.sharing.release(a.id, [x.call.id, y.call.id])  # one is another's by now
    assert (a.held(), b.held()) == ([], ["x", "z"])


def test_an_account_is_given_up(a: Exporter, b: Exporter) -> None:
    push(a.store, *(new(f"c{n}") for n in range(CHUNK)))
    push(a.store, new("last"), new("other", account="other"))
    push(b.store, new("of b"))
    assert [a.sharing.release_account(a.id, "main") for _ in range(3)] == [CHUNK, 1, 0]
    assert a.sharing.release_account(a.id, "nobody") == 0
    assert (a.held(), a.held("other"), b.held()) == ([], ["other"], ["of b"])


# What they say of calls.


def test_many_messages_are_heard_a_part_at_a_time(a: Exporter) -> None:
    insert = "INSERT INTO replica_messages (replica_id, call_id, message)"
    with a.database.begin() as connection:
        some = f"SELECT {a.id}, n, 'forget' FROM generate_series(1, {MESSAGES + 7}) n"
        connection.execute(text(f"{insert} {some}"))
    heard = [number for number, *_ in a.sharing.messages(a.id, [])]
    assert len(heard) == MESSAGES
    rest = a.sharing.messages(a.id, heard)
    assert [row for _, row, _ in rest] == list(range(MESSAGES + 1, MESSAGES + 8))


def test_messages(a: Exporter, b: Exporter) -> None:
    mine, x, y, z = [push(a.store, new(name))[0].call.id for name in ("mine", "x", "y", "z")]
    a.sharing.release(a.id, [x, y, z])
    b.claim()
    a.store.tell(z, HASTEN)
    a.store.tell(mine, HASTEN)  # nobody has to be told
    a.store.delete(y, NOW)
    a.store.delete(mine, NOW)
    b.store.tell(x, HASTEN)  # its own
    assert a.sharing.messages(a.id, []) == []
    (first, *said), (second, *also_said) = b.sharing.messages(b.id, [])
    assert (said, also_said) == ([z, HASTEN], [y, FORGET])
    # Until they were followed, they are said again.
    assert len(b.sharing.messages(b.id, [])) == 2
    assert b.sharing.messages(b.id, [first]) == [(second, y, FORGET)]
    assert b.sharing.messages(b.id, [first, second]) == []


def test_whoever_polls_a_call_is_told_that_it_was_let_go(a: Exporter, b: Exporter) -> None:
    (stored,) = a.store.watch("file:a", [new("x")], NOW).added
    b.store.watch("file:b", [new("X")], NOW)
    a.store.keep_only("file:a", set())
    assert b.store.keep_only("file:b", set()) == [stored.call.id]
    assert [said[1:] for said in a.sharing.messages(a.id, [])] == [(stored.call.id, FORGET)]
    assert b.sharing.messages(b.id, []) == []


# What they have counted.


def shown(a: Exporter) -> tuple[dict[str, float], int]:
    """Return the totals of calls by label set and cell, and from when on others are new."""
    snapshot = a.store.snapshot()
    return {c.cell: v for c, v in snapshot.totals.items() if c.total is Total.CALLS}, snapshot.since


def changed(exporter: Exporter, since: int) -> tuple[dict[str, float], int]:
    changes = exporter.sharing.changes(since, [])
    found = {c.cell: v for c, v in changes.totals.items() if c.total is Total.CALLS}
    return found, changes.since


def test_changes_are_what_is_new(a: Exporter, b: Exporter) -> None:
    x, y, z = push(a.store, new("x", OTP), new("y", OTP), new("z"))
    finish(a.store, x)
    assert shown(b)[0] == {"success/busy": 1.0}
    since = shown(b)[1]
    finish(a.store, y, verdict=ANSWERED)
    changes = b.sharing.changes(since, [])
    assert changes.label_sets == {y.labels: OTP}
    calls = {c[1:]: v for c, v in changes.totals.items() if c.total is Total.CALLS}
    assert calls == {(y.labels, Total.CALLS, "success/answered"): 1.0}
    # A set that is known is not told again.
    finish(a.store, z)
    changes = b.sharing.changes(since, [y.labels])
    assert changes.label_sets == {z.labels: {}}
    assert {cell.account for cell in changes.totals} == {"main"}


def test_a_price_is_a_change(a: Exporter, b: Exporter) -> None:
    (x,) = push(a.store, new("x"))
    finish(a.store, x)
    since = shown(b)[1]
    a.store.set_price(x.call.id, 350.0)
    totals = b.sharing.changes(since, []).totals
    assert {c.cell: v for c, v in totals.items() if c.total is Total.PRICE} == {"sum": 350.0}


def test_no_change_is_missed_whichever_ends_first(a: Exporter, b: Exporter) -> None:
    """Of transactions that begin in one order, and end in another one."""
    stored = push(a.store, *(new(f"c{n}", {"n": str(n)}) for n in range(3)))
    seen: dict[int, float] = {}
    since = shown(b)[1]

    def look() -> None:
        nonlocal since
        changes = b.sharing.changes(since, [])
        since = changes.since
        seen.update({c.labels: v for c, v in changes.totals.items() if c.total is Total.CALLS})

    with ExitStack() as first, ExitStack() as second:
        early = first.enter_context(a.database.begin())
        commit(early, [observed(stored[0], BUSY)])
        late = second.enter_context(a.database.begin())
        commit(late, [observed(stored[1], BUSY)])
        look()
        assert seen == {}
        second.close()
        look()
        assert seen == {stored[1].labels: 1.0}
        finish(b.store, stored[2])
        look()
        first.close()
        look()
    assert seen == {call.labels: 1.0 for call in stored}


def test_no_change_is_missed_while_many_are_made(a: Exporter, b: Exporter) -> None:
    push(a.store, *(new(f"c{n}", {"n": str(n % 7)}, f"a{n % 3}") for n in range(600)))
    stored = [call for n in range(3) for call in a.store.unfinished(f"a{n}")]
    snapshot = b.store.snapshot()
    seen, since = dict(snapshot.totals), snapshot.since
    with ThreadPoolExecutor(2) as threads:
        done = [
            threads.submit(finish, exporter.store, *stored[first : first + 5])
            for first in range(0, 600, 5)
            for exporter in [(a, b)[first // 5 % 2]]
        ]
        reader = Sharing(b.database)
        while not all(one.done() for one in done):
            changes = reader.changes(since, [])
            for cell, value in changes.totals.items():
                assert value >= seen.get(cell, 0.0)
            seen, since = seen | changes.totals, changes.since
        for one in done:
            one.result()
    assert seen | reader.changes(since, []).totals == b.store.snapshot().totals


def test_no_change_is_missed_across_a_crash() -> None:
    """A server that crashes gives numbers of transactions away again that it had given to light
    ones, which are lost: one that writes totals may bear a number from before."""
    with postgresql("-c", "wal_writer_delay=10s") as server, server.database() as url:
        a = Exporter(open_database(url))
        x, y = push(a.store, new("x"), new("y", {"n": "1"}))
        finish(a.store, x)
        for _ in range(50):
            a.beat()
        since = shown(a)[1]
        server.stop(signal.SIGQUIT)
        server.start()
        finish(a.store, y)
        assert y.labels in {cell.labels for cell in a.sharing.changes(since, []).totals}
        a.database.close()


def test_a_server_that_has_lost_transactions(a: Exporter, b: Exporter) -> None:
    """As at a failover: numbers are less than they were, and everything is read anew."""
    finish(a.store, *push(a.store, new("x")))
    found, since = changed(b, 10**9)
    assert found == {"success/busy": 1.0}
    assert changed(b, since)[0] == {}


def test_a_dump_that_was_restored_elsewhere(a: Exporter, b: Exporter) -> None:
    """What was written there bears numbers that are still to come here."""
    x, y = push(a.store, new("x"), new("y", {"n": "1"}))
    finish(a.store, x)
    rows(a.store, f"UPDATE totals SET changed_in = {10**9} RETURNING value")
    found, since = shown(b)
    assert found == {"success/busy": 1.0}
    assert changed(b, since)[0] == {}
    finish(a.store, y, verdict=ANSWERED)
    assert changed(b, since)[0] == {"success/answered": 1.0}


# When they ask.


def slots(grants: list[Grant], wishes: list[Wish]) -> list[float]:
    (grant,), (wish,) = grants, wishes
    return [grant.first + n * wish.apart for n in range(wish.slots)]


def test_slots_are_apart_whoever_has_them(a: Exporter, b: Exporter) -> None:
    exporters = [a, b, a]

    def ask(exporter: Exporter, seed: int) -> list[float]:
        found: list[float] = []
        for n in range(40):
            wishes = [Wish("main", 1 + (n + seed) % 4, 0.001)]
            found += slots(exporter.sharing.reserve(wishes, 0.0), wishes)
        return found

    granted = together(*(partial(ask, one, n) for n, one in enumerate(exporters)))
    taken = sorted(slot for one in granted for slot in one)
    assert len(taken) == 3 * 40 * 2.5
    assert all(second - first > 0.000_99 for first, second in pairwise(taken))


def test_slots_are_in_the_future_but_not_far(a: Exporter) -> None:
    (grant,) = a.sharing.reserve([Wish("main", 3, 0.5)], 0.25)
    assert grant.account == "main"
    assert grant.first == pytest.approx(grant.now + 0.25)
    assert grant.now == pytest.approx(time.time(), abs=5)
    (again,) = a.sharing.reserve([Wish("main", 1, 0.5)], 0.25)
    assert again.first == pytest.approx(grant.first + 1.5)
    # After a while in which nobody asked, nothing is saved up.
    rows(a.store, "UPDATE accounts SET next_slot = next_slot - 3600 RETURNING id")
    (later,) = a.sharing.reserve([Wish("main", 1, 0.5)], 0.25)
    assert later.first == pytest.approx(later.now + 0.25)


def test_a_clock_that_was_set_back_keeps_nobody_waiting(a: Exporter) -> None:
    a.sharing.reserve([Wish("main", 1, 0.01)], 0.0)
    rows(a.store, "UPDATE accounts SET next_slot = next_slot + 3600 RETURNING id")
    (grant,) = a.sharing.reserve([Wish("main", 1, 0.01)], 0.0)
    assert grant.first == pytest.approx(grant.now + 70)
    (then,) = a.sharing.reserve([Wish("main", 1, 0.01)], 0.0)
    assert then.first <= then.now + 70.02


def test_accounts_that_are_not_known_yet(a: Exporter, b: Exporter) -> None:
    wishes = [Wish(name, 2, 0.1) for name in ("x", "y", "z")]
    grants = together(
        partial(a.sharing.reserve, wishes, 0.0), partial(b.sharing.reserve, wishes[::-1], 0.0)
    )
    for one in grants:
        assert sorted(grant.account for grant in one) == ["x", "y", "z"]
    first = {grant.account: grant.first for grant in grants[0]}
    for grant in grants[1]:
        assert abs(grant.first - first[grant.account]) > 0.199
    assert a.sharing.reserve([], 0.0) == []


def test_accounts_are_reserved_in_any_order(a: Exporter, b: Exporter) -> None:
    names = [f"a{n}" for n in range(6)]

    def ask(exporter: Exporter, order: list[str]) -> int:
        return sum(
            len(exporter.sharing.reserve([Wish(name, 1, 0.001) for name in order], 0.0))
            for _ in range(40)
        )

    assert together(
        partial(ask, a, names), partial(ask, b, names[::-1]), partial(ask, a, names[3:])
    ) == [240, 240, 120]


def test_a_turn_waits_for_nobody_who_takes_calls_in(a: Exporter, b: Exporter) -> None:
    a.sharing.reserve([Wish("main", 1, 0.001)], 0.0)
    with a.database.begin() as connection:
        take(connection, None, [new("x")], NOW, roomy, a.id)
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(b.sharing.reserve, [Wish("main", 1, 0.001)], 0.0).result(4)
