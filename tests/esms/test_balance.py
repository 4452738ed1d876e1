"""Requests for balances, against servers that do everything wrong, on real sockets."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import ssl
import traceback
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

import pytest
import trustme

from exporter.errors import (
    ConnectionFailedError,
    RequestError,
    RequestTimeoutError,
    TLSError,
    UnreadableAnswerError,
)
from exporter.esms.answers import BalanceAnswer
from exporter.esms.balance import BalanceClient
from exporter.esms.client import MAX_BODY
from exporter.esms.codes import Outcome
from exporter.secrets import Secret
from tests.esms.test_client import API_KEY, SECRET_KEY, Serve, peer, response

GOOD = json.dumps({"Balance": 36693, "CodeResponse": "100", "UserID": 9999}).encode()
TOLD = BalanceAnswer(Outcome.OK, "100", balance=36_693.0)


def says(*parts: bytes, requests: list[tuple[bytes, bytes]] | None = None) -> Serve:
    """Return a server that reads requests with their bodies, and answers each."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: (\d+)", head)
            body = await reader.readexactly(int(length[1])) if length else b""
            if requests is not None:
                requests.append((head, body))
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0.01)

    return serve


@asynccontextmanager
async def client() -> AsyncIterator[BalanceClient]:
    client = BalanceClient()
    try:
        yield client
    finally:
        await client.close()


async def ask(serve: Serve, within: float = 5) -> BalanceAnswer:
    async with peer(serve) as port, client() as asker:
        return await of(asker, port, within)


async def of(
    asker: BalanceClient,
    port: int,
    within: float = 5,
    scheme: str = "http",
    tls: ssl.SSLContext | None = None,
) -> BalanceAnswer:
    url = f"{scheme}://127.0.0.1:{port}/MainService.svc/json"
    return await asker.get_balance(
        url, Secret(API_KEY), Secret(SECRET_KEY), within=within, tls=tls or True
    )


async def failure(work: Awaitable[object], kind: type[RequestError]) -> None:
    """Check the exception, and that it tells nothing."""
    with pytest.raises(RequestError) as caught:
        await work
    error = caught.value
    assert type(error) is kind
    told = "".join(traceback.format_exception(error)) + repr(error) + str(error)
    for hidden in ("odd", "cret+", "http://", "https://", "127.0.0.1"):
        assert hidden not in re.sub(r"File .*", "", told)
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None


async def test_the_request() -> None:
    requests: list[tuple[bytes, bytes]] = []
    async with peer(says(response(GOOD), requests=requests)) as port, client() as asker:
        for _ in range(2):
            assert await of(asker, port) == TOLD
    (head, body), _ = requests
    first, *lines = head.decode().split("\r\n")
    assert first == "POST /MainService.svc/json/GetBalance_json HTTP/1.1"
    assert json.loads(body) == {"ApiKey": API_KEY, "SecretKey": SECRET_KEY}
    headers = dict(line.split(": ", 1) for line in lines if line)
    assert headers["Content-Type"] == "application/json"
    assert headers["Accept-Encoding"] == "identity"
    assert headers["Connection"] == "close"
    assert not headers.keys() & {"Cookie", "Authorization", "Referer"}


async def test_no_cookie_comes_back() -> None:
    requests: list[tuple[bytes, bytes]] = []
    answer = response(GOOD, "200 OK", "Set-Cookie: session=1; Path=/")
    async with peer(says(answer, requests=requests)) as port, client() as asker:
        for _ in range(2):
            await of(asker, port)
    assert not any(b"ookie" in head for head, _ in requests)


@pytest.mark.parametrize("status", ["302 Found", "307 Temporary", "308 Permanent"])
async def test_redirects_are_not_followed(status: str) -> None:
    elsewhere: list[tuple[bytes, bytes]] = []
    async with peer(says(response(GOOD), requests=elsewhere)) as other:
        location = f"Location: http://127.0.0.1:{other}/"
        answer = await ask(says(response(b"", status, location)))
    assert answer == BalanceAnswer(Outcome.HTTP_ERROR)
    assert elsewhere == []


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        ("429 Slow", ("Retry-After: 17",), BalanceAnswer(Outcome.THROTTLED, retry_after=17.0)),
        ("503 Busy", (), BalanceAnswer(Outcome.THROTTLED)),
        ("500 Oops", (), BalanceAnswer(Outcome.HTTP_ERROR)),
        ("404 Not Found", (), BalanceAnswer(Outcome.HTTP_ERROR)),
    ],
)
async def test_other_statuses(
    status: str, headers: tuple[str, ...], expected: BalanceAnswer
) -> None:
    assert await ask(says(response(GOOD, status, *headers))) == expected


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", GOOD[:-5], b"\xff\xfe", b"[]", b"null", b"{}", b"[" * 20_000],
    ids=["empty", "html", "truncated", "binary", "list", "null", "object", "nested"],
)
async def test_bodies_that_are_no_answer(body: bytes) -> None:
    assert await ask(says(response(body))) == BalanceAnswer(Outcome.BAD_RESPONSE)


async def test_the_body_is_bounded() -> None:
    assert await ask(says(response(GOOD + b" " * (MAX_BODY - len(GOOD))))) == TOLD
    await failure(ask(says(response(GOOD + b" " * MAX_BODY))), UnreadableAnswerError)
    endless = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n"
    await failure(ask(says(endless, *[b" " * 65_536] * 50)), UnreadableAnswerError)


async def test_the_time_out_is_for_the_whole_answer() -> None:
    await failure(ask(says(), 0.1), RequestTimeoutError)
    trickle = [bytes([byte]) for byte in response(GOOD)]
    await failure(ask(says(*trickle), 0.2), RequestTimeoutError)


async def test_an_account_waits_for_no_other_one() -> None:
    asked: list[tuple[bytes, bytes]] = []
    async with (
        peer(says(requests=asked)) as slow,
        peer(says(response(GOOD))) as good,
        client() as asker,
    ):
        waiting = [asyncio.create_task(of(asker, slow)) for _ in range(200)]
        assert await of(asker, good) == TOLD
        assert not any(task.done() for task in waiting)
        for task in waiting:
            task.cancel()
        ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(error) for error in ended} == {asyncio.CancelledError}


async def test_no_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with client() as asker:
        await failure(of(asker, port), ConnectionFailedError)
    await failure(ask(says(response(GOOD)[:-5]), 0.2), RequestTimeoutError)


async def test_certificates_are_verified() -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    ours = ssl.create_default_context()
    authority.configure_trust(ours)
    for issuer, name, good in (
        (authority, "127.0.0.1", True),
        (authority, "rest.example", False),
        (stranger, "127.0.0.1", False),
    ):
        theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        issuer.issue_cert(name).configure_cert(theirs)
        async with peer(says(response(GOOD)), tls=theirs) as port, client() as asker:
            if good:
                assert await of(asker, port, scheme="https", tls=ours) == TOLD
            else:
                await failure(of(asker, port, scheme="https", tls=ours), TLSError)


@pytest.mark.parametrize(
    "repeated",
    [API_KEY, SECRET_KEY.upper(), json.dumps(SECRET_KEY), '{"ApiKey": "other"}'],
)
async def test_a_message_that_repeats_the_request_is_withheld(repeated: str) -> None:
    body = {"CodeResponse": "101", "Balance": 0, "ErrorMessage": f"Authorize Failed: {repeated}"}
    answer = await ask(says(response(json.dumps(body).encode())))
    assert answer == BalanceAnswer(Outcome.AUTH, "101", "(withheld: it repeats the request)")
