"""Which leases an exporter takes and gives up, and when it renews them."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from exporter.leases import LeaseHolder, plan
from exporter.ledger.leases import Lease, Leases, Peer, renew_leases
from tests.waiting import until

PATIENCE = 10.0
ALL = frozenset("abcdef")


def known(
    leases: Mapping[str, str | None],
    peers: Mapping[str, Collection[str]],
    overdue: float = 0.0,
    expired: Collection[str] = (),
) -> Leases:
    return Leases(
        {
            name: Lease(holder, 1, max(overdue, float(name in expired)))
            for name, holder in leases.items()
        },
        {name: Peer(f"host-{name}:1", frozenset(accounts)) for name, accounts in peers.items()},
    )


def decided(
    leases: Leases,
    held: Collection[str] = (),
    configured: Collection[str] = ALL,
    avoided: Collection[str] = (),
    *,
    take_expired: bool = True,
) -> tuple[str, str]:
    """Return what exporter `1` decides: accounts to take, and to give up."""
    take, give_up = plan(
        "1", configured, avoided, held, leases, PATIENCE, take_expired=take_expired
    )
    return "".join(take), "".join(give_up)


FREE = dict.fromkeys("abcdef")


@pytest.mark.parametrize(
    ("peers", "take"),
    [
        ({}, "abcdef"),
        ({"1": ALL}, "abcdef"),
        ({"1": ALL, "2": ALL}, "ace"),
        ({"0": ALL, "1": ALL, "2": ALL}, "be"),
        ({"1": ALL, "2": "ab"}, "acdef"),
        ({"1": ALL, "2": "x"}, "abcdef"),
    ],
)
def test_free_leases_are_shared_evenly(peers: Mapping[str, Collection[str]], take: str) -> None:
    assert decided(known(FREE, peers)) == (take, "")


def test_what_the_other_does_not_take_in_time_is_for_anybody() -> None:
    peers = {"1": ALL, "2": ALL}
    assert decided(known(FREE, peers, overdue=PATIENCE + 1)) == ("abcdef", "")


def test_leases_that_are_not_configured_are_left_alone() -> None:
    assert decided(known(FREE, {"1": "ab"}), configured="ab") == ("ab", "")
    assert decided(known({}, {"1": "ab"}), configured="ab") == ("", "")
    assert decided(known({"a": "1", "b": "1"}, {"1": "b"}), held="b", configured="b") == ("", "a")


@pytest.mark.parametrize(
    ("leases", "give_up"),
    [
        ("111111", "abc"),
        ("111112", "ab"),
        ("111122", "a"),
        ("111222", ""),
        ("112222", ""),
    ],
)
def test_accounts_are_evened_out(leases: str, give_up: str) -> None:
    held = dict(zip("abcdef", leases, strict=True))
    mine = [name for name, holder in held.items() if holder == "1"]
    assert decided(known(held, {"1": ALL, "2": ALL}), mine) == ("", give_up)


def test_an_account_goes_only_to_who_is_configured_with_it() -> None:
    held = dict.fromkeys("abcdef", "1")
    assert decided(known(held, {"1": ALL, "2": "ef"}), ALL) == ("", "ef")
    assert decided(known(held, {"1": ALL, "2": "x"}), ALL) == ("", "")


def test_silent_exporters_lose_their_leases_unless_all_were_silent() -> None:
    leases = known(dict.fromkeys("ab", "2"), {"1": ALL}, expired="ab")
    assert decided(leases) == ("ab", "")
    assert decided(leases, take_expired=False) == ("", "")
    # One's own are taken again, or left to others.
    mine = known(dict.fromkeys("ab", "1"), {"1": ALL, "2": ALL})
    assert decided(mine, take_expired=False) == ("a", "b")


def test_an_account_that_cannot_be_reached_is_left_to_others_where_there_are_any() -> None:
    both, alone = {"1": ALL - {"a"}, "2": ALL}, {"1": ALL - {"a"}}
    assert decided(known({"a": "1", "b": "2"}, both), "a", avoided="a") == ("", "a")
    assert decided(known({"a": "1", "b": "2"}, alone), "a", avoided="a") == ("", "")
    assert decided(known({"a": None}, both), avoided="a") == ("", "")
    assert decided(known({"a": None}, alone), avoided="a") == ("a", "")


async def test_leases_are_renewed_at_once_after_a_reload_during_a_renewal() -> None:
    renewed = list[tuple[frozenset[str], float]]()

    async def execute(_thread: object, _run: object, statements: object, *args: Any) -> Leases:
        if statements is renew_leases:
            renewed.append((args[2], args[4]))
            holder.configure("ab", 20.0)
        return Leases({}, {})

    async def nothing(*_: object, **__: object) -> None:
        return None

    store, database = SimpleNamespace(exporter="1"), SimpleNamespace(run=None)
    ledger: Any = SimpleNamespace(store=store, database=database, call_in=execute, errors=0)
    calls: Any = SimpleNamespace(sync_with_peers=nothing)
    tasks = list[asyncio.Task[None]]()

    def spawn(work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        tasks.append(asyncio.create_task(work))
        return tasks[-1]

    holder = LeaseHolder(ledger, calls, {}, nothing, lambda _: None, spawn)
    holder.configure("a", 1e6)
    await holder.start()
    try:
        await until(lambda: len(renewed) == 2)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert renewed == [(frozenset("a"), 1e6), (frozenset("ab"), 20.0)]
