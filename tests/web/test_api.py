"""The HTTP API: calls that are pushed, listed and deleted; tokens; requests with problems."""

from __future__ import annotations

import asyncio
import json
import re
import time
import tracemalloc
from datetime import datetime
from urllib.parse import quote

import pytest
from aiohttp import web
from pydantic_core import to_json

from exporter.calls import CallState
from exporter.config import ApiConfig, NotifyConfig
from exporter.ids import Kind, ReferenceId
from exporter.ledger.schema import given_up_notifications
from exporter.ledger.types import FinishedCall, NewCall
from exporter.secrets import Secret
from exporter.simulator import Plan
from exporter.web.api import MAX_LISTINGS, parse_calls
from exporter.web.schemas import MAX_CALLS, ProblemError, Scope
from tests.notify.receiver import SECRET, Receiver
from tests.waiting import deadline, until
from tests.web.bench import Bench


async def raw_status(
    bench: Bench, method: str, path: str, authorization: str = "Bearer token-all", body: str = ""
) -> int:
    """Return the status of a request with what no client would send."""
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Authorization: {authorization}\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    )
    stream = await bench.connect(head.encode(errors="surrogateescape"))
    return int((await stream.ends()).split()[1])


async def test_a_call_is_handed_over_once_and_followed(bench: Bench) -> None:
    bench.simulator.add_call("main", "a", Plan(queued=0.3))
    assert await bench.push("a", "B", campaign="otp") == (202, {"added": 2, "known": 0})
    # Idempotent, whatever the case and the labels.
    assert await bench.push("A", "b", "c", "C ", campaign="x") == (202, {"added": 1, "known": 3})
    await until(lambda: bench.app.calls.count == 2)
    status, call = await bench.ask("GET", "/calls/main/A")
    assert status == 200
    assert call["labels"] == {"campaign": "otp"}
    assert (call["state"], call["result"], call["status"]) == ("finished", "success", "answered")
    assert call["finished_at"] > call["first_watched"]
    assert (call["polls"], call["last_polled"], call["next_due"]) == (None, None, None)
    await until(lambda: bench.app.accounts["main"].poller.calls[2].polls > 1)
    status, call = await bench.ask("GET", "/calls/main/b")
    assert (call["reference_id"], call["state"], call["result"]) == ("B", "not_found", None)
    assert call["polls"] > 1
    polled = datetime.fromisoformat(call["last_polled"])
    assert (polled.microsecond, abs(polled.timestamp() - time.time()) < 60) == (0, True)
    # What has finished is not watched again.
    assert await bench.push("a") == (202, {"added": 0, "known": 1})
    assert bench.app.calls.count == 2


async def test_pages(bench: Bench) -> None:
    bench.simulator.add_call("b", "b0", Plan())
    await bench.push(*(f"a{n}" for n in range(5)))
    await bench.push("b0", "b1", account="b")
    await until(lambda: bench.app.calls.count == 6)
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
    await until(lambda: bench.app.accounts["b"].poller.calls[7].state.value == "not_found")
    assert await named("account=b&state=not_found") == ["b1"]
    # A token of one account sees no other.
    assert await named("", token="b") == ["b0", "b1"]


async def test_listings_do_not_wait_for_the_ledger_and_it_does_not_wait_for_them(
    bench: Bench,
) -> None:
    await bench.push("a")
    async with bench.ledger_held():
        status, listed = await bench.ask("GET", "/calls")
        assert (status, [call["reference_id"] for call in listed["calls"]]) == (200, ["a"])
    async with bench.listings_held():
        listing = asyncio.create_task(bench.ask("GET", "/calls"))
        assert await bench.push("b") == (202, {"added": 1, "known": 0})
        assert (await bench.ask("GET", "/calls/main/b"))[0] == 200
        assert not listing.done()
    assert (await listing)[0] == 200


async def test_a_token_has_few_listings_at_a_time(bench: Bench) -> None:
    await bench.push("a", account="b")
    async with bench.listings_held():
        listings = [asyncio.create_task(bench.ask("GET", "/calls")) for _ in range(20)]
        await until(lambda: sum(listing.done() for listing in listings) == 20 - MAX_LISTINGS)
        refused = [listing.result() for listing in listings if listing.done()]
        assert {status for status, _ in refused} == {503}
        # Those of clients that are gone count, until they are done; other tokens have their own.
        for listing in listings:
            listing.cancel()
        await asyncio.wait(listings)
        async with bench.http.get(
            f"{bench.url}/api/v1/calls", headers={"Authorization": "Bearer token-all"}
        ) as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        other = asyncio.create_task(bench.ask("GET", "/calls", token="b"))
        assert (await bench.ask("GET", "/status"))[0] == 200
    assert (await other)[0] == 200
    assert (await bench.ask("GET", "/calls"))[0] == 200


async def test_a_call_that_is_deleted_is_not_counted(bench: Bench) -> None:
    bench.simulator.add_call("main", "done", Plan())
    await bench.push("a", "done")
    await until(lambda: bench.app.calls.count == 1)
    assert await bench.ask("DELETE", "/calls/main/A") == (204, None)
    assert bench.app.calls.count == 0
    assert (await bench.ask("DELETE", "/calls/main/A"))[0] == 404
    assert (await bench.ask("GET", "/calls/main/A"))[0] == 404
    assert (await bench.ask("DELETE", "/calls/main/done"))[0] == 409
    # Not for ever: it may be handed over again.
    assert await bench.push("a") == (202, {"added": 1, "known": 0})


async def test_of_two_that_delete_a_call_one_is_told_that_it_is_gone(bench: Bench) -> None:
    await bench.push("a")
    # Both are to find it before either deletes it.
    busy = asyncio.create_task(bench.app.ledger.call(time.sleep, 0.5))
    answers = await asyncio.gather(*(bench.ask("DELETE", "/calls/main/a") for _ in range(2)))
    await busy
    assert sorted(status for status, _ in answers) == [204, 404]


async def test_a_token_of_one_account(bench: Bench) -> None:
    body = {"calls": [{"reference_id": "x"}]}
    # Its only account may be left out.
    assert await bench.ask("POST", "/calls", body, token="b") == (202, {"added": 1, "known": 0})
    assert (await bench.ask("GET", "/calls/b/x", token="b"))[0] == 200
    await bench.push("secret")
    assert (await bench.ask("GET", "/calls/main/secret", token="b"))[0] == 404
    assert (await bench.ask("DELETE", "/calls/main/secret", token="b"))[0] == 404
    assert (await bench.ask("GET", "/calls?account=main", token="b"))[0] == 400
    body = {"calls": [{"reference_id": "y", "account": "main"}]}
    assert (await bench.ask("POST", "/calls", body, token="b"))[0] == 400
    _, status = await bench.ask("GET", "/status", token="b")
    assert [account["name"] for account in status["accounts"]] == ["b"]
    _, document = await bench.ask("GET", "/openapi.json", token="b")
    assert "main" not in json.dumps(document["paths"])


async def test_limits_and_a_ledger_that_fails(bench: Bench) -> None:
    async with bench.ledger_failing("calls"):
        status, problem = await bench.push("a")
        assert (status, problem["detail"].startswith("ledger: ")) == (503, True)
    await bench.configure(max_calls=3)
    assert await bench.push("a", "b") == (202, {"added": 2, "known": 0})
    status, problem = await bench.push("b", "c", "d")
    full = "account main: `watch.max_calls` is reached"
    assert (status, problem["detail"]) == (429, full)
    # What comes while it stops is not accepted.
    await bench.app.stop()
    assert (await bench.push("late"))[0] == 503


async def test_the_status(bench: Bench) -> None:
    await bench.push("a")
    await until(lambda: bench.app.accounts["main"].poller.calls[1].last_polled > 0)
    _, status = await bench.ask("GET", "/status")
    assert (status["ready"], status["problems"], status["watched"]) == (True, [], 1)
    main, other = status["accounts"]
    assert main["authorized"] is True
    assert sum(main["watched"].values()) == 1
    assert (other["authorized"], other["paused"], other["paused_until"]) == (None, None, None)
    assert main["messages"] == other["messages"] == {}
    bench.simulator.add_call("main", "otp", Plan(receivers=2, queued=1e9))
    message = {"reference_id": "otp", "account": "main", "kind": "message"}
    await bench.ask("POST", "/calls", {"calls": [message]})
    stats = bench.app.accounts["main"].stats
    await until(lambda: stats.open[Kind.MESSAGE][CallState.QUEUED] == 1)
    _, status = await bench.ask("GET", "/status")
    main, other = status["accounts"]
    assert (status["watched"], sum(main["watched"].values())) == (2, 1)
    assert main["messages"] == {**{state.value: 0 for state in CallState}, "queued": 1}
    assert other["messages"] == {}


async def test_notifications_by_hand(bench: Bench) -> None:
    async with Receiver() as receiver:
        target = NotifyConfig(name="crm", url=Secret(receiver.url), secret=Secret(SECRET))
        bench.config = bench.config.model_copy(update={"notify": (target,)})
        await bench.app.reload()
        call = FinishedCall("", "", "success", "busy", None, None, {}, 1.0, 5.0)
        rows = [
            {
                "id": row,
                "target": target,
                "account": account,
                "call": to_json(
                    call._replace(account=account, reference_id=name)._asdict()
                ).decode(),
                "attempts": row,
                "answer": "gone: the response has the status 410",
                "gave_up_at": 1_800_000_000.0,
            }
            for row, (target, account, name) in enumerate(
                [("crm", "main", "a"), ("crm", "b", "c"), ("removed", "main", "d")], 1
            )
        ]
        add = given_up_notifications.insert()
        await bench.app.ledger.execute(lambda connection: connection.execute(add, rows))

        async def ids(query: str = "", token: str = "all") -> list[int]:
            found, after = [], "0"
            while after:
                path = f"/notifications?limit=2&after={after}{query}"
                status, page = await bench.ask("GET", path, token=token)
                assert status == 200
                found += [one["id"] for one in page["notifications"]]
                after = page["next"]
            return found

        _, page = await bench.ask("GET", "/notifications?limit=1")
        assert page == {
            "notifications": [
                {
                    "id": 1,
                    "target": "crm",
                    "account": "main",
                    "reference_id": "a",
                    "state": "given_up",
                    "attempts": 1,
                    "last_answer": "gone: the response has the status 410",
                    "next_due": None,
                    "give_up_at": "2027-01-15T08:00:00Z",
                }
            ],
            "next": "1",
        }
        assert await ids() == [1, 2, 3]
        assert await ids("&target=crm&account=main") == [1]
        assert await ids("&state=pending") == []
        assert await ids(token="b") == [2]
        for query in ("state=x", "account=nobody", "limit=0", "target=a%00b", "after=x", "more=1"):
            assert (await bench.ask("GET", f"/notifications?{query}"))[0] == 400
        # A token changes nothing of accounts that it does not cover.
        for row, status, token in (
            (1, 404, "b"),
            (3, 409, "all"),
            (99, 404, "all"),
            ("x", 404, "all"),
        ):
            path = f"/notifications/{row}"
            assert (await bench.ask("POST", f"{path}/retry", token=token))[0] == status
            if status == 404:
                assert (await bench.ask("DELETE", path, token=token))[0] == 404
        _, problem = await bench.ask("POST", "/notifications/3/retry")
        assert problem["detail"] == "the target is not configured"
        assert await bench.ask("POST", "/notifications/1/retry") == (204, None)
        await until(lambda: receiver.calls == ["a"])
        async with deadline():
            while await ids() != [2, 3]:  # noqa: ASYNC110 - the answer is committed later
                await asyncio.sleep(0.05)
        assert await bench.ask("DELETE", "/notifications/3") == (204, None)
        assert await bench.ask("DELETE", "/notifications/2", token="b") == (204, None)
        assert await ids() == []
        # One that is being sent stays.
        hanging = asyncio.Event()

        async def hang(request: web.Request) -> web.StreamResponse:
            await hanging.wait()
            return web.Response(status=204)

        receiver.answer = hang
        bench.simulator.add_call("main", "e", Plan())
        await bench.push("e")
        await until(lambda: receiver.calls == ["a", "e"])
        (row,) = await ids("&state=pending")
        for method, path in (
            ("POST", f"/notifications/{row}/retry"),
            ("DELETE", f"/notifications/{row}"),
        ):
            status, problem = await bench.ask(method, path)
            assert (status, problem["detail"]) == (409, "the notification is being sent now")
        hanging.set()


# Requests.


async def test_tokens(bench: Bench) -> None:
    known = ("Bearer token-all", "bearer  token-all ", "BEARER token-b")
    unknown = (
        "", "Bearer", "Bearer ", "Bearer  ", "token-all", "Basic token-all", "Bearer token-ALL",
        "Bearer token-allx", "Bearer token-", "Bearer token-all token-all", "Bearer \udcff",
        "Bearer token-all\r\nAuthorization: x y",
    )  # fmt: skip
    for shown in known + unknown:
        for method, path in (("GET", "/calls"), ("POST", "/calls"), ("GET", "/openapi.json")):
            expected = (400 if method == "POST" else 200) if shown in known else 401
            found = await raw_status(bench, method, f"/api/v1{path}", shown)
            assert found == expected, (shown, method, path)


async def test_any_id_has_its_path(bench: Bench) -> None:
    for name in ("a/b", "a%2Fb", "a?b#c", "a..", "a\\b^~"):
        assert await bench.push(name) == (202, {"added": 1, "known": 0})
        path = f"/calls/main/{quote(name, safe='')}"
        status, call = await bench.ask("GET", path)
        assert (status, call.get("reference_id")) == (200, name)
        assert await bench.ask("DELETE", path) == (204, None)


B = {"reference_id": "a", "account": "b"}
PROBLEMS: list[tuple[object, int, str]] = [
    (b"", 400, "the body is not JSON"),
    (b"{", 400, "the body is not JSON"),
    (b"\xff", 400, "the body is not JSON"),
    ([], 400, "expected an object"),
    ({}, 400, "/calls: missing required key"),
    ({"calls": {}}, 400, "/calls: expected a list"),
    ({"calls": [1]}, 400, "/calls/0: expected an object"),
    ({"calls": [B], "x": 1}, 400, "/x: unknown key"),
    ({"calls": [{"reference_id": "a"}]}, 400, "/calls/0/account: missing required key"),
    ({"calls": [{**B, "reference_id": 5}]}, 400, "/calls/0/reference_id: expected text"),
    ({"calls": [{**B, "reference_id": ""}]}, 400, "/calls/0/reference_id: expected an id"),
    ({"calls": [{**B, "reference_id": "x" * 129}]}, 400, "/calls/0/reference_id: expected an"),
    ({"calls": [{**B, "reference_id": '="a"'}]}, 400, "the text looks like a formula"),
    (
        {"calls": [{**B, "labels": {"a/~b": "x"}}]},
        400,
        "/calls/0/labels/a~1~0b: expected one of the names in `watch.labels`",
    ),
    (
        {"calls": [{**B, "labels": {"campaign": "a\nb"}}]},
        400,
        "/calls/0/labels/campaign: expected text without control characters",
    ),
    ({"calls": [B, B] + [{"account": "b"}] * 99}, 400, "99 problems in the request; no call was"),
    ({"calls": [B] + [{"a": 1, "b": 2}] * 9_999}, 400, "39996 problems in the request"),
    ({"calls": [B], **{f"{n}": 1 for n in range(60_000)}}, 400, "60000 problems in the request"),
    ({"calls": [B] * 10_001}, 413, "at most 10000 items"),
]


async def test_a_request_with_a_problem_changes_nothing(bench: Bench) -> None:
    for body, status, expected in PROBLEMS:
        got, problem = await bench.ask("POST", "/calls", body)
        assert (got, problem["status"]) == (status, status)
        told = "\n".join(f"{e['pointer']}: {e['detail']}" for e in problem.get("errors", ()))
        assert expected in f"{problem['detail']}\n{told}"
        assert len(problem.get("errors", ())) <= 100
    assert (await bench.ask("GET", "/calls"))[1]["calls"] == []
    assert [s.errors for s in bench.app.sources.statuses if s.name == "api"] == [len(PROBLEMS)]


def test_the_cost_of_a_body_is_bounded_whatever_it_holds() -> None:
    scope = Scope(("main",), ("campaign",))
    names = b",".join(b'"%x":""' % number for number in range(1_000_000))
    call = b'{"reference_id":"a","labels":{%b}}' % names
    for body in (
        b'{"calls":[%b]}' % call,
        b'{"calls":[{%b}]}' % names,
        b'{"calls":[%b]}' % b",".join([b"[]"] * 4_000_000),
        b"[" * 10_000_000,
        b'"' * 10_000_000,
        b"{},[ " * 2_000_000,
    ):
        tracemalloc.start()
        with pytest.raises(ProblemError) as caught:
            parse_calls(scope, body)
        text = caught.value.response.text or ""
        assert re.search("expected no more values|the body is not JSON", text)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < 2 * len(body)


def test_as_much_as_calls_can_have_is_read() -> None:
    labels = tuple(f"label_{number}" for number in range(5))
    scope = Scope(("main", "b"), labels)
    calls = [
        {"reference_id": f"{n} ", "account": "b", "labels": dict.fromkeys(labels, '{",[\\"')}
        for n in range(MAX_CALLS)
    ]
    found = parse_calls(scope, json.dumps({"calls": calls}, indent=2).encode() + b"\n")
    assert found == [
        NewCall("b", ReferenceId(str(n)), call["labels"])  # type: ignore[arg-type]
        for n, call in enumerate(calls)
    ]


async def test_parameters_with_a_problem(bench: Bench) -> None:
    for query in (
        "limit=0", "limit=1001", "limit=1e3", "limit=", "limit=1&limit=2", "after=x", "after=-1",
        f"after={'9' * 30}", "state=x", "result=x", "account=nobody", "more=1",
    ):  # fmt: skip
        status, said = await bench.ask("GET", f"/calls?{query}")
        assert status == 400
        for problem in said.get("errors", []):
            assert problem["detail"].startswith(("expected ", "unknown key"))


async def test_what_there_is_not(bench: Bench) -> None:
    assert (await bench.ask("GET", "/nothing"))[0] == 404
    assert (await bench.ask("PUT", "/calls"))[0] == 405
    assert (await bench.ask("GET", "/calls/main"))[0] == 404
    await bench.configure(api=ApiConfig())
    assert (await bench.ask("GET", "/status"))[0] == 404  # no API without tokens
    assert "api" not in [status.name for status in bench.app.sources.statuses]


# As they stand in a path and in JSON.
IDS = {
    "NUL": ("a%00b", "a\\u0000b"),
    "NUL alone": ("%00", "\\u0000"),
    "control": ("a%1Bb", "a\\u001bb"),
    "DEL": ("a%7F", "a\\u007f"),
    "blank": ("a%20b", "a b"),
    "no ASCII": ("%C3%A9", "\\u00e9"),
    "separator": ("a%E2%80%A8b", "a\\u2028b"),
    "surrogate": ("%ED%A0%80", "\\ud800"),
    "no UTF-8": ("\udcff", "\\udcff"),
    "too long": ("a" * 129, "a" * 129),
}


async def test_ids_and_labels_that_no_call_can_have(bench: Bench) -> None:
    await bench.push("there")
    for name, (in_path, in_json) in IDS.items():
        for account in ("main", "nobody", in_path):
            for method in ("GET", "DELETE"):
                got = await raw_status(bench, method, f"/api/v1/calls/{account}/{in_path}")
                assert got == 400, (name, method, account)
        assert await raw_status(bench, "GET", f"/api/v1/calls?account={in_path}") == 400, name
        call = f'{{"account": "main", "reference_id": "{in_json}"}}'
        assert (
            await raw_status(bench, "POST", "/api/v1/calls", body=f'{{"calls": [{call}]}}') == 400
        ), name
        for label in (f'{{"campaign": "{in_json}"}}', f'{{"{in_json}": "x"}}'):
            call = f'{{"account": "main", "reference_id": "a", "labels": {label}}}'
            got = await raw_status(bench, "POST", "/api/v1/calls", body=f'{{"calls": [{call}]}}')
            # A value may hold any text that can be shown.
            allowed = label.startswith('{"campaign"') and name in {"blank", "no ASCII"}
            assert got == (202 if allowed else 400), (name, label)
    assert bench.app.ledger.errors == 0
    assert bench.app.not_ready() == []
    _, page = await bench.ask("GET", "/calls")
    assert [call["reference_id"] for call in page["calls"]] == ["there", "a"]
