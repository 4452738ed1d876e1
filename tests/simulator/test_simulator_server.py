from __future__ import annotations

import asyncio
import gzip
import json
import logging
import ssl
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import trustme

from exporter.simulator import Account, Fault, FaultKind, Plan, Simulator
from tests.waiting import deadline, until

ID = "505139D7-54F8-48A9-88FA-9460A78731DD"
KEYS = {"ApiKey": "key", "SecretKey": "secret"}


@pytest_asyncio.fixture
async def sim() -> AsyncIterator[Simulator]:
    async with Simulator(accounts=(Account("main", "key", "secret"),)) as sim:
        sim.add_call("main", ID, Plan())
        yield sim


@pytest_asyncio.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=2)
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


async def test_the_documented_answers(sim: Simulator, http: aiohttp.ClientSession) -> None:
    response, body = await ask(http, sim, ReferenceId=f" {ID.lower()}")
    assert response.headers["Content-Type"] == "application/json; charset=utf-8"
    assert json.loads(body)["ReferenceId"] == ID
    assert response.headers["Set-Cookie"].startswith("ASP.NET_SessionId=")
    assert await status(http, sim, SecretKey="other") == {
        "CodeResult": "101",
        "CountRegenerate": 0,
        "ErrorMessage": "Authorize Failed",
    }
    assert sim.traffic.total("main", "100") == 1
    assert sim.traffic.total("main", "101") == 1


async def test_a_session_gets_one_cookie(sim: Simulator, http: aiohttp.ClientSession) -> None:
    cookie = {"Cookie": "ASP.NET_SessionId=1"}
    url = f"{sim.url}/GetSendStatus"
    async with http.get(url, params=KEYS, headers=cookie) as response:
        assert "Set-Cookie" not in response.headers


async def test_unknown_keys_belong_to_nobody(sim: Simulator, http: aiohttp.ClientSession) -> None:
    assert (await status(http, sim, ApiKey="other"))["CodeResult"] == "101"
    assert sim.traffic.total("-", "101") == 1


async def test_a_call_lives(sim: Simulator, http: aiohttp.ClientSession) -> None:
    sim.add_call("main", "live", Plan(unknown_for=0.1, queued=0.2, ivr="1"))
    assert (await status(http, sim, ReferenceId="live"))["CodeResult"] == "105"
    await asyncio.sleep(0.12)
    assert (await status(http, sim, ReferenceId="live"))["SendStatus"] == 2
    await asyncio.sleep(0.2)
    assert (await status(http, sim, ReferenceId="live"))["Ivr"] == "1"


async def test_placing_a_call(sim: Simulator, http: aiohttp.ClientSession) -> None:
    query = {**KEYS, "TemplateId": "1", "Phone": "0900000001"}
    for operation, missing in (("MakeCallRecord_V2", "106"), ("MakeCallTemplate_V2", "104")):
        async with http.get(f"{sim.url}/{operation}", params=query) as response:
            assert (await response.json())["SMSID"].endswith(" ")
        params = {**query, "TemplateId": "no"}
        async with http.get(f"{sim.url}/{operation}", params=params) as response:
            assert (await response.json())["CodeResult"] == missing


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (json.dumps(KEYS), 200, "100"),
        (json.dumps({**KEYS, "SecretKey": 1}), 200, "101"),
        ("{", 400, None),
        ("[]", 400, None),
    ],
)
async def test_balance(
    sim: Simulator, http: aiohttp.ClientSession, body: str, status: int, code: str | None
) -> None:
    async with http.post(f"{sim.url}/GetBalance_json", data=body) as response:
        assert response.status == status
        answer = await response.read()
    if code is None:
        assert answer.startswith(b"<!DOCTYPE html>")
    else:
        assert json.loads(answer)["CodeResponse"] == code


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/GetSendStatus", 405),
        ("GET", "/GetBalance_json", 405),
        ("GET", "/GetNothing", 404),
    ],
)
async def test_pages_instead_of_answers(
    sim: Simulator, http: aiohttp.ClientSession, method: str, path: str, status: int
) -> None:
    async with http.request(method, sim.url + path) as response:
        assert response.status == status
        assert response.content_type == "text/html"


async def test_the_limit_over_http(sim: Simulator, http: aiohttp.ClientSession) -> None:
    sim.put_account(Account("main", "key", "secret", tps=1, http_429=True, retry_after="3"))
    await ask(http, sim)
    response, _ = await ask(http, sim)
    assert (response.status, response.headers["Retry-After"]) == (429, "3")


@pytest.mark.parametrize(
    ("fault", "status", "body", "headers"),
    [
        (Fault(FaultKind.STATUS), 500, b"<!DOCTYPE", {"Content-Type": "text/html; charset=utf-8"}),
        (Fault(FaultKind.STATUS, status=503, retry_after="9"), 503, b"<", {"Retry-After": "9"}),
        (Fault(FaultKind.HTML), 200, b"<!DOCTYPE", {"Content-Type": "text/html; charset=utf-8"}),
        (Fault(FaultKind.HTML, body="<p>"), 200, b"<p>", {}),
        (Fault(FaultKind.EMPTY), 200, b"", {"Content-Length": "0"}),
        (Fault(FaultKind.TRUNCATED), 200, b'{"CallDuration":13,', {}),
        (Fault(FaultKind.WRONG_TYPES), 200, b'{"CallDuration":[13],"CallStatus":{"value":', {}),
        (Fault(FaultKind.NOT_OBJECT), 200, b"[]", {}),
        (Fault(FaultKind.NOT_OBJECT, body="null"), 200, b"null", {}),
        (Fault(FaultKind.NAN), 200, b'{"CallDuration":NaN,', {}),
        (Fault(FaultKind.HUGE, size=100_000), 200, b'{"CallDuration":13,', {}),
        (Fault(FaultKind.TRICKLE, seconds=0.05), 200, b'{"CallDuration":13,', {}),
        (Fault(FaultKind.LATENCY, seconds=0.05), 200, b'{"CallDuration":13,', {}),
        (Fault(FaultKind.GZIP_BOMB, size=100_000), 200, b"\x1f", {"Content-Encoding": "gzip"}),
        (Fault(FaultKind.REDIRECT, location="/x"), 302, b"", {"Location": "/x"}),
        (Fault(FaultKind.REDIRECT, status=307), 307, b"", {}),
        (
            Fault(FaultKind.RAW, body="hi", status=418, content_type="text/plain"),
            418,
            b"hi",
            {"Content-Type": "text/plain"},
        ),
        (Fault(FaultKind.RAW), 200, b"", {}),
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


async def test_faults_that_are_still_json(sim: Simulator, http: aiohttp.ClientSession) -> None:
    sim.faults.set("it", Fault(FaultKind.HUGE, size=70_000))
    assert len((await status(http, sim))["Padding"]) == 70_000
    sim.faults.set("it", Fault(FaultKind.WRONG_ID))
    assert (await status(http, sim))["ReferenceId"] != ID
    sim.faults.set("it", Fault(FaultKind.GZIP_BOMB, size=100_000))
    _, body = await ask(http, sim)
    assert len(body) < 1000
    assert len(json.loads(gzip.decompress(body))["Padding"]) == 100_000
    sim.faults.set("it", Fault(FaultKind.TRUNCATED))
    with pytest.raises(json.JSONDecodeError):
        await status(http, sim)


async def test_a_reset_is_one(sim: Simulator, http: aiohttp.ClientSession) -> None:
    sim.faults.set("it", Fault(FaultKind.RESET))
    with pytest.raises(aiohttp.ClientOSError) as caught:
        await ask(http, sim)
    assert isinstance(caught.value, ConnectionResetError) or caught.value.errno == 104


async def test_a_client_that_goes_away_ends_its_request(
    sim: Simulator, http: aiohttp.ClientSession
) -> None:
    sim.faults.set("it", Fault(FaultKind.HANG, count=1))
    asking = asyncio.create_task(ask(http, sim))
    await until(lambda: sim.traffic.open == 1)
    asking.cancel()
    await until(lambda: sim.traffic.open == 0)
    assert (await status(http, sim))["CodeResponse"] == "100"
    assert not sim.traffic.overlapping


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


async def test_an_address_in_use(sim: Simulator) -> None:
    port = int(sim.origin.rpartition(":")[2])
    with pytest.raises(OSError, match="in use"):
        await Simulator(port=port).start()


@pytest.mark.parametrize(
    ("host", "reached"),
    [("", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::1", "[::1]"), ("127.0.0.1", "127.0.0.1")],
)
async def test_where_it_listens(http: aiohttp.ClientSession, host: str, reached: str) -> None:
    async with Simulator(host=host) as sim:
        assert sim.origin.startswith(f"http://{reached}:")
        assert not sim.origin.endswith(":0")
        async with http.get(sim.url) as response:
            assert response.status == 404


async def test_https(http: aiohttp.ClientSession) -> None:
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    async with Simulator(ssl_context=server) as sim:
        assert sim.url.startswith("https://")
        async with http.get(f"{sim.url}/GetSendStatus", ssl=client) as response:
            assert (await response.json())["CodeResult"] == "101"
        sim.faults.set("it", Fault(FaultKind.RESET))
        with pytest.raises(aiohttp.ClientError):
            await http.get(f"{sim.url}/GetSendStatus", ssl=client)
