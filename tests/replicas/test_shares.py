from __future__ import annotations

import pytest

from exporter.ledger.sharing import Member
from exporter.replicas.shares import excess, peers_of, share

A, B = peers_of(["a"]), peers_of(["a", "b"])


@pytest.mark.parametrize(
    ("others", "held", "expected"),
    [
        ([], 7, 7.0),
        ([Member(2, A, 0, alive=True)], 300, 150.0),
        ([Member(2, A, 100, alive=True), Member(3, A, 100, alive=True)], 100, 100.0),
        ([Member(2, A, 100, alive=False)], 300, 300.0),
        ([Member(2, B, 0, alive=True)], 300, 300.0),  # which could not take them over
    ],
)
def test_what_is_fair(others: list[Member], held: int, expected: float) -> None:
    # What this one said last does not count: it knows better.
    members = [Member(1, A, 9999, alive=True), *others]
    assert share(members, 1, A, held) == expected


@pytest.mark.parametrize(
    ("held", "fair", "expected"),
    [
        (300, 150.0, 150),
        (110, 100.0, 0),
        (111, 100.0, 11),
        (11, 1.0, 0),
        (12, 1.0, 11),
        (5, 9.5, 0),
    ],
)
def test_little_is_left_where_it_is(held: int, fair: float, expected: int) -> None:
    assert excess(held, fair) == expected


def test_those_with_the_same_accounts_are_peers() -> None:
    assert peers_of(["b", "a"]) == B != A
