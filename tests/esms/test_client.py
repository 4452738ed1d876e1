"""The client of the provider: what it sends, and what it makes of what comes back."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import pytest
import trustme
from structlog.testing import capture_logs
from yarl import URL

from exporter.canaries.runs import after_placing
from exporter.config import AccountConfig
from exporter.esms.answers import Answer
from exporter.esms.client import CallRequest, EsmsClient
from exporter.esms.codes import OTHER_CODE, Outcome
from exporter.ids import reference_id
from exporter.ledger.canary_runs import CanaryResult
from exporter.secrets import Secret
from exporter.simulator import Account, Fault, FaultKind, Simulator
from tests.peers import peer, response, says, server_tls

API_KEY = "key&with=odd/characters ?#%"
SECRET_KEY = "sécret+key"
ID = reference_id("505139D7-54F8-48A9-88FA-9460A78731DD")
GOOD = json.dumps({"CodeResponse": "100", "ReferenceId": ID, "SendStatus": 5}).encode()
BALANCE = json.dumps({"Balance": 36693, "CodeResponse": "100", "UserID": 9999}).encode()
PHONE = Secret("0912345678")
RECORDING = CallRequest(PHONE, "request-1", recording="1")
TEMPLATE = CallRequest(PHONE, "request-1", template="1", variables=("Trung", "2 & 3"))
KEYS = "ApiKey=key%26with%3Dodd%2Fcharacters%20%3F%23%25&SecretKey=s%C3%A9cret%2Bkey"
WITHHELD = "(withheld: it repeats the request)"


def make(
    port: int,
    timeout: float = 60,
    balance_url: str | None = None,
    proxy: str | None = None,
    **options: Any,  # Any: of `EsmsClient`
) -> EsmsClient:
    scheme = "https" if "tls" in options else "http"
    base = f"{scheme}://127.0.0.1:{port}/MainService.svc/json"
    account = AccountConfig(
        name="main",
        api_key=Secret(API_KEY),
        secret_key=Secret(SECRET_KEY),
        base_url=base,
        balance_url=balance_url or base,
        proxy_url=Secret(proxy) if proxy else None,
    )
    return EsmsClient(account, timeout, **options)


async def all_three(answer: bytes, limit: float = 60) -> tuple[Answer, Answer, Answer]:
    """Return what a poll, a call that is placed and a balance make of an answer."""
    async with peer(says(answer, close=False)) as port, make(port, limit) as client:
        placed = await client.place_call(RECORDING)
        return await client.send_status(ID), placed, await client.balance()


async def test_the_requests() -> None:
    requests: list[bytes] = []
    async with peer(says(response(GOOD), requests=requests)) as port, make(port) as client:
        assert (await client.send_status(ID)).send_status == 5
        await client.send_status(reference_id("a/b?c&d"))
        await client.place_call(TEMPLATE)
        await client.place_call(RECORDING)
    template = "TemplateId=1&VariableListStr=Trung%7C%7C2%20%26%203&RequestId=request-1"
    path = "GET /MainService.svc/json/"
    assert [request.decode().split(" HTTP/1.1\r\n", 1)[0] for request in requests] == [
        f"{path}GetSendStatus?{KEYS}&ReferenceId={ID}",
        f"{path}GetSendStatus?{KEYS}&ReferenceId=a%2Fb%3Fc%26d",
        f"{path}MakeCallTemplate_V2?{KEYS}&Phone=0912345678&{template}",
        f"{path}MakeCallRecord_V2?{KEYS}&Phone=0912345678&TemplateId=1&RequestID=request-1",
    ]
    for request in requests:
        assert b"Accept: application/json\r\n" in request
        assert b"Cookie" not in request
        assert b"Authorization" not in request


async def test_the_balance_is_asked_for_on_a_host_of_its_own() -> None:
    requests: list[bytes] = []
    async with peer(says(response(BALANCE), requests=requests)) as port:
        url = f"http://127.0.0.1:{port}/other/json"
        async with make(9, balance_url=url) as client:
            assert await client.balance() == Answer(Outcome.OK, "100", balance=36_693.0)
    head, body = requests[0].split(b"\r\n\r\n")
    assert head.startswith(b"POST /other/json/GetBalance_json HTTP/1.1\r\n")
    assert b"Content-Type: application/json\r\n" in head + b"\r\n"
    assert json.loads(body) == {"ApiKey": API_KEY, "SecretKey": SECRET_KEY}


@pytest.mark.parametrize(
    ("status", "headers", "outcome", "retry_after"),
    [
        ("429 Slow", ("Retry-After: 17",), "throttled", 17.0),
        (
            "429 Slow",
            ("Date: Sun, 06 Nov 1994 08:49:30 GMT", "Retry-After: Sun, 06 Nov 1994 08:49:37 GMT"),
            "throttled",
            7.0,
        ),
        ("429 Slow", (), "throttled", None),
        ("503 Busy", ("Retry-After: 0",), "throttled", 0.0),
        ("503 Busy", ("Retry-After: nonsense",), "throttled", None),
        ("500 Oops", ("Retry-After: 17",), "http_error", None),
        ("302 Found", ("Location: /",), "http_error", None),
        ("201 Created", (), "http_error", None),
        ("404 Not Found", (), "http_error", None),
    ],
)
async def test_other_statuses(
    status: str, headers: tuple[str, ...], outcome: str, retry_after: float | None
) -> None:
    for answer in await all_three(response(GOOD, status, *headers)):
        assert (answer.outcome, answer.retry_after) == (outcome, retry_after)


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", GOOD[:-5], b"\xff\xfe", b"[]", b"null", b"{}", b"[" * 20_000, b" " * 70_000],
    ids=["empty", "html", "truncated", "binary", "list", "null", "object", "nested", "large"],
)
async def test_bodies_that_are_no_answer(body: bytes) -> None:
    for answer in await all_three(response(body)):
        assert answer.outcome is Outcome.BAD_RESPONSE


async def test_failures_are_answers() -> None:
    for answer in await all_three(b"", 0.2):
        assert answer.outcome is Outcome.TIMEOUT
        assert answer.message == "timed out before the response was complete"
    async with make(9) as client:
        assert (await client.send_status(ID)).outcome is Outcome.CONNECTION
        assert (await client.balance()).outcome is Outcome.CONNECTION
        assert not (await client.place_call(RECORDING)).sent


@pytest.mark.parametrize(
    "repeated",
    [
        *(f"{'x' * 190}{API_KEY}", SECRET_KEY.upper(), quote(API_KEY, safe=""), "SECRETKEY=other"),
        *(json.dumps(SECRET_KEY), '{"ApiKey": "other"}'),
    ],
)
async def test_a_message_that_repeats_the_request_is_withheld(repeated: str) -> None:
    body = {"CodeResult": "101", "ErrorMessage": f"Authorize Failed: {repeated}"}
    for answer in await all_three(response(json.dumps(body).encode())):
        assert (answer.outcome, answer.code, answer.message) == (Outcome.AUTH, "101", WITHHELD)


@pytest.mark.parametrize("repeated", ["0912345678", "Phone=x", "912 345 678", "912345678x"])
async def test_so_is_a_phone_number(repeated: str) -> None:
    body = {"CodeResult": "108", "ErrorMessage": f"see {repeated}"}
    _, placed, _ = await all_three(response(json.dumps(body).encode()))
    assert placed.code == "108"
    assert repeated not in placed.message


async def test_a_bad_answer_has_the_connection_renewed() -> None:
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await says(response(b'{"CodeResponse": "104"}'), close=False)(reader, writer)

    async with peer(serve) as port, make(port, max_ages=(1e6, 0.0)) as client:
        for _ in range(2):
            assert (await client.send_status(ID)).code == "104"
    assert connections == 2


# Placing a call.

FAULTS = {
    "reset": Fault(FaultKind.RESET),
    "hang": Fault(FaultKind.HANG),
    "html": Fault(FaultKind.HTML),
    "wrong_types": Fault(FaultKind.WRONG_TYPES),
    "trickle": Fault(FaultKind.TRICKLE, seconds=30),
    "http_500": Fault(FaultKind.STATUS, status=500),
    "http_429": Fault(FaultKind.STATUS, status=429, retry_after="9"),
    "bomb": Fault(FaultKind.GZIP_BOMB),
    "refused": Fault(FaultKind.RAW, body='{"CodeResult":103}'),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_a_call_is_placed_once_whatever_the_provider_does(name: str) -> None:
    async with Simulator(accounts=[Account("main", API_KEY, SECRET_KEY)]) as simulator:
        simulator.faults.set(name, FAULTS[name])
        async with make(URL(simulator.url).port or 0, 0.5) as client:
            placed = await client.place_call(RECORDING)
        expected = CanaryResult.REFUSED if name == "refused" else CanaryResult.UNSURE
        assert after_placing(placed) is expected
        assert simulator.traffic.total() == 1


# Through a proxy.

PROXY_USER = "Basic " + base64.b64encode("user:p@ss ạ".encode()).decode()


@asynccontextmanager
async def proxy() -> AsyncIterator[tuple[str, list[str]]]:
    """Run a proxy that knows one user; yields its address, and the targets of its requests."""
    targets: list[str] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, target, _ = head.split(" ", 2)
        if f"Proxy-Authorization: {PROXY_USER}\r\n" not in head:
            writer.write(response(b"", "407 Proxy Authentication Required"))
            return
        targets.append(f"{method} {target}")
        to = URL(f"//{target}" if method == "CONNECT" else target)
        up_reader, up_writer = await asyncio.open_connection(to.host, to.port)
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        else:
            up_writer.write(head.replace(target, to.raw_path_qs, 1).encode())
        try:
            await asyncio.gather(pump(reader, up_writer), pump(up_reader, writer))
        finally:
            up_writer.close()

    async with peer(serve) as port:
        yield f"http://user:p%40ss%20%E1%BA%A1@127.0.0.1:{port}", targets


async def test_every_request_goes_through_the_proxy_of_its_account(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    authority = trustme.CA()
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    serve = says(response(GOOD, "200 OK", "Connection: close"))
    async with (
        proxy() as (url, targets),
        peer(serve, tls=server_tls(authority)) as secured,
        peer(serve) as plain,
        make(secured, tls=trust, proxy=url) as client,
        make(plain, proxy=url) as plain_client,
        make(plain) as direct,
    ):
        assert (await direct.send_status(ID)).send_status == 5
        assert targets == []
        assert (await plain_client.send_status(ID)).send_status == 5
        assert targets.pop().startswith(f"GET http://127.0.0.1:{plain}/")
        assert (await client.send_status(ID)).send_status == 5
        await client.balance()
        assert (await client.place_call(TEMPLATE)).sent
    assert targets == [f"CONNECT 127.0.0.1:{secured}"] * 3


@pytest.mark.parametrize("secured", [True, False])
async def test_a_proxy_that_refuses_is_told_without_its_address(*, secured: bool) -> None:
    options: Any = {"tls": ssl.create_default_context()} if secured else {}  # Any: of `make`
    async with proxy() as (url, _):
        wrong = url.replace("p%40ss%20%E1%BA%A1", "wrong")
        async with make(9, proxy=wrong, **options) as client:
            answer = await client.send_status(ID)
            if secured:
                assert answer.outcome is Outcome.CONNECTION
                assert answer.message.startswith("the proxy refused the connection")
            else:
                assert answer.outcome is Outcome.HTTP_ERROR
    async with make(9, proxy="http://user:wrong@127.0.0.1:9", **options) as client:
        answer = await client.send_status(ID)
        assert answer.outcome is Outcome.CONNECTION
        assert "wrong" not in answer.message


async def test_configured_classes_of_codes_and_unknown_codes_logged_once() -> None:
    account = AccountConfig(
        name="main",
        api_key=Secret(API_KEY),
        secret_key=Secret(SECRET_KEY),
        codes={"102": "auth", "104": "not_found", "100000": "api_error"},
    )
    outcomes = dict[str, Outcome]()
    with capture_logs() as logs:
        for code in ("102", "104", "103", "999", "999", "100000", "9" * 9, "it's 7", "7"):
            body = json.dumps({"CodeResult": code, "ErrorMessage": "no"}).encode()
            async with peer(says(response(body), close=False)) as port:
                base = f"http://127.0.0.1:{port}/json"
                changed = account.model_copy(update={"base_url": base, "balance_url": base})
                async with EsmsClient(changed, 60) as client:
                    for answer in (await client.send_status(ID), await client.balance()):
                        outcomes[answer.code or ""] = answer.outcome
                        assert answer.message == "no"
    assert outcomes == {
        "102": Outcome.AUTH,
        "104": Outcome.NOT_FOUND,
        **dict.fromkeys(("103", "999", "100000", OTHER_CODE, "7"), Outcome.API_ERROR),
    }
    assert [log["code"] for log in logs] == ["999", "999", OTHER_CODE, OTHER_CODE, "7"]
    assert {log["event"] for log in logs} == {"unknown result code"}
