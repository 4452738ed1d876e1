"""Whose turn it is on a target's connections, as tables."""

from __future__ import annotations

from collections import Counter

import pytest

from exporter.ledger.outbox import CallFinished, Notification
from exporter.notify.queue import SendQueue


def some(account: str, count: int, *, retry: bool = False) -> list[Notification]:
    return [
        Notification(
            number,
            1,
            retry,
            CallFinished(
                account, f"{account}{number}", "success", "busy", None, None, {}, 0.0, 0.0
            ),
        )
        for number in range(count)
    ]


def sent(queue: SendQueue, now: float = 0.0) -> list[Notification]:
    """Send as many as may be under way."""
    return list(iter(lambda: queue.next(now), None))


@pytest.mark.parametrize(
    ("connections", "new", "retries", "expected"),
    [
        (8, 20, 20, (6, 2)),
        (8, 20, 0, (8, 0)),
        (8, 0, 20, (0, 4)),
        (8, 3, 20, (3, 4)),
        (3, 20, 20, (2, 1)),
        (1, 20, 20, (0, 1)),
        (1, 20, 0, (1, 0)),
        (1, 0, 20, (0, 1)),
    ],
)
def test_retries_have_a_share(
    connections: int, new: int, retries: int, expected: tuple[int, int]
) -> None:
    queue = SendQueue(connections)
    queue.add(some("a", new) + some("a", retries, retry=True))
    kinds = Counter(one.retry for one in sent(queue))
    assert (kinds[False], kinds[True]) == expected
    assert len(queue) == new + retries - sum(expected)


@pytest.mark.parametrize("seconds", [0.01, 10.0])
@pytest.mark.parametrize("connections", [1, 2, 3, 4, 8])
def test_retries_have_a_quarter_of_the_time(connections: int, seconds: float) -> None:
    """New events take a tenth of a second, retries what they take."""
    queue, now = SendQueue(connections), 0.0
    queue.add(some("a", 20_000) + some("a", 20_000, retry=True))
    busy = {False: 0.0, True: 0.0}
    ends: list[tuple[float, Notification, float]] = []
    while now < 100:
        for one in sent(queue, now):
            takes = seconds if one.retry else 0.1
            ends.append((now + takes, one, takes))
            busy[one.retry] += takes
        ends.sort(reverse=True, key=lambda end: end[0])
        now, one, takes = ends.pop()
        queue.done(one, takes, now)
    assert 0 < busy[True] / sum(busy.values()) < 0.3


def test_accounts_share_the_connections() -> None:
    queue = SendQueue(4)
    queue.add(some("hangs", 9))
    assert Counter(one.call.account for one in sent(queue)) == {"hangs": 4}
    queue.add([*some("quick", 9), *some("other", 1)])
    for _ in range(2):
        queue.done(some("hangs", 1)[0], 10.0, 10.0)
    batches = []
    for _ in range(3):
        batch = sent(queue, 10.0)
        batches.append([one.call.account for one in batch])
        for one in batch:
            queue.done(one, 0.1, 10.0)
    assert batches == [["quick", "other"], ["quick"], ["quick"]]


def test_the_last_connection_is_for_an_account_that_holds_none() -> None:
    queue = SendQueue(4)
    queue.add([*some("a", 9), *some("b", 1)])
    assert Counter(one.call.account for one in sent(queue)) == {"a": 2, "b": 1}
    queue.add(some("c", 9))
    assert [one.call.account for one in sent(queue)] == ["c"]


def test_accounts_take_turns_on_a_single_connection() -> None:
    queue = SendQueue(1)
    queue.add([*some("a", 9), *some("b", 9)])
    names = []
    for _ in range(6):
        (one,) = sent(queue)
        names.append(one.call.account)
        queue.done(one, 0.1, 0.1)
    assert names == list("ababab")


def test_those_that_wait_can_be_had_back() -> None:
    queue = SendQueue(1)
    queue.add([*some("a", 2), *some("b", 1), *some("b", 1, retry=True)])
    assert queue.waiting(retry=False) == {"a": 2, "b": 1}
    assert [one.call.reference_id for one in queue.clear(retry=False)] == ["a0", "a1", "b0"]
    assert queue.waiting(retry=False) == {}
    assert len(queue) == 1
