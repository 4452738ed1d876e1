from __future__ import annotations

import asyncio
import gzip
import io
import json
import threading
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
import pytest_asyncio
from yarl import URL

from exporter.calls import ReferenceId
from exporter.config import (
    AccountConfig,
    ApiConfig,
    Config,
    LedgerConfig,
    PollingConfig,
    TokenConfig,
    WatchConfig,
)
from exporter.config.models import MAX_TOKENS
from exporter.errors import LedgerError
from exporter.ledger.records import NewCall
from exporter.ledger.store import Store
from exporter.secret import Secret
from exporter.service import Service
from exporter.simulator import Account, Plan, Simulator
from exporter.sources import api as source
from exporter.web import bodies, reading
from exporter.web.listening import ListenAddress
from exporter.web.problems import ProblemError
from exporter.web.server import WebOptions, WebServer
from tests.waiting import until

TOKENS = (
    TokenConfig(name="all", token=Secret("token-all")),
    TokenConfig(name="b", token=Secret("token-b"), accounts=("b",)),
)


class Bench:
    """A service behind its HTTP server, and a client."""

    def __init__(self, folder: Path, simulator: Simulator, http: aiohttp.ClientSession) -> None:
        self.http = http
        self.simulator = simulator
        self.config = Config(
            accounts=tuple(
                AccountConfig(
                    name=name,
                    api_key=Secret(f"key-{name}"),
                    secret_key=Secret("s"),
                    base_url=simulator.url,
                )
                for name in ("main", "b")
            ),
            polling=PollingConfig(interval=0.1, max_interval=0.1),
            watch=WatchConfig(labels=("campaign",), api=ApiConfig(tokens=TOKENS)),
            ledger=LedgerConfig(url=f"sqlite:///{folder / 'ledger.db'}"),
            shutdown_timeout=1,
        )
        self.service = Service(lambda: self.config)
        self.url = ""

    async def ask(
        self, method: str, path: str, body: object = None, token: str | None = "all", **more: Any
    ) -> tuple[int, Any]:
        if token:
            more.setdefault("headers", {})["Authorization"] = f"Bearer token-{token}"
        if body is not None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            more["data"] = io.BytesIO(data)
        url = URL(f"{self.url}/api/v1{path}", encoded=True)
        async with self.http.request(method, url, **more) as answer:
            text = await answer.text()
            if answer.status >= 400:
                assert answer.content_type == "application/problem+json"
            return answer.status, json.loads(text) if text else None

    async def status(self, method: str, path: str, *authorization: str) -> int:
        """Return the status of a request with headers that no client would send."""
        headers = "".join(f"Authorization: {value}\r\n" for value in authorization)
        head = f"{method} /api/v1{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", URL(self.url).port)
        writer.write(head.encode(errors="surrogateescape"))
        answer = await reader.read()
        writer.close()
        return int(answer.split()[1])

    async def watch(self, *names: str, account: str = "main", **labels: str) -> tuple[int, Any]:
        calls = [{"reference_id": n, "account": account, "labels": labels} for n in names]
        return await self.ask("POST", "/calls", {"calls": calls})

    def configure(self, **watch: object) -> None:
        changed = self.config.watch.model_copy(update=watch)
        self.config = self.config.model_copy(update={"watch": changed})


@pytest_asyncio.fixture
async def simulator() -> AsyncIterator[Simulator]:
    accounts = [Account("main", "key-main", "s"), Account("b", "key-b", "s")]
    async with Simulator(accounts=accounts) as simulator:
        yield simulator


@pytest_asyncio.fixture
async def bench(tmp_path: Path, simulator: Simulator) -> AsyncIterator[Bench]:
    async with aiohttp.ClientSession() as http:
        bench = Bench(tmp_path, simulator, http)
        server = WebServer(bench.service, WebOptions([ListenAddress("127.0.0.1", 0)]))
        await bench.service.open()
        (bench.url,) = await server.start()
        assert (await bench.ask("GET", "/status"))[0] == 503  # not yet
        await bench.service.start()
        yield bench
        await bench.service.stop()
        await server.stop()


async def test_a_call_is_handed_over_once_and_followed(bench: Bench, simulator: Simulator) -> None:
    simulator.add_call("main", "a", Plan(queued=0.3))
    assert await bench.watch("a", "B", campaign="otp") == (202, {"added": 2, "known": 0})
    # Idempotent, whatever the case and the labels.
    assert await bench.watch("A", "b", "c", "C ", campaign="x") == (202, {"added": 1, "known": 3})
    await until(lambda: bench.service.calls.count == 2)
    status, call = await bench.ask("GET", "/calls/main/A")
    assert status == 200
    assert call["labels"] == {"campaign": "otp"}
    assert (call["state"], call["result"], call["status"]) == ("finished", "success", "answered")
    assert call["finished_at"] > call["first_watched"]
    assert (call["polls"], call["next_due"]) == (None, None)
    await until(lambda: bench.service.accounts["main"].poller.calls[2].polls > 1)
    status, call = await bench.ask("GET", "/calls/main/b")
    assert (call["reference_id"], call["state"], call["result"]) == ("B", "not_found", None)
    assert call["polls"] > 1
    assert call["last_polled"] > call["first_watched"]
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
    assert await named("account=b&result=success") == ["b0"]
    assert await named("result=failure") == []
    await until(lambda: bench.service.accounts["b"].poller.calls[7].state.value == "not_found")
    assert await named("account=b&state=not_found") == ["b1"]
    # A token of one account sees no other.
    assert await named("", token="b") == ["b0", "b1"]


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


@pytest.mark.parametrize("name", ["{a}", "a/b", "a%2Fb", "a?b#c", "{", "a{x:.*}b", '"<a>"'])
async def test_any_id_has_its_path(bench: Bench, name: str) -> None:
    assert await bench.watch(name) == (202, {"added": 1, "known": 0})
    path = f"/calls/main/{quote(name, safe='')}"
    status, call = await bench.ask("GET", path)
    assert (status, call.get("reference_id")) == (200, name)
    assert await bench.ask("DELETE", path) == (204, None)


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


async def test_there_is_no_api_without_tokens(bench: Bench) -> None:
    bench.configure(api=ApiConfig())
    await bench.service.reload()
    assert (await bench.ask("GET", "/status"))[0] == 404
    assert ("api",) not in bench.service.metrics.source_errors._series


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
    assert bench.service.metrics.source_errors.labels("api").value == 1


def test_the_cost_of_a_body_is_bounded_whatever_it_holds() -> None:
    requests = bodies.requests(("main",), ("campaign",))
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
            reading.read_calls(requests, body)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < 2 * len(body)


def test_as_much_as_calls_can_have_is_read() -> None:
    labels = tuple(f"label_{number}" for number in range(5))
    requests = bodies.requests(("main", "b"), labels)
    calls = [
        {"reference_id": f"{n} ", "account": "b", "labels": dict.fromkeys(labels, '{",[\\"')}
        for n in range(bodies.MAX_CALLS)
    ]
    found = reading.read_calls(requests, json.dumps({"calls": calls}, indent=2).encode() + b"\n")
    assert found == [
        NewCall("b", ReferenceId(str(n)), call["labels"])  # type: ignore[arg-type]
        for n, call in enumerate(calls)
    ]


def test_models_are_made_once_for_each_scope() -> None:
    assert (bodies.requests.cache_info().maxsize or 0) >= MAX_TOKENS


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


async def test_limits(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.configure(max_calls=3)
    await bench.service.reload()
    assert await bench.watch("a", "b") == (202, {"added": 2, "known": 0})
    status, problem = await bench.watch("b", "c", "d")
    assert (status, problem["detail"]) == (429, "`watch.max_calls` is reached")
    # All of a request or nothing; what is known needs no room.
    assert await bench.watch("a", "b") == (202, {"added": 0, "known": 2})
    assert await bench.watch("c") == (202, {"added": 1, "known": 0})
    monkeypatch.setattr(reading, "MAX_BODY", 1000)
    assert (await bench.watch("x" * 999))[0] == 413
    # Waiting has an end, too.
    monkeypatch.setattr(source, "MAX_WAITING", 5)
    answers = await asyncio.gather(*(bench.watch("a", "b") for _ in range(50)))
    assert {status for status, _ in answers} == {202, 429}


async def test_many_requests_share_commits(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = []
    push = Store.push

    def counted(self: Store, requests: Any, *more: Any) -> Any:
        groups.append(len(requests))
        return push(self, requests, *more)

    monkeypatch.setattr(Store, "push", counted)
    answers = await asyncio.gather(*(bench.watch(f"c{n}", "same") for n in range(200)))
    assert sum(body["added"] for _, body in answers) == 201
    assert sum(body["known"] for _, body in answers) == 199
    assert sum(groups) == 200
    assert len(groups) < 150
    assert bench.service.calls.count == 201


async def test_a_ledger_that_fails(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise LedgerError("ledger: the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "push", fail)
        patch.setattr(Store, "page", fail)
        status, problem = await bench.watch("a")
        assert (status, problem["detail"]) == (503, "ledger: the disk is full")
        assert (await bench.ask("GET", "/calls"))[0] == 503
    assert await bench.watch("a") == (202, {"added": 1, "known": 0})


async def test_bodies_that_are_compressed(bench: Bench) -> None:
    body = gzip.compress(b'{"calls": [{"reference_id": "a", "account": "b"}]}')
    headers = {"Content-Encoding": "gzip"}
    status, _ = await bench.ask("POST", "/calls", body, headers=dict(headers))
    assert status == 202
    status, problem = await bench.ask("POST", "/calls", b"nothing", headers=dict(headers))
    assert (status, problem["detail"][:23]) == (400, "the body cannot be read")
    # A bomb: as much as is taken is read of it.
    bomb = gzip.compress(b" " * (reading.MAX_BODY + 1))
    assert (await bench.ask("POST", "/calls", bomb, headers=dict(headers)))[0] == 413


async def test_calls_that_come_while_it_stops_are_not_accepted(bench: Bench) -> None:
    await bench.service.stop()
    assert (await bench.watch("late"))[0] == 503


async def test_the_status(bench: Bench, simulator: Simulator) -> None:
    await bench.watch("a")
    await until(lambda: bench.service.accounts["main"].poller.calls[1].polls > 0)
    _, status = await bench.ask("GET", "/status")
    assert (status["ready"], status["problems"], status["watched"]) == (True, [], 1)
    main, other = status["accounts"]
    assert main["authorized"] is True
    assert sum(main["watched"].values()) == 1
    assert (other["authorized"], other["paused"], other["paused_until"]) == (None, None, None)


async def test_a_large_request(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{n:036}" for n in range(10_000)]
    threads = []
    read = reading.read_calls

    def traced(requests: bodies.Requests, body: bytes) -> list[NewCall]:
        threads.append(threading.current_thread())
        return read(requests, body)

    monkeypatch.setattr(reading, "read_calls", traced)
    assert await bench.watch(*names, campaign="otp") == (202, {"added": 10_000, "known": 0})
    assert await bench.watch(*names) == (202, {"added": 0, "known": 10_000})
    assert bench.service.calls.count == 10_000
    # The event loop is free meanwhile.
    assert threading.main_thread() not in threads
    assert len(threads) == 2
