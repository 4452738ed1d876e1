"""The client against servers that do everything wrong, on real sockets."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import socket
import ssl
import struct
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
import trustme
from yarl import URL

from exporter.calls import reference_id
from exporter.errors import (
    ConnectionFailedError,
    RequestError,
    RequestTimeoutError,
    TLSError,
    UnreadableAnswerError,
)
from exporter.esms.answers import Answer, read_answer
from exporter.esms.balance import BalanceClient
from exporter.esms.client import MAX_BODY, Client, translate
from exporter.esms.codes import Outcome
from exporter.esms.placing import CallRequest, place
from exporter.secrets import Secret

API_KEY = "key&with=odd/characters ?#%"
SECRET_KEY = "sécret+key"
ID = reference_id("505139D7-54F8-48A9-88FA-9460A78731DD")
GOOD = json.dumps({"CodeResponse": "100", "ReferenceId": ID, "SendStatus": 5}).encode()

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def response(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    head = "".join(f"{header}\r\n" for header in (*headers, f"Content-Length: {len(body)}"))
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body


def says(*parts: bytes, close: bool = True, requests: list[bytes] | None = None) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                request = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                break
            if requests is not None:
                requests.append(request)
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0.01)
            if close:
                break
        writer.close()

    return serve


@asynccontextmanager
async def peer(
    serve: Serve, *, tls: ssl.SSLContext | None = None, at: tuple[str, int] = ("127.0.0.1", 0)
) -> AsyncIterator[int]:
    """Run a server on loopback; yields its port."""

    serving: set[asyncio.Task[object]] = set()

    async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        serving.add(task)
        with suppress(OSError, EOFError, asyncio.CancelledError):
            await serve(reader, writer)
        writer.close()

    server = await asyncio.start_server(guarded, *at, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)


def make(port: int, timeout: float = 5, **options: Any) -> Client:  # Any: of `Client`
    scheme = "https" if "tls" in options else "http"
    return Client(
        f"{scheme}://127.0.0.1:{port}/MainService.svc/json",
        Secret(API_KEY),
        Secret(SECRET_KEY),
        timeout=timeout,
        max_connections=4,
        **options,
    )


async def ask(serve: Serve, limit: float = 5) -> Answer:
    async with peer(serve) as port, make(port, limit) as client:
        return await client.send_status(ID)


async def failure(work: Awaitable[object], kind: type[RequestError]) -> RequestError:
    """Return the exception, once it is certain that it tells nothing."""
    with pytest.raises(kind) as caught:
        await work
    error = caught.value
    assert type(error) is kind
    # All that a log, a debugger or a crash reporter could make of it.
    told = "".join(traceback.format_exception(error)) + repr(error) + str(error)
    for hidden in ("ApiKey", "SecretKey", "odd", "cret", "505139D7", "http://", "https://"):
        assert hidden not in re.sub(r"File .*|client.py.*", "", told)
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None
    return error


async def test_the_request() -> None:
    requests: list[bytes] = []
    serve = says(response(GOOD), close=False, requests=requests)
    async with peer(serve) as port, make(port) as client:
        assert (await client.send_status(ID)).send_status == 5
        await client.send_status(reference_id("a/b?c&d"))
    first, second = (request.decode().split("\r\n") for request in requests)
    assert first[0] == (
        "GET /MainService.svc/json/GetSendStatus"
        "?ApiKey=key%26with%3Dodd%2Fcharacters%20%3F%23%25&SecretKey=s%C3%A9cret%2Bkey"
        f"&ReferenceId={ID} HTTP/1.1"
    )
    assert second[0].endswith("&ReferenceId=a%2Fb%3Fc%26d HTTP/1.1")
    headers = dict(line.split(": ", 1) for line in first[1:] if line)
    assert headers["Accept-Encoding"] == "identity"
    assert re.fullmatch(r"esms-exporter/\d+\.\d+\.\d+\S*", headers["User-Agent"])
    assert not headers.keys() & {"Cookie", "Authorization", "Referer"}


async def test_connections_are_kept_and_cookies_are_not() -> None:
    requests: list[bytes] = []
    connections = 0
    answer = response(GOOD, "200 OK", "Set-Cookie: session=1; Path=/")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await says(answer, close=False, requests=requests)(reader, writer)

    async with peer(serve) as port, make(port) as client:
        for _ in range(3):
            await client.send_status(ID)
    assert (connections, len(requests)) == (1, 3)
    assert not any(b"ookie" in request for request in requests)


async def test_a_connection_that_was_closed_in_between_is_made_anew() -> None:
    async with peer(says(response(GOOD))) as port, make(port) as client:
        for _ in range(3):
            assert (await client.send_status(ID)).outcome is Outcome.OK
            await asyncio.sleep(0.03)


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary", "308 Permanent"])
async def test_redirects_are_not_followed(status: str) -> None:
    elsewhere: list[bytes] = []
    async with peer(says(response(GOOD), requests=elsewhere)) as other:
        location = f"Location: http://127.0.0.1:{other}/"
        assert await ask(says(response(b"", status, location))) == Answer(Outcome.HTTP_ERROR)
    assert elsewhere == []


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        ("429 Slow", ("Retry-After: 17",), Answer(Outcome.THROTTLED, retry_after=17.0)),
        (
            "429 Slow",
            ("Date: Sun, 06 Nov 1994 08:49:30 GMT", "Retry-After: Sun, 06 Nov 1994 08:49:37 GMT"),
            Answer(Outcome.THROTTLED, retry_after=7.0),
        ),
        ("503 Busy", (), Answer(Outcome.THROTTLED)),
        ("503 Busy", ("Retry-After: nonsense",), Answer(Outcome.THROTTLED)),
        ("500 Oops", ("Retry-After: 17",), Answer(Outcome.HTTP_ERROR)),
        ("201 Created", (), Answer(Outcome.HTTP_ERROR)),
        ("404 Not Found", (), Answer(Outcome.HTTP_ERROR)),
    ],
)
async def test_other_statuses(status: str, headers: tuple[str, ...], expected: Answer) -> None:
    assert await ask(says(response(GOOD, status, *headers))) == expected


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", GOOD[:-5], b"\xff\xfe", b"[]", b"null", b"{}", b"[" * 20_000],
    ids=["empty", "html", "truncated", "binary", "list", "null", "object", "nested"],
)
async def test_bodies_that_are_no_answer(body: bytes) -> None:
    assert await ask(says(response(body))) == Answer(Outcome.BAD_RESPONSE)


async def test_an_answer_in_many_pieces() -> None:
    whole = response(GOOD)
    parts = [whole[start : start + 40] for start in range(0, len(whole), 40)]
    assert (await ask(says(*parts))).send_status == 5
    chunks = [f"{len(p):x}\r\n".encode() + p + b"\r\n" for p in (GOOD[:9], GOOD[9:], b"")]
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert (await ask(says(chunked, *chunks))).send_status == 5


@pytest.mark.parametrize("sizes", [(MAX_BODY - len(GOOD),), (MAX_BODY - 9_000, 9_000 - len(GOOD))])
async def test_the_largest_answer(sizes: tuple[int, ...]) -> None:
    whole = response(GOOD + b" " * sum(sizes))
    end = len(whole) - sizes[-1]
    assert (await ask(says(whole[:end], whole[end:]))).send_status == 5


async def test_a_larger_answer_is_not_read() -> None:
    endless = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n"
    error = await failure(
        ask(says(endless, *[b" " * 65_536] * 50, close=False)), UnreadableAnswerError
    )
    assert str(error) == "the answer has more than 65536 bytes"
    await failure(ask(says(response(GOOD + b" " * MAX_BODY))), UnreadableAnswerError)


async def test_a_compressed_answer_is_not_unpacked() -> None:
    answer = response(GOOD, "200 OK", "Content-Encoding: gzip")
    assert (await ask(says(answer))).send_status == 5


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/9.9 abc\r\n\r\n",
        b"\x16\x03\x01\x00\x00",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
    ],
    ids=["ssh", "version", "tls", "length", "chunk", "header"],
)
async def test_what_is_no_http(answer: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        await ask(says(answer))
    assert caught.value.outcome in (Outcome.BAD_RESPONSE, Outcome.CONNECTION)


async def test_no_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with make(port) as client:
        await failure(client.send_status(ID), ConnectionFailedError)
    unresolved = Client(
        "http://nowhere.invalid/json", Secret("k"), Secret("s"), timeout=60, max_connections=1
    )
    async with unresolved as client:
        await failure(client.send_status(ID), ConnectionFailedError)


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 2", response(GOOD)[:-5]])
async def test_a_connection_that_breaks(said: bytes) -> None:
    await failure(ask(says(said)), ConnectionFailedError)

    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        await writer.drain()
        await asyncio.sleep(0.01)
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.close()

    await failure(ask(reset), ConnectionFailedError)


@pytest.mark.parametrize("parts", [(), (b"HTTP/1.1 200 OK\r\n",), (response(GOOD)[:-5],)])
async def test_the_time_out_is_for_the_whole_answer(parts: tuple[bytes, ...]) -> None:
    await failure(ask(says(*parts, close=False), 0.1), RequestTimeoutError)
    trickle = [bytes([byte]) for byte in response(GOOD)]
    await failure(ask(says(*trickle), 0.2), RequestTimeoutError)


async def test_others_have_their_whole_time() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while b"slow" not in await reader.readuntil(b"\r\n\r\n"):
            writer.write(response(GOOD))
        await asyncio.sleep(5)
        writer.close()

    async with peer(serve) as port, make(port, 0.3) as client:
        slow = [asyncio.create_task(client.send_status(reference_id("slow"))) for _ in range(3)]
        for _ in range(20):
            assert (await client.send_status(ID)).outcome is Outcome.OK
            await asyncio.sleep(0.02)
        for outcome in await asyncio.gather(*slow, return_exceptions=True):
            assert isinstance(outcome, RequestTimeoutError)


async def test_who_cancels_a_request_is_not_told_of_a_time_out() -> None:
    async with peer(says(close=False)) as port, make(port, 0.2) as client:
        request = asyncio.create_task(client.send_status(ID))
        await asyncio.sleep(0.05)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request


async def test_waiting_for_a_connection_counts() -> None:
    async with peer(says(close=False)) as port, make(port, 0.2) as client:
        waiting = [asyncio.create_task(client.send_status(ID)) for _ in range(9)]
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {RequestTimeoutError}


async def test_certificates_are_verified() -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    ours = ssl.create_default_context()
    authority.configure_trust(ours)
    good = says(response(GOOD))

    def server(issuer: trustme.CA, name: str) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        issuer.issue_cert(name).configure_cert(context)
        return context

    async with peer(good, tls=server(authority, "127.0.0.1")) as port:
        async with make(port, tls=ours) as client:
            assert (await client.send_status(ID)).send_status == 5
        async with make(port, tls=ssl.create_default_context()) as client:
            await failure(client.send_status(ID), TLSError)
    for wrong in (server(authority, "voiceapi.example"), server(stranger, "127.0.0.1")):
        async with peer(good, tls=wrong) as port, make(port, tls=ours) as client:
            await failure(client.send_status(ID), TLSError)

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(response(GOOD))
        writer.close()

    async with peer(plain) as port, make(port, tls=ours) as client:
        with pytest.raises(RequestError) as caught:
            await client.send_status(ID)
        assert caught.value.outcome in (Outcome.TLS, Outcome.CONNECTION)


@pytest.mark.parametrize(
    "repeated",
    [f"{'x' * 190}{API_KEY}", SECRET_KEY.upper(), quote(API_KEY, safe=""), "SECRETKEY=other"],
)
async def test_a_message_that_repeats_the_request_is_withheld(repeated: str) -> None:
    body = {"CodeResult": "101", "ErrorMessage": f"Authorize Failed: {repeated}"}
    answer = await ask(says(response(json.dumps(body).encode())))
    assert (answer.outcome, answer.code) == (Outcome.AUTH, "101")
    assert answer.message == "(withheld: it repeats the request)"


async def test_a_message_is_bounded_and_printable() -> None:
    body = {"CodeResult": "103", "ErrorMessage": f"\x1b[31mno\nmoney\u202e{'x' * 5000}"}
    answer = await ask(says(response(json.dumps(body).encode())))
    assert answer.message == f"[31mnomoney{'x' * 189}"


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ("0901234567 is blocked", "*** is blocked"),
        ("(+84) 90-123.45.67: no", "(***: no"),
        (f"{'x' * 195}0901234567", f"{'x' * 195}***"),
        ("code 105, 123456 of 7", "code 105, 123456 of 7"),
    ],
)
async def test_a_message_holds_no_phone_number(told: str, shown: str) -> None:
    body = {"CodeResult": "108", "ErrorMessage": told}
    answer = await ask(says(response(json.dumps(body).encode())))
    assert answer.message == shown


def test_a_credential_that_looks_like_a_phone_number_is_withheld() -> None:
    body = b'{"CodeResult": "101", "ErrorMessage": "0901234567b is odd"}'
    answer = read_answer(body, [Secret("0901234567b")])
    assert answer.message == "(withheld: it repeats the request)"


def subclasses(kind: type[Exception]) -> set[type[Exception]]:
    return {kind} | {each for child in kind.__subclasses__() for each in subclasses(child)}


@pytest.mark.parametrize("kind", sorted(subclasses(aiohttp.ClientError), key=repr))
def test_every_exception_of_aiohttp_has_its_translation(kind: type[Exception]) -> None:
    translated = translate(kind.__new__(kind, "http://host/?ApiKey=k"))
    assert isinstance(translated, RequestError)
    assert "ApiKey" not in str(translated)
    if issubclass(kind, TimeoutError):
        assert type(translated) is RequestTimeoutError
    elif issubclass(kind, aiohttp.ClientSSLError):
        assert type(translated) is TLSError


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TimeoutError(), RequestTimeoutError),
        (ssl.SSLError(), TLSError),
        (ConnectionResetError(), ConnectionFailedError),
        (OSError(24, "too many open files"), ConnectionFailedError),
        (aiohttp.ClientPayloadError(), ConnectionFailedError),
        (ValueError("http://host/?ApiKey=k"), UnreadableAnswerError),
        (UnicodeError(), UnreadableAnswerError),
        (RuntimeError("Session is closed"), UnreadableAnswerError),
    ],
)
def test_so_has_anything_else(error: Exception, kind: type[RequestError]) -> None:
    assert type(translate(error)) is kind
    assert "ApiKey" not in str(translate(error))


@pytest.mark.parametrize(
    ("max_ages", "first"),
    [((0.0, 0.0), GOOD), ((1e6, 0.0), GOOD.replace(b'"100"', b'"104"')), ((1e6, 0.0), b"?")],
    ids=["age", "bad answer", "unreadable answer"],
)
async def test_a_name_that_moves_is_followed(
    monkeypatch: pytest.MonkeyPatch, max_ages: tuple[float, float], first: bytes
) -> None:
    asked: list[bytes] = []
    old = says(response(first), close=False)
    new = says(response(GOOD), close=False, requests=asked)
    async with peer(old) as port, peer(new, at=("127.0.0.2", port)):
        addresses = ["127.0.0.2", "127.0.0.1"]

        def getaddrinfo(*_: object, **__: object) -> list[tuple[Any, ...]]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (addresses.pop(), port))]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        async with Client(
            f"http://provider.example:{port}/json",
            Secret("k"),
            Secret("s"),
            timeout=5,
            max_connections=4,
            max_ages=max_ages,
        ) as client:
            await client.send_status(ID)
            assert not asked
            assert (await client.send_status(ID)).send_status == 5
        assert len(asked) == 1


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


async def test_polls_balances_and_placed_calls_go_through_the_proxy_of_their_account(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    authority = trustme.CA()
    server, trust = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(trust)
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    keys = Secret(API_KEY), Secret(SECRET_KEY)
    request = CallRequest(Secret("0901234567"), "made-up", template="1")
    serve = says(response(GOOD), close=False)
    async with (
        proxy() as (url, targets),
        peer(serve, tls=server) as secured,
        peer(serve) as plain,
        make(secured, tls=trust, proxy=Secret(url)) as client,
        make(plain, proxy=Secret(url)) as plain_client,
        make(plain) as direct,
    ):
        assert (await direct.send_status(ID)).send_status == 5
        assert targets == []
        assert (await client.send_status(ID)).send_status == 5
        assert (await plain_client.send_status(ID)).send_status == 5
        base = f"https://127.0.0.1:{secured}/json"
        options: Any = {"tls": trust, "proxy": Secret(url)}  # Any: of both
        balances = BalanceClient()
        await balances.get_balance(base, *keys, within=5, **options)
        await balances.close()
        assert (await place(base, *keys, request, 5, **options)).connected
    assert targets[0] == f"CONNECT 127.0.0.1:{secured}"
    assert targets[1].startswith(f"GET http://127.0.0.1:{plain}/")
    assert targets[2:] == targets[:1] * 2


@pytest.mark.parametrize("secured", [True, False])
async def test_a_proxy_that_refuses_is_told_without_its_address(*, secured: bool) -> None:
    options: Any = {"tls": ssl.create_default_context()} if secured else {}  # Any: of `make`
    async with proxy() as (url, _):
        wrong = Secret(url.replace("p%40ss%20%E1%BA%A1", "wrong"))
        async with make(9, proxy=wrong, **options) as client:
            if secured:
                told = await failure(client.send_status(ID), ConnectionFailedError)
                assert str(told).startswith("the proxy refused the connection")
            else:
                assert (await client.send_status(ID)).outcome is Outcome.HTTP_ERROR
    async with make(9, proxy=Secret("http://user:wrong@127.0.0.1:9"), **options) as client:
        told = await failure(client.send_status(ID), ConnectionFailedError)
        assert "wrong" not in str(told)
