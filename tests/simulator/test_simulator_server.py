from __future__ import annotations

import asyncio
import gc
import json
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
import pytest_asyncio

from exporter.simulator import Account, AccountState, Fault, FaultKind, Plan, Simulator
from tests.waiting import DEADLINE, deadline, until

ID = "505139D7-54F8-48A9-88FA-9460A78731DD"
KEYS = {"ApiKey": "key", "SecretKey": "secret"}


@pytest_asyncio.fixture
async def sim() -> AsyncIterator[Simulator]:
    async with Simulator(accounts=(Account("main", "key", "secret"),)) as sim:
        sim.add_call("main", ID, Plan())
        yield sim


@pytest_asyncio.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=DEADLINE)
    async with aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session:
        yield session


async def ask(
    http: aiohttp.ClientSession, sim: Simulator, **params: str
) -> tuple[aiohttp.ClientResponse, bytes]:
    query = {**KEYS, "ReferenceId": ID, **params}
    url = f"{sim.url}/GetSendStatus"
    async with http.get(url, params=query, allow_redirects=False) as response:
        return response, await response.read()


async def status(http: aiohttp.ClientSession, sim: Simulator, **params: str) -> Any:
    response, body = await ask(http, sim, **params)
    assert response.status == 200
    return json.loads(body)


@pytest.mark.parametrize("turns", range(5))
async def test_a_connection_that_is_being_accepted_is_closed_with_the_others(turns: int) -> None:
    async with Simulator() as sim:
        with socket.create_connection(("127.0.0.1", urlsplit(sim.url).port or 0)) as client:
            for _ in range(turns):  # of the event loop, in which it is accepted
                await asyncio.sleep(0)
            await sim.stop()
            client.settimeout(DEADLINE)
            assert await asyncio.to_thread(_until_closed, client)
    gc.collect()  # reports a socket that was not closed


def _until_closed(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except ConnectionError:
        return True


HTML = {"Content-Type": "text/html; charset=utf-8"}
JSON = {"Content-Type": "application/json; charset=utf-8"}
PAST = "Wed, 21 Oct 2015 07:28:00 GMT"


@pytest.mark.parametrize(
    ("fault", "status", "body", "headers"),
    [
        (Fault(FaultKind.STATUS), 500, b"<!DOCTYPE", HTML),
        (Fault(FaultKind.STATUS, status=503, retry_after="9"), 503, b"<", {"Retry-After": "9"}),
        (Fault(FaultKind.HTML), 200, b"<!DOCTYPE", HTML),
        (Fault(FaultKind.HTML, body="<p>"), 200, b"<p>", HTML),
        (Fault(FaultKind.EMPTY), 200, b"", JSON | {"Content-Length": "0"}),
        (Fault(FaultKind.TRUNCATED), 200, b'{"CallDuration":13,', JSON),
        (Fault(FaultKind.WRONG_TYPES), 200, b'{"CallDuration":[13],"CallStatus":{"value":', JSON),
        (Fault(FaultKind.NOT_OBJECT), 200, b"[]", JSON),
        (Fault(FaultKind.NOT_OBJECT, body="null"), 200, b"null", JSON),
        (Fault(FaultKind.NAN), 200, b'{"CallDuration":NaN,', JSON),
        (Fault(FaultKind.MISSING_FIELDS), 200, b'{"CodeResponse":"100"}', JSON),
        (Fault(FaultKind.HUGE, size=100_000), 200, b'{"CallDuration":13,', JSON),
        (Fault(FaultKind.TRICKLE, seconds=0.05), 200, b'{"CallDuration":13,', JSON),
        (Fault(FaultKind.LATENCY, seconds=0.05), 200, b'{"CallDuration":13,', JSON),
        (Fault(FaultKind.GZIP_BOMB, size=100_000), 200, b"\x1f", {"Content-Encoding": "gzip"}),
        (Fault(FaultKind.REDIRECT, location="/x"), 302, b"<", {"Location": "/x"}),
        (Fault(FaultKind.REDIRECT, status=307), 307, b"<", {}),
        (Fault(FaultKind.RAW, body="hi", status=418, date=PAST), 418, b"hi", {"Date": PAST}),
        (Fault(FaultKind.RAW), 200, b"", JSON),
    ],
    ids=lambda value: value.kind if isinstance(value, Fault) else "",
)
async def test_faulty_answers(
    sim: Simulator,
    http: aiohttp.ClientSession,
    fault: Fault,
    status: int,
    body: bytes,
    headers: dict[str, str],
) -> None:
    sim.faults.set("it", fault)
    response, received = await ask(http, sim)
    assert response.status == status
    assert received.startswith(body)
    assert headers.items() <= dict(response.headers).items()
    late = fault.kind is FaultKind.LATENCY
    assert sim.traffic.total("main", "100" if late else fault.kind) == 1
    sim.faults.clear("it")
    assert (await ask(http, sim))[0].status == 200


ODDITIES = [
    (Fault(FaultKind.TEXT_NUMBERS), {"CallDuration": "13", "SendStatus": "5", "SentResult": "1"}),
    (Fault(FaultKind.NUMERIC_CODE), {"CodeResponse": 100}),
    (Fault(FaultKind.MOVED_CODE), {"CodeResponse": None, "CodeResult": "100"}),
    (Fault(FaultKind.RESPELLED_ID), {"ReferenceId": f"{ID.lower()} "}),
    (
        Fault(FaultKind.MISSING_FIELDS, fields=("Ivr", "CallStatus")),
        {"Ivr": None, "CallStatus": None},
    ),
]


@pytest.mark.parametrize(
    ("fault", "changes"), ODDITIES, ids=lambda value: getattr(value, "kind", "")
)
async def test_documented_oddities(
    sim: Simulator, http: aiohttp.ClientSession, fault: Fault, changes: dict[str, object]
) -> None:
    usual = await status(http, sim)
    sim.faults.set("it", fault)
    odd = await status(http, sim)
    assert odd == {name: value for name, value in (usual | changes).items() if value is not None}


async def test_a_client_that_goes_away_ends_its_request(
    sim: Simulator, http: aiohttp.ClientSession
) -> None:
    sim.faults.set("it", Fault(FaultKind.HANG, count=1))
    asking = asyncio.create_task(ask(http, sim))
    await until(lambda: sim.traffic.open == 1)
    asking.cancel()
    await until(lambda: sim.traffic.open == 0)
    assert (await status(http, sim))["CodeResponse"] == "100"


@pytest.mark.parametrize(
    "fault",
    [
        Fault(FaultKind.HANG),
        Fault(FaultKind.LATENCY, seconds=1e6),
        Fault(FaultKind.TRICKLE, seconds=1e6),
    ],
    ids=lambda fault: fault.kind,
)
async def test_stopping_does_not_wait(
    http: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture, fault: Fault
) -> None:
    caplog.set_level(logging.WARNING)
    sim = Simulator(accounts=(Account("main", "key", "secret"),))
    await sim.start()
    sim.faults.set("it", fault)
    asking = asyncio.create_task(ask(http, sim))
    await until(lambda: sim.traffic.open == 1)
    async with deadline():
        await sim.stop()
        await sim.stop()
    with pytest.raises(aiohttp.ClientError):
        await asking
    assert not sim.traffic.open
    assert not caplog.records


async def control(
    http: aiohttp.ClientSession, sim: Simulator, method: str, path: str, body: object = None
) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) or body is None else json.dumps(body)
    async with http.request(method, sim.control_url + path, data=data) as answer:
        return answer.status, await answer.json()


async def test_state_holds_no_secret(sim: Simulator, http: aiohttp.ClientSession) -> None:
    sim.faults.set("slow", Fault(FaultKind.LATENCY, seconds=0))
    await ask(http, sim)
    code, state = await control(http, sim, "GET", "/state")
    assert code == 200
    shown = {"name": "main", "tps": None, "state": "ok", "balance": 1e6}
    assert state["accounts"] == {"main": shown}
    assert state["faults"]["slow"]["kind"] == "latency"
    assert state["calls"] == 1
    assert state["requests"] == {"main GetSendStatus 100": 1}


async def test_control_of_faults(sim: Simulator, http: aiohttp.ClientSession) -> None:
    fault = {"kind": "raw", "body": "x", "count": 3}
    assert await control(http, sim, "PUT", "/faults/a%2Fb", fault) == (200, {"fault": "a/b"})
    assert (await control(http, sim, "PUT", "/faults/hang", b""))[0] == 200
    assert sim.faults.active == {
        "a/b": Fault(FaultKind.RAW, body="x", count=3),
        "hang": Fault(FaultKind.HANG),
    }
    assert await control(http, sim, "DELETE", "/faults/a%2Fb") == (200, {"faults": ["hang"]})
    assert await control(http, sim, "DELETE", "/faults") == (200, {"faults": []})


async def test_control_of_accounts(sim: Simulator, http: aiohttp.ClientSession) -> None:
    assert (await control(http, sim, "PUT", "/accounts/main", {"state": "revoked"}))[0] == 200
    main = sim.provider.accounts["main"]
    assert (main.state, main.api_key) == (AccountState.REVOKED, "key")
    new = {"api_key": "k2", "secret_key": "s2", "tps": 3, "name": "ignored"}
    assert (await control(http, sim, "PUT", "/accounts/second", new))[0] == 200
    assert sim.provider.accounts["second"] == Account("second", "k2", "s2", tps=3)
    assert (await control(http, sim, "PUT", "/accounts/third", new))[0] == 400


async def test_control_of_calls(sim: Simulator, http: aiohttp.ClientSession) -> None:
    calls = [
        {"reference_id": "a", "queued": 30, "duration": 7, "ivr": "1"},
        {"reference_id": "b", "account": "main", "rejected": True},
        {"reference_id": "drawn"},
        *({"reference_id": f"id{number}"} for number in range(2_000)),
    ]
    assert await control(http, sim, "POST", "/calls", calls) == (200, {"added": 2_003})
    assert sim.provider.calls["main", "A"].plan == Plan(queued=30, duration=7, ivr="1")
    _, listed = await control(http, sim, "GET", "/calls?account=main")
    assert len(listed) == 2_004
    assert [(call["account"], call["finished"]) for call in listed[1:3]] == [
        ("main", False),
        ("main", True),
    ]
    assert [call["last_answer"]["SendStatus"] for call in listed[:3]] == [5, 5, 4]
    assert await control(http, sim, "GET", "/calls?account=other") == (200, [])


@pytest.mark.parametrize(
    ("method", "path", "body", "error"),
    [
        ("PUT", "/faults/x", b"{", "Invalid JSON"),
        ("PUT", "/faults/x", b"\xff", "Invalid JSON"),
        ("PUT", "/faults/x", b"[" * 100_000, "Invalid JSON"),
        ("PUT", "/faults/x", {}, "kind: Input should be 'latency', 'hang'"),
        ("PUT", "/faults/x", {"kind": "hang", "count": 0}, "count: Input should be greater"),
        ("PUT", "/faults/x", {"kind": "raw", "location": "/a\r\nX: y"}, "location: String"),
        ("PUT", "/faults/x", {"kind": "huge", "size": 1 << 31}, "size: Input should be less"),
        ("PUT", "/faults/x", {"kind": "hang", "probability": 1.1}, "probability: Input"),
        ("PUT", "/faults/hang", {"colour": 1}, "colour: Unexpected"),
        ("PUT", "/accounts/main", {"state": "gone"}, "state: Input should be 'ok'"),
        ("PUT", "/accounts/main", [], "Input should be an object"),
        ("PUT", "/accounts/new", {}, "api_key: Field required; secret_key: Field required"),
        ("POST", "/calls", {}, "Input should be a valid array"),
        ("POST", "/calls", [{"reference_id": "a"}, 1], "1: Input should be an object"),
        ("POST", "/calls", [{"reference_id": " "}], "reference_id: expected"),
        ("POST", "/calls", [{"account": "x", "reference_id": "a"}], "account: expected one of"),
        ("POST", "/calls", [{"reference_id": "a", "queued": -1}], "queued: Input should be"),
    ],
)
async def test_input_that_control_refuses(
    sim: Simulator, http: aiohttp.ClientSession, method: str, path: str, body: Any, error: str
) -> None:
    code, answer = await control(http, sim, method, path, body)
    assert code == 400
    assert answer["error"].startswith(error)
    assert len(sim.provider.calls) == 1
    assert not sim.faults.active
