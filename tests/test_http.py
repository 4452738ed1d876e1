"""The HTTP client against servers that do everything wrong, on real sockets."""

from __future__ import annotations

import asyncio
import gc
import re
import socket
import ssl
import struct
import traceback
from collections.abc import Awaitable
from typing import Any

import aiohttp
import pytest
import trustme
from yarl import URL

from exporter.errors import (
    ConnectionFailedError,
    InvalidResponseError,
    RequestError,
    RequestTimeoutError,
    TLSError,
)
from exporter.http import MAX_BODY, HttpClient, Response, map_exception
from tests.peers import Serve, peer, response, says, server_tls

GOOD = b'{"good": true}'
RESET = struct.pack("ii", 1, 0)


def client(timeout: float = 60, **options: Any) -> HttpClient:  # Any: of `HttpClient`
    return HttpClient(timeout, {"X-Secret": "odd secret"}, **options)


def url(port: int, scheme: str = "http") -> URL:
    return URL(f"{scheme}://127.0.0.1:{port}/path?ApiKey=secret")


async def get(serve: Serve, limit: float = 60) -> Response:
    async with peer(serve) as port, client(limit) as http:
        return await http.request("GET", url(port))


async def failure(work: Awaitable[object], kind: type[RequestError]) -> RequestError:
    """Return the exception, once it is certain that it tells nothing."""
    with pytest.raises(kind) as caught:
        await work
    error = caught.value
    assert type(error) is kind
    # All that a log, a debugger or a crash reporter could make of it.
    told = "".join(traceback.format_exception(error)) + repr(error) + str(error)
    for hidden in ("ApiKey", "secret", "http://", "https://", "127.0.0.1"):
        assert hidden not in re.sub(r"File .*|.*await .*", "", told)
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None
    return error


async def test_connections_are_kept_and_cookies_are_not() -> None:
    requests: list[bytes] = []
    connections = 0
    answer = response(GOOD, "200 OK", "Set-Cookie: session=1; Path=/")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await says(answer, close=False, requests=requests)(reader, writer)

    async with peer(serve) as port, client() as http:
        for _ in range(3):
            await http.request("GET", url(port))
    assert (connections, len(requests)) == (1, 3)
    assert not any(b"ookie" in request for request in requests)
    headers = dict(line.split(": ", 1) for line in requests[0].decode().split("\r\n")[1:] if line)
    assert headers["Accept-Encoding"] == "identity"
    assert headers["X-Secret"] == "odd secret"
    assert re.fullmatch(r"esms-exporter/\d+\.\d+\.\d+\S*", headers["User-Agent"])


async def test_a_connection_that_was_closed_in_between_is_made_anew() -> None:
    async with peer(says(response(GOOD))) as port, client() as http:
        for _ in range(3):
            assert (await http.request("GET", url(port))).body == GOOD
            await asyncio.sleep(0.03)


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary", "308 Permanent"])
async def test_redirects_are_not_followed(status: str) -> None:
    elsewhere: list[bytes] = []
    async with peer(says(response(GOOD), requests=elsewhere)) as other:
        location = f"Location: http://127.0.0.1:{other}/"
        assert (await get(says(response(b"", status, location)))).status == int(status[:3])
    assert elsewhere == []


async def test_a_body_in_many_pieces() -> None:
    whole = response(GOOD)
    parts = [whole[start : start + 40] for start in range(0, len(whole), 40)]
    assert (await get(says(*parts))).body == GOOD
    chunks = [f"{len(p):x}\r\n".encode() + p + b"\r\n" for p in (GOOD[:9], GOOD[9:], b"")]
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert (await get(says(chunked, *chunks))).body == GOOD


@pytest.mark.parametrize("last", [MAX_BODY, 9_000])
async def test_the_largest_body(last: int) -> None:
    whole = response(b" " * MAX_BODY)
    end = len(whole) - last
    assert len((await get(says(whole[:end], whole[end:]))).body) == MAX_BODY


async def test_a_larger_body_is_not_read() -> None:
    endless = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n"
    error = await failure(
        get(says(endless, *[b" " * 65_536] * 50, close=False)), InvalidResponseError
    )
    assert str(error) == "the response has more than 65536 bytes"
    await failure(get(says(response(b" " * (MAX_BODY + 1)))), InvalidResponseError)


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
    with pytest.raises((InvalidResponseError, ConnectionFailedError)):
        await get(says(answer))


async def test_no_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with client() as http:
        error = await failure(http.request("GET", url(port)), ConnectionFailedError)
        assert str(error) == "the connection failed (Connection refused)"
        unresolved = http.request("GET", URL("http://nowhere.invalid/"))
        await failure(unresolved, ConnectionFailedError)


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 2", response(GOOD)[:-5]])
async def test_a_connection_that_breaks(said: bytes) -> None:
    await failure(get(says(said)), ConnectionFailedError)

    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        await writer.drain()
        await asyncio.sleep(0.01)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        writer.close()

    await failure(get(reset), ConnectionFailedError)


@pytest.mark.parametrize("parts", [(), (b"HTTP/1.1 200 OK\r\n",), (response(GOOD)[:-5],)])
async def test_the_time_out_is_for_the_whole_response(parts: tuple[bytes, ...]) -> None:
    await failure(get(says(*parts, close=False), 0.1), RequestTimeoutError)
    trickle = [bytes([byte]) for byte in response(GOOD)]
    await failure(get(says(*trickle), 0.2), RequestTimeoutError)


async def test_others_have_their_whole_time() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while b"slow" not in await reader.readuntil(b"\r\n\r\n"):
            writer.write(response(GOOD))
        await asyncio.sleep(60)
        writer.close()

    async with peer(serve) as port, client(0.3) as http:
        slow = [
            asyncio.create_task(http.request("GET", url(port) / "slow"))  # no connection is spare
            for _ in range(3)
        ]
        for _ in range(20):
            assert (await http.request("GET", url(port))).body == GOOD
            await asyncio.sleep(0.02)
        for outcome in await asyncio.gather(*slow, return_exceptions=True):
            assert isinstance(outcome, RequestTimeoutError)


async def test_a_request_that_is_cancelled_has_not_timed_out() -> None:
    async with peer(says(close=False)) as port, client() as http:
        request = asyncio.create_task(http.request("GET", url(port)))
        await asyncio.sleep(0.05)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request


async def test_waiting_for_a_connection_counts() -> None:
    async with peer(says(close=False)) as port, client(0.2, limit=4) as http:
        waiting = [asyncio.create_task(http.request("GET", url(port))) for _ in range(9)]
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {RequestTimeoutError}


async def test_certificates_are_verified() -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    ours = ssl.create_default_context()
    authority.configure_trust(ours)
    good = says(response(GOOD))
    async with peer(good, tls=server_tls(authority)) as port:
        async with client(tls=ours) as http:
            assert (await http.request("GET", url(port, "https"))).body == GOOD
        async with client() as http:
            error = await failure(http.request("GET", url(port, "https")), TLSError)
            assert str(error).startswith("the server could not be authenticated (Client")
    for wrong in (server_tls(authority, "voiceapi.example"), server_tls(stranger)):
        async with peer(good, tls=wrong) as port, client(tls=ours) as http:
            await failure(http.request("GET", url(port, "https")), TLSError)

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(response(GOOD))
        writer.close()

    async with peer(plain) as port, client(tls=ours) as http:
        with pytest.raises((TLSError, ConnectionFailedError)):
            await http.request("GET", url(port, "https"))


async def test_what_was_never_connected_was_never_sent() -> None:
    async with peer(says(response(GOOD)), tls=server_tls(trustme.CA())) as port, client() as http:
        for to, kind in (
            (url(port, "https"), TLSError),
            (URL("http://127.0.0.1:9/"), ConnectionFailedError),
            (URL("http://nowhere.invalid/"), ConnectionFailedError),
        ):
            assert not (await failure(http.request_once(to), kind)).sent


async def test_a_request_on_its_own_connection_times_out_although_the_client_is_closed() -> None:
    connected = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        connected.set()
        await reader.read()  # until the connection is closed

    async with peer(silent) as port, asyncio.TaskGroup() as tasks:
        async with client(0.2) as http:
            request = tasks.create_task(failure(http.request_once(url(port)), RequestTimeoutError))
            await connected.wait()
        assert (await request).sent


def subclasses(kind: type[Exception]) -> set[type[Exception]]:
    return {kind} | {each for child in kind.__subclasses__() for each in subclasses(child)}


@pytest.mark.parametrize("kind", sorted(subclasses(aiohttp.ClientError), key=repr))
def test_every_exception_of_aiohttp_is_mapped(kind: type[Exception]) -> None:
    error = kind.__new__(kind, "http://host/?ApiKey=k")
    if isinstance(error, aiohttp.ClientConnectorError):
        error._os_error = OSError()
    mapped = map_exception(error)
    assert "ApiKey" not in str(mapped)
    if issubclass(kind, TimeoutError):
        assert type(mapped) is RequestTimeoutError
    elif issubclass(kind, aiohttp.ClientSSLError):
        assert type(mapped) is TLSError


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TimeoutError(), RequestTimeoutError),
        (ssl.SSLError(), TLSError),
        (ConnectionResetError(), ConnectionFailedError),
        (OSError(24, "too many open files"), ConnectionFailedError),
        (aiohttp.ClientPayloadError(), ConnectionFailedError),
        (ValueError("http://host/?ApiKey=k"), InvalidResponseError),
        (UnicodeError(), InvalidResponseError),
        (RuntimeError("Session is closed"), InvalidResponseError),
    ],
)
def test_so_is_anything_else(error: Exception, kind: type[RequestError]) -> None:
    assert type(map_exception(error)) is kind
    assert "ApiKey" not in str(map_exception(error))


@pytest.mark.parametrize(
    ("max_ages", "first"),
    [((0.0, 0.0), response(GOOD)), ((1e6, 0.0), b"?"), ((1e6, 0.0), b"distrusted")],
)
async def test_a_name_that_moves_is_followed(
    monkeypatch: pytest.MonkeyPatch, max_ages: tuple[float, float], first: bytes
) -> None:
    asked: list[bytes] = []
    distrusted = first == b"distrusted"
    old = says(response(GOOD) if distrusted else first, close=False)
    new = says(response(GOOD), close=False, requests=asked)
    async with peer(old) as port, peer(new, at=("127.0.0.2", port)):
        addresses = ["127.0.0.2", "127.0.0.1"]

        def getaddrinfo(*_: object, **__: object) -> list[tuple[Any, ...]]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (addresses.pop(), port))]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        async with client(max_ages=max_ages) as http:
            to = URL(f"http://provider.example:{port}/")
            try:
                await http.request("GET", to)
            except RequestError:
                assert first == b"?"
            if distrusted:
                http.renew_soon()
            assert not asked
            assert (await http.request("GET", to)).body == GOOD
        assert len(asked) == 1


async def test_connections_that_were_just_replaced_are_closed_at_the_end() -> None:
    async with peer(says(response(GOOD), close=False)) as port:
        http = client(max_ages=(0.0, 0.0))
        await http.request("GET", url(port))
        request = asyncio.create_task(http.request("GET", url(port)))
        await asyncio.sleep(0)  # replaces the session, whose task has not started
        await http.close()
        await asyncio.gather(request, return_exceptions=True)
    del http, request
    gc.collect()  # the warning about an open session fails the test
