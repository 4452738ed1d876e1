from __future__ import annotations

import asyncio
import gc
import json
import time
import typing
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from pathlib import Path

import pytest
import pytest_asyncio
from pydantic import BaseModel

from exporter.config import (
    ApiConfig,
)
from exporter.errors import LedgerError
from exporter.ledger.store import Store
from exporter.simulator import Plan
from exporter.web import request_body, schemas
from exporter.web.api import MAX_LISTINGS
from tests.waiting import until
from tests.web.api_bench import Bench, serving


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with serving(tmp_path) as bench:
        yield bench


async def test_a_call_is_handed_over_once_and_followed(bench: Bench) -> None:
    bench.simulator.add_call("main", "a", Plan(queued=0.3))
    assert await bench.watch("a", "B", campaign="otp") == (202, {"added": 2, "known": 0})
    # Idempotent, whatever the case and the labels.
    assert await bench.watch("A", "b", "c", "C ", campaign="x") == (202, {"added": 1, "known": 3})
    await until(lambda: bench.service.calls.count == 2)
    status, call = await bench.ask("GET", "/calls/main/A")
    assert status == 200
    assert call["labels"] == {"campaign": "otp"}
    assert (call["state"], call["result"], call["status"]) == ("finished", "success", "answered")
    assert call["finished_at"] > call["first_watched"]
    assert (call["polls"], call["last_polled"], call["next_due"]) == (None, None, None)
    await until(lambda: bench.service.accounts["main"].poller.calls[2].polls > 1)
    status, call = await bench.ask("GET", "/calls/main/b")
    assert (call["reference_id"], call["state"], call["result"]) == ("B", "not_found", None)
    assert call["polls"] > 1
    polled = datetime.fromisoformat(call["last_polled"])
    assert (polled.microsecond, abs(polled.timestamp() - time.time()) < 60) == (0, True)
    # What has finished is not watched again.
    assert await bench.watch("a") == (202, {"added": 0, "known": 1})
    assert bench.service.calls.count == 2


async def test_pages(bench: Bench) -> None:
    bench.simulator.add_call("b", "b0", Plan())
    await bench.watch(*(f"a{n}" for n in range(5)))
    await bench.watch("b0", "b1", account="b")
    await until(lambda: bench.service.calls.count == 6)
    found: list[str] = []
    after = "0"
    while after:
        _, page = await bench.ask("GET", f"/calls?limit=3&after={after}")
        found += [call["reference_id"] for call in page["calls"]]
        after = page["next"]
    assert found == ["a0", "a1", "a2", "a3", "a4", "b0", "b1"]

    async def named(query: str, token: str = "all") -> list[str]:
        _, page = await bench.ask("GET", f"/calls?{query}", token=token)
        return [call["reference_id"] for call in page["calls"]]

    assert await named("account=b") == ["b0", "b1"]
    assert await named("state=finished") == ["b0"]
    assert await named("state=watched") == ["a0", "a1", "a2", "a3", "a4", "b1"]
    assert await named("account=b&result=success") == ["b0"]
    assert await named("result=failure") == []
    await until(lambda: bench.service.accounts["b"].poller.calls[7].state.value == "not_found")
    assert await named("account=b&state=not_found") == ["b1"]
    # A token of one account sees no other.
    assert await named("", token="b") == ["b0", "b1"]


async def test_listings_do_not_wait_for_the_ledger_and_it_does_not_wait_for_them(
    bench: Bench,
) -> None:
    await bench.watch("a")
    async with bench.ledger_held():
        status, listed = await bench.ask("GET", "/calls")
        assert (status, [call["reference_id"] for call in listed["calls"]]) == (200, ["a"])
    async with bench.listings_held():
        listing = asyncio.create_task(bench.ask("GET", "/calls"))
        assert await bench.watch("b") == (202, {"added": 1, "known": 0})
        assert (await bench.ask("GET", "/calls/main/b"))[0] == 200
        assert not listing.done()
    assert (await listing)[0] == 200


async def test_a_token_has_few_listings_at_a_time(bench: Bench) -> None:
    await bench.watch("a", account="b")
    async with bench.listings_held():
        listings = [asyncio.create_task(bench.ask("GET", "/calls")) for _ in range(20)]
        await until(lambda: sum(listing.done() for listing in listings) == 20 - MAX_LISTINGS)
        refused = [listing.result() for listing in listings if listing.done()]
        assert {status for status, _ in refused} == {429}
        # Those of clients that are gone count, until they are done; other tokens have their own.
        for listing in listings:
            listing.cancel()
        await asyncio.wait(listings)
        async with bench.http.get(
            f"{bench.url}/api/v1/calls", headers={"Authorization": "Bearer token-all"}
        ) as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (429, "1")
        other = asyncio.create_task(bench.ask("GET", "/calls", token="b"))
        assert (await bench.ask("GET", "/status"))[0] == 200
    assert (await other)[0] == 200
    assert (await bench.ask("GET", "/calls"))[0] == 200


async def test_a_call_that_is_deleted_is_not_counted(bench: Bench) -> None:
    bench.simulator.add_call("main", "done", Plan())
    await bench.watch("a", "done")
    await until(lambda: bench.service.calls.count == 1)
    assert await bench.ask("DELETE", "/calls/main/A") == (204, None)
    assert bench.service.calls.count == 0
    assert (await bench.ask("DELETE", "/calls/main/A"))[0] == 404
    assert (await bench.ask("GET", "/calls/main/A"))[0] == 404
    assert (await bench.ask("DELETE", "/calls/main/done"))[0] == 409
    # Not for ever: it may be handed over again.
    assert await bench.watch("a") == (202, {"added": 1, "known": 0})


async def test_of_two_that_delete_a_call_one_is_told_that_it_is_gone(bench: Bench) -> None:
    await bench.watch("a")
    # Both are to find it before either deletes it.
    busy = asyncio.create_task(bench.service.ledger.call(time.sleep, 0.5))
    answers = await asyncio.gather(*(bench.ask("DELETE", "/calls/main/a") for _ in range(2)))
    await busy
    assert sorted(status for status, _ in answers) == [204, 404]


async def test_a_token_of_one_account(bench: Bench) -> None:
    body = {"calls": [{"reference_id": "x"}]}
    # Its only account may be left out.
    assert await bench.ask("POST", "/calls", body, token="b") == (202, {"added": 1, "known": 0})
    assert (await bench.ask("GET", "/calls/b/x", token="b"))[0] == 200
    await bench.watch("secret")
    assert (await bench.ask("GET", "/calls/main/secret", token="b"))[0] == 404
    assert (await bench.ask("DELETE", "/calls/main/secret", token="b"))[0] == 404
    assert (await bench.ask("GET", "/calls?account=main", token="b"))[0] == 400
    body = {"calls": [{"reference_id": "y", "account": "main"}]}
    assert (await bench.ask("POST", "/calls", body, token="b"))[0] == 400
    _, status = await bench.ask("GET", "/status", token="b")
    assert [account["name"] for account in status["accounts"]] == ["b"]
    _, document = await bench.ask("GET", "/openapi.json", token="b")
    assert "main" not in json.dumps(document["paths"])


async def test_there_is_no_api_without_tokens(bench: Bench) -> None:
    bench.configure(api=ApiConfig())
    await bench.service.reload()
    assert (await bench.ask("GET", "/status"))[0] == 404
    assert [status.name for status in bench.service.sources.statuses] == ["config"]


async def test_limits(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.configure(max_calls=3)
    await bench.service.reload()
    assert await bench.watch("a", "b") == (202, {"added": 2, "known": 0})
    status, problem = await bench.watch("b", "c", "d")
    full = "account main: `watch.max_calls` is reached"
    assert (status, problem["detail"]) == (429, full)
    # Each account has its own room, and a request over several is whole or nothing.
    assert await bench.watch("a", "b", account="b") == (202, {"added": 2, "known": 0})
    both = [{"reference_id": "e", "account": name} for name in ("b", "main")]
    both.append({"reference_id": "f", "account": "main"})
    status, problem = await bench.ask("POST", "/calls", {"calls": both})
    assert (status, problem["detail"]) == (429, full)
    assert await bench.watch("e", account="b") == (202, {"added": 1, "known": 0})
    # All of a request or nothing; what is known needs no room.
    assert await bench.watch("a", "b") == (202, {"added": 0, "known": 2})
    assert await bench.watch("c") == (202, {"added": 1, "known": 0})
    monkeypatch.setattr(request_body, "MAX_BODY", 1000)
    assert (await bench.watch("x" * 999))[0] == 413


def held() -> Counter[str]:
    """Count the objects of the exporter's own classes, and the models of requests."""
    # Python keeps the last 128 of its own type hints, and with them what they name.
    for clear in typing._cleanups:  # type: ignore[attr-defined]
        clear()
    gc.collect()
    kinds = (type(held) for held in gc.get_objects())
    return Counter(
        kind.__qualname__
        for kind in kinds
        if str(kind.__module__).startswith("exporter.") or kind is type(BaseModel)
    )


async def test_nothing_is_held_of_configurations_that_were_replaced(bench: Bench) -> None:
    both = bench.config.accounts

    async def change(labels: Sequence[str]) -> None:
        for label in labels:
            for accounts in (both[:1], both):
                bench.config = bench.config.model_copy(update={"accounts": accounts})
                bench.configure(labels=(label,))
                await bench.service.reload()
                for token in ("all", "b"):
                    await bench.ask("POST", "/calls", {"calls": []}, token=token)
                    await bench.ask("GET", "/calls", token=token)
                    await bench.ask("GET", "/openapi.json", token=token)

    await change("ab")
    running, before = len(asyncio.all_tasks()), held()
    await change("cdefgh")
    # Requests on the connections of accounts that were replaced end by their own time-out.
    await until(lambda: len(asyncio.all_tasks()) <= running)
    # One for each reload would be twelve.
    assert {kind: count for kind, count in (held() - before).items() if count >= 12} == {}


async def test_models_are_made_once_for_each_scope(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, ...]] = []
    make = schemas.requests

    def counted(accounts: tuple[str, ...], labels: tuple[str, ...]) -> schemas.Requests:
        made.append(accounts)
        return make(accounts, labels)

    monkeypatch.setattr(schemas, "requests", counted)
    for _ in range(3):
        for token in ("all", "b"):
            await bench.ask("POST", "/calls", {"calls": []}, token=token)
        await bench.service.reload()
    assert sorted(made) == [("b",), ("main", "b")]


async def test_a_ledger_that_fails(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise LedgerError("ledger: the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "push", fail)
        status, problem = await bench.watch("a")
        assert (status, problem["detail"]) == (503, "ledger: the disk is full")
    assert await bench.watch("a") == (202, {"added": 1, "known": 0})


async def test_calls_that_come_while_it_stops_are_not_accepted(bench: Bench) -> None:
    await bench.service.stop()
    assert (await bench.watch("late"))[0] == 503


async def test_the_status(bench: Bench) -> None:
    await bench.watch("a")
    await until(lambda: bench.service.accounts["main"].poller.calls[1].last_polled > 0)
    _, status = await bench.ask("GET", "/status")
    assert (status["ready"], status["problems"], status["watched"]) == (True, [], 1)
    main, other = status["accounts"]
    assert main["authorized"] is True
    assert sum(main["watched"].values()) == 1
    assert (other["authorized"], other["paused"], other["paused_until"]) == (None, None, None)
