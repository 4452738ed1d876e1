"""Totals by sets of labels, within limits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.call_totals import CallTotals
from exporter.ids import Kind
from exporter.ledger.calls import list_calls, prune_finished
from exporter.ledger.engine import Database
from exporter.ledger.labels import OTHER, LabelLimits, canonical, fold, prune_labels
from exporter.ledger.store import Store, StoreSettings
from exporter.ledger.totals import SUM, TotalKind
from exporter.ledger.types import Labels, NewCall, StoredCall
from exporter.metrics.catalogue import Catalogue
from tests.increases import Increases
from tests.ledger.racing import together
from tests.ledger.test_ledger_store import ANSWERED, NOW, finish, new, observed, pay, push, rows
from tests.samples import samples


def parsed(text: str) -> Labels:
    """Return labels that are written as `a1 b2`: a value for each name."""
    return {
        pair[0]: OTHER if pair[1:] == "*" else pair[1:] for pair in text.split() if len(pair) > 1
    }


@pytest.mark.parametrize(
    ("names", "max_values", "max_sets", "used", "folded"),
    [
        # Within the limits.
        ("a", 2, 9, ["a1", "a2", "", "a1"], {}),
        # The value that was used least recently makes room; that a call has none takes none.
        ("a", 2, 9, ["a1", "a2", "", "a3"], {"a1": "a*"}),
        ("a", 2, 9, ["a1", "a2", "a1", "a3"], {"a2": "a*"}),
        ("a", 2, 9, ["a1", "a2", "a3", "a1"], {"a2": "a*"}),
        ("a", 1, 9, ["a1", "a*", "a2", "a*"], {"a1": "a*"}),
        # In each set that has it, and with the other values kept.
        ("ab", 2, 9, ["a1 b1", "a1 b2", "a2 b1", "a3 b1"], {"a1 b1": "a* b1", "a1 b2": "a* b2"}),
        ("ab", 1, 9, ["a1 b1", "a2 b2"], {"a1 b1": "a* b*"}),
        ("ab", 1, 9, ["a1 b1", "a2"], {"a1 b1": "a* b1"}),
        # The set that was used least recently makes room, with all of its values.
        ("ab", 9, 2, ["a1 b1", "a1 b2", "", "a2 b1"], {"a1 b1": "a* b*"}),
        ("ab", 9, 2, ["a1 b1", "a1 b2", "a1 b1", "a2"], {"a1 b2": "a* b*"}),
        ("ab", 9, 1, ["a1", "b1", "a2 b2"], {"a1": "a* b*", "b1": "a* b*"}),
        # What was folded into takes room, too, and may have to make some.
        ("ab", 1, 1, ["a1 b1", "a2 b1", "a3 b1"], {"a1 b1": "a* b*", "a2 b1": "a* b*"}),
        # Labels that are not shown any more: first, what is shown alike.
        ("a", 9, 2, ["a1 x1", "a1 x2", "a2"], {"a1 x1": "a1", "a1 x2": "a1"}),
        ("a", 9, 1, ["x1", "x2", "a1"], {"x1": "", "x2": ""}),
        ("a", 1, 9, ["a1 x1", "a1", "a2"], {"a1 x1": "a* x1", "a1": "a*"}),
        ("", 1, 1, ["x1", "x2", ""], {"x1": "", "x2": ""}),
    ],
)
def test_what_makes_room(
    names: str, max_values: int, max_sets: int, used: list[str], folded: dict[str, str]
) -> None:
    sets: dict[str, Labels] = {}
    for one in used:
        sets.pop(name := canonical(parsed(one)), None)
        sets[name] = parsed(one)
    counted = fold(sets, LabelLimits(tuple(names), max_values, max_sets))
    assert {name: into for name, into in counted.items() if into != sets[name]} == {
        canonical(parsed(one)): parsed(into) for one, into in folded.items()
    }


_LABELS = st.dictionaries(st.sampled_from("abx"), st.sampled_from(["", "1", "2", "3", OTHER]))


@given(
    st.sampled_from([(), ("a",), ("a", "b")]),
    st.integers(1, 3),
    st.integers(1, 4),
    st.lists(_LABELS, max_size=9),
)
def test_there_are_limits_whatever_is_used(
    names: tuple[str, ...], max_values: int, max_sets: int, used: list[Labels]
) -> None:
    limits = LabelLimits(names, max_values, max_sets)
    sets: dict[str, Labels] = {}

    def shown(labels: Labels) -> tuple[str, ...]:
        return tuple(labels.get(label, "") for label in names)

    for labels in used:
        sets.pop(canonical(labels), None)
        sets[canonical(labels)] = labels
        counted = fold(sets, limits)
        assert shown(counted[canonical(labels)]) == shown(labels)
        alive = {canonical(into): into for into in counted.values()}
        always = {canonical({}), canonical(dict.fromkeys(names, OTHER))}
        assert len(alive.keys() - always) <= max_sets
        for number in range(len(names)):
            assert len({shown(into)[number] for into in alive.values()} - {"", OTHER}) <= max_values
        # A series stays, or all that is shown by it goes to another one.
        series = {shown(into) for into in alive.values()}
        for name, into in counted.items():
            if shown(into) != shown(sets[name]):
                assert OTHER in shown(into)
                assert shown(sets[name]) not in series
        # What is counted is counted as itself from then on.
        assert fold(alive, limits) == alive
        sets = alive


def limited(store: Store, max_values: int, max_sets: int = 99, names: str = "ab") -> Store:
    store.configure(StoreSettings(LabelLimits(tuple(names), max_values, max_sets)))
    return store


def count(store: Store, *labels: str, account: str = "main") -> None:
    """Push and finish a call for each set of labels, written as `a1 b2`."""
    finish(store, *push(store, *calls(*labels, account=account)))


def calls(*labels: str, account: str = "main") -> list[NewCall]:
    return [
        new(f"{next(_numbers)}", {pair[0]: pair[1:] for pair in one.split()}, account)
        for one in labels
    ]


_numbers = iter(range(10**9))


def counted(store: Store, account: str = "main", names: str = "ab") -> dict[str, float]:
    """Return how many calls were counted, by their labels."""
    snapshot = store.database.run(store.snapshot)
    found: defaultdict[str, float] = defaultdict(float)
    for cell, value in snapshot.totals.items():
        if cell.account == account and cell.total is TotalKind.CALLS:
            labels = snapshot.label_sets[cell.labels]
            found[" ".join(f"{n}{labels[n]}" for n in names if n in labels)] += value
    return dict(found)


def test_calls_of_a_set_that_made_room_count_with_the_others(store: Store) -> None:
    limited(store, 2)
    early = push(store, *calls("a1 b1", "a1 b2", "a2 b1"))
    count(store, "a3 b1")
    held = {call.label_set for _, call in store.unfinished("main")}
    finish(store, *early, verdict=ANSWERED)
    pay(store, early[0].call.id, 350.0)
    assert counted(store) == {"aother b1": 1, "aother b2": 1, "a2 b1": 1, "a3 b1": 1}
    snapshot = store.database.run(store.snapshot)
    (price,) = (cell for cell in snapshot.totals if cell.total is TotalKind.PRICE)
    assert snapshot.label_sets[price.labels] == {"a": "other", "b": "1"}
    assert held <= snapshot.label_sets.keys()
    # Their own labels stay theirs.
    assert [call.labels for call in list_calls(store.database, ["main"]).records][:2] == [
        {"a": "1", "b": "1"},
        {"a": "1", "b": "2"},
    ]


def test_the_delays_of_a_set_that_made_room_stay(store: Store) -> None:
    limited(store, 1)
    for number, kind in enumerate((Kind.CALL, Kind.MESSAGE) * 2):
        finish(store, *push(store, new(f"{number}", {"a": f"{number}"})._replace(kind=kind)))
    totals = store.database.run(store.snapshot).totals.items()
    for kept in (TotalKind.DELAY, TotalKind.MESSAGE_DELAY):
        assert sum(v for c, v in totals if c.total is kept and c.cell != SUM) == 2


def series(totals: CallTotals) -> dict[tuple[str, ...], float]:
    """Return the values of series, and of histograms how much they have counted."""
    metrics = Catalogue()
    metrics.read_calls(totals)
    return {
        (sample.name, *sample.labels.values()): sample.value
        for sample in samples(metrics)
        if sample.name.startswith(("esms_call_", "esms_calls_total"))
        and not sample.name.endswith(("_bucket", "_sum"))
    }


def shown(store: Store) -> CallTotals:
    """Show a ledger as an exporter does that has just started."""
    totals = CallTotals(store.settings.limits.names)
    totals.show({"main", "b"}, store.database.run(store.snapshot))
    return totals


def test_what_is_told_is_what_has_changed(store: Store) -> None:
    """For those who show what each transaction has changed."""
    limited(store, 2)
    totals = shown(store)
    for labels in ("a1 b1", "a2 b1", "a3 b1", "a1 b1", "a4 b2", "a5 b3"):
        taken = store.watch(None, calls(labels), NOW)
        totals.learn(taken.label_sets)
        totals.change_series(taken.series)
        committed = store.commit([observed(call, ANSWERED) for call in taken.added])
        totals.add(committed.added.items())
        assert series(totals) == series(shown(store))


def test_the_exemplar_of_a_call_is_at_the_series_that_counts_it(store: Store) -> None:
    store.configure(StoreSettings(LabelLimits(("a",), 1), exemplars=True))
    (evicted,) = push(store, *calls("a1"))
    push(store, *calls("a2"))
    newest = store.commit([observed(evicted, ANSWERED)]).newest
    assert {store.database.run(store.snapshot).label_sets[key.labels]["a"] for key in newest} == {
        OTHER
    }


@pytest.mark.parametrize("seed", range(2))
def test_what_prometheus_counts_is_what_has_finished(store: Store, seed: int) -> None:
    limited(store, 2, 4)
    random, prometheus, finished = Random(seed), Increases(), 0
    left: list[StoredCall] = []
    prometheus.scrape(series(shown(store)))
    for step in range(200):
        if step >= 150 or (left and random.random() < 0.5):
            if not left:
                break
            call = left.pop(random.randrange(len(left)))
            pay(store, call.call.id, 1.0)
            finish(store, call, verdict=ANSWERED)
            finished += 1
        elif random.random() < 0.1:
            limited(store, random.randint(1, 3), random.randint(1, 6))
        else:
            labels = f"a{random.randint(1, 4)} b{random.randint(1, 3)}"
            left += push(store, *calls(labels, account=random.choice(["main", "b"])))
        prometheus.scrape(series(shown(store)))
        assert set(prometheus.sums.values()) == {finished}
    assert finished > 50


@pytest.mark.parametrize("names", ["ab", "bx", ""])
@pytest.mark.parametrize("limits", [(1, 99), (2, 2), (9, 1)])
def test_limits_and_labels_that_change(store: Store, names: str, limits: tuple[int, int]) -> None:
    limited(store, 9, 9)
    count(store, "a1 b1", "a2 b1", "a3 b2", "a3", "")
    before = counted(store, names=names)
    limited(store, *limits, names=names)
    after = counted(store, names=names)
    # A series stays as it is, or disappears.
    assert after.items() <= before.items()
    assert (
        len({s for s in after if s and set(s.split()) != {f"{n}other" for n in names}}) <= limits[1]
    )
    # Raised again, nothing that was shown goes backwards.
    limited(store, 99, 99, names)
    assert counted(store, names=names) == after
    count(store, *(f"{n}9" for n in names))
    assert after.items() <= counted(store, names=names).items()


def test_names_that_change_there_and_back_lose_nothing(store: Store) -> None:
    limited(store, 9, 9)
    count(store, "a1 b1", "a2 b1")
    before = store.database.run(store.snapshot)
    limited(store, 9, 9, "x")
    store.database.run(store.snapshot)
    count(store, "x1")
    limited(store, 9, 9)
    after = store.database.run(store.snapshot)
    assert after.totals.items() >= before.totals.items()


def test_many_sets_are_written_at_once(store: Store, statements: list[str]) -> None:
    limited(store, 100, 1000)
    numbers = []
    for size in (1, 1_000):
        wanted = calls(*(f"a{size}x{n}" for n in range(size)))
        del statements[:]
        store.push([wanted], NOW)
        numbers.append(len(statements))
    assert numbers[1] <= numbers[0] + 10


def test_what_nothing_refers_to_is_forgotten(store: Store) -> None:
    limited(store, 2)
    for n in range(3):
        count(store, *(f"a{n}{m}" for m in range(1_000)))
    assert rows(store, "SELECT count(*) FROM label_sets") == [(3_001,)]
    store.database.run(prune_labels)
    assert rows(store, "SELECT count(*) FROM label_sets") == [(3_001,)]
    while store.database.run(prune_finished, NOW + 10):
        pass
    while store.database.run(prune_labels):
        pass
    assert rows(store, "SELECT count(*) FROM label_sets") == [(3,)]
    assert rows(store, "SELECT count(*) FROM folded_labels") == [(0,)]
    assert counted(store)["aother"] == 2_994
    count(store, "a00")
    assert counted(store)["a00"] == 1


# Exporters that share a ledger.


def test_exporters_that_make_room_at_the_same_time_count_each_call_once(
    shared: Callable[[], Database],
) -> None:
    stores = [limited(Store(shared()), 2, 3) for _ in range(3)]

    def work(store: Store, number: int) -> int:
        for n in range(30):
            stored = push(store, *calls(f"a{(n * number) % 5} b{n % 3}", f"a{n % 4}"))
            pay(store, stored[0].call.id, 1.0)
            finish(store, *stored)
            pay(store, stored[1].call.id, 1.0)
        return 60

    def run(number: int) -> Callable[[], int]:
        return lambda: work(stores[number], number + 1)

    assert sum(together(*(run(number) for number in range(3)))) == 180
    totals = stores[0].database.run(stores[0].snapshot).totals
    # What has no labels but the account is never evicted.
    assert sum(v for c, v in totals.items() if c.total is TotalKind.DELAY and c.cell != SUM) == 180
    assert sum(v for c, v in totals.items() if c.total is TotalKind.PRICE) <= 180
    assert len(rows(stores[0], "SELECT * FROM counted_labels")) <= 5
