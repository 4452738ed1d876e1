from __future__ import annotations

import json
import threading
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import pytest
import pytest_asyncio

from exporter.ids import ReferenceId
from exporter.ledger.records import NewCall
from exporter.web import request_body, schemas
from exporter.web.problems import ProblemError
from tests.web.api_bench import Bench, serving


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with serving(tmp_path) as bench:
        yield bench


@pytest.mark.parametrize("name", ["a/b", "a%2Fb", "a?b#c", "a..", "a\\b^~"])
async def test_any_id_has_its_path(bench: Bench, name: str) -> None:
    assert await bench.watch(name) == (202, {"added": 1, "known": 0})
    path = f"/calls/main/{quote(name, safe='')}"
    status, call = await bench.ask("GET", path)
    assert (status, call.get("reference_id")) == (200, name)
    assert await bench.ask("DELETE", path) == (204, None)


@pytest.mark.parametrize(
    "shown",
    [
        *("Bearer", "Bearer ", "Bearer  ", "token-all", "Basic token-all", "Bearer token-ALL"),
        *("Bearer token-allx", "Bearer token-", "Bearer token-all token-all", "Bearer \udcff"),
    ],
)
async def test_without_a_token_that_is_known(bench: Bench, shown: str) -> None:
    for method, path in (("GET", "/calls"), ("POST", "/calls"), ("GET", "/openapi.json")):
        assert await bench.status(method, path, shown) == 401
    assert await bench.status("GET", "/calls") == 401
    assert await bench.status("GET", "/calls", "Bearer token-all", "Bearer token-all") == 401


@pytest.mark.parametrize("shown", ["Bearer token-all", "bearer  token-all ", "BEARER token-b"])
async def test_with_a_token_that_is_known(bench: Bench, shown: str) -> None:
    assert await bench.status("GET", "/calls", shown) == 200


@pytest.mark.parametrize(
    ("body", "status", "expected"),
    [
        (b"", 400, "the body is not JSON"),
        (b"{", 400, "the body is not JSON"),
        (b"\xff", 400, "the body is not JSON"),
        ([], 400, "expected an object"),
        ({}, 400, "/calls: missing required key"),
        ({"calls": {}}, 400, "/calls: expected a list"),
        ({"calls": [1]}, 400, "/calls/0: expected an object"),
        ({"calls": [{"reference_id": "a", "account": "main"}], "x": 1}, 400, "/x: unknown key"),
        ({"calls": [{"reference_id": "a"}]}, 400, "/calls/0/account: missing required key"),
        ({"calls": [{"reference_id": 5, "account": "b"}]}, 400, "/calls/0/reference_id: expected"),
        ({"calls": [{"reference_id": "", "account": "b"}]}, 400, "/calls/0/reference_id: expected"),
        ({"calls": [{"reference_id": "x" * 129, "account": "b"}]}, 400, "/calls/0/reference_id: "),
        (
            {"calls": [{"reference_id": "a", "account": "b", "labels": {"a/~b": "x"}}]},
            400,
            "/calls/0/labels/a~1~0b: expected one of the names in `watch.labels`",
        ),
        (
            {"calls": [{"reference_id": "a", "account": "b", "labels": {"campaign": "a\nb"}}]},
            400,
            "/calls/0/labels/campaign: expected text of at most 128 characters",
        ),
        (
            {"calls": [{"reference_id": "good", "account": "b"}] * 2 + [{"account": "b"}] * 99},
            400,
            "99 problems in the request; nothing is taken in",
        ),
        (
            {"calls": [{"reference_id": "good", "account": "b"}] * 2 + [{"account": "b"}] * 101},
            400,
            "at least 100 problems in the request; nothing is taken in",
        ),
        (
            {"calls": [{"reference_id": "a", "account": "b"}] + [{"a": 1, "b": 2}] * 9_999},
            400,
            "at least 100 problems in the request; nothing is taken in",
        ),
        # Of a mapping with more keys than anybody means, no key is looked at.
        ({f"k{n}": 1 for n in range(101)}, 400, "expected at most 100 keys"),
        ({"calls": [{f"k{n}": 1 for n in range(101)}]}, 400, "/calls/0: expected at most 100 keys"),
        (
            {
                "calls": [
                    {
                        "reference_id": "a",
                        "account": "b",
                        "labels": {f"k{n}": "" for n in range(101)},
                    }
                ]
            },
            400,
            "/calls/0/labels: expected at most 100 keys",
        ),
        ({"calls": [{"reference_id": "a", "account": "b"}] * 10_001}, 413, "at most 10000 items"),
    ],
)
async def test_a_request_with_a_problem_changes_nothing(
    bench: Bench, body: object, status: int, expected: str
) -> None:
    got, problem = await bench.ask("POST", "/calls", body)
    assert (got, problem["status"]) == (status, status)
    told = "\n".join(f"{e['pointer']}: {e['detail']}" for e in problem.get("errors", ()))
    assert expected in f"{problem['detail']}\n{told}"
    assert len(problem.get("errors", ())) <= 100
    assert (await bench.ask("GET", "/calls"))[1]["calls"] == []
    assert [s.errors for s in bench.service.sources.statuses if s.name == "api"] == [1]


def test_the_cost_of_a_body_is_bounded_whatever_it_holds() -> None:
    requests = schemas.requests(("main",), ("campaign",))
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
        with pytest.raises(ProblemError, match=r"^expected no more values than 10000 calls have$"):
            request_body.read_calls(requests, body)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < 2 * len(body)


def test_as_much_as_calls_can_have_is_read() -> None:
    labels = tuple(f"label_{number}" for number in range(5))
    requests = schemas.requests(("main", "b"), labels)
    calls = [
        {"reference_id": f"{n} ", "account": "b", "labels": dict.fromkeys(labels, '{",[\\"')}
        for n in range(schemas.MAX_CALLS)
    ]
    found = request_body.read_calls(
        requests, json.dumps({"calls": calls}, indent=2).encode() + b"\n"
    )
    assert found == [
        NewCall("b", ReferenceId(str(n)), call["labels"])  # type: ignore[arg-type]
        for n, call in enumerate(calls)
    ]


@pytest.mark.parametrize(
    "query",
    [
        *("limit=0", "limit=1001", "limit=1e3", "limit=", "limit=1&limit=2"),
        *("after=x", "after=-1", f"after={'9' * 30}"),
        *("state=x", "result=x", "account=nobody", "more=1"),
    ],
)
async def test_parameters_with_a_problem(bench: Bench, query: str) -> None:
    assert (await bench.ask("GET", f"/calls?{query}"))[0] == 400


async def test_paths_and_methods_that_there_are_not(bench: Bench) -> None:
    assert (await bench.ask("GET", "/nothing"))[0] == 404
    assert (await bench.ask("PUT", "/calls"))[0] == 405
    assert (await bench.ask("GET", "/calls/main"))[0] == 404


async def test_a_large_request(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{n:036}" for n in range(10_000)]
    threads = []
    read = request_body.read_calls

    def traced(requests: schemas.Requests, body: bytes) -> list[NewCall]:
        threads.append(threading.current_thread())
        return read(requests, body)

    monkeypatch.setattr(request_body, "read_calls", traced)
    assert await bench.watch(*names, campaign="otp") == (202, {"added": 10_000, "known": 0})
    assert await bench.watch(*names) == (202, {"added": 0, "known": 10_000})
    assert bench.service.calls.count == 10_000
    # The event loop is free meanwhile.
    assert threading.main_thread() not in threads
    assert len(threads) == 2
