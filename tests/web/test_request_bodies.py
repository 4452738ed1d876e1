"""Bodies of requests: refused ones cost nothing, wanted ones a bounded amount."""

from __future__ import annotations

import asyncio
import gzip
import json
import tracemalloc
import zlib
from codecs import BOM_UTF8
from collections.abc import AsyncIterator, Iterator
from itertools import product

import pytest
import pytest_asyncio
from yarl import URL

from exporter.web.api import MAX_BODY, parse_calls
from exporter.web.connections import Limits
from exporter.web.schemas import ProblemError, Scope
from tests.inflating import Inflated, compressed, counting_inflated
from tests.waiting import deadline
from tests.web.bench import Bench

TOKEN = "Bearer token-all"
CALL = json.dumps({"calls": [{"reference_id": "a", "account": "b"}]}).encode()


BOMB = compressed(64 << 20)


@pytest.fixture
def inflated() -> Iterator[Inflated]:
    with counting_inflated() as inflated:
        yield inflated


def head(method: str = "POST", path: str = "/api/v1/calls", /, **headers: str | int) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: x"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join((*lines, "", "")).encode()


def chunked(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


class Client:
    """A raw connection to the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def answer(self) -> tuple[int, bytes]:
        """Return the status and the whole text of the next answer that has a length."""
        async with asyncio.timeout(60):
            text = await self.reader.readuntil(b"\r\n\r\n")
            status = int(text.split()[1])
            length = text.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            body = await self.reader.readexactly(int(length)) if length else b""
        return status, text + body

    async def ends(self) -> None:
        """Wait until the server closes the connection."""
        async with asyncio.timeout(60):
            try:
                while await self.reader.read(65_536):
                    pass
            except ConnectionError:
                pass


@pytest_asyncio.fixture
async def client(bench: Bench) -> AsyncIterator[Client]:
    client = Client(*await asyncio.open_connection("127.0.0.1", URL(bench.url).port))
    yield client
    client.writer.close()


async def opened(bench: Bench) -> Client:
    return Client(*await asyncio.open_connection("127.0.0.1", URL(bench.url).port))


METHODS = ("GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")
PATHS = (
    "/", "/metrics", "/-/healthy", "/-/ready", "/callback/main/x", "/nothing", "/api/v1/calls",
    "/api/v1/calls/main/a", "/api/v1/status", "/api/v1/openapi.json", "/api/v1/nothing",
)  # fmt: skip
ENCODINGS = ("gzip", "GZIP", "x-gzip", "deflate", "br", "zstd", "gzip, gzip", "identity", "x")


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_a_body_that_is_not_wanted_is_never_unpacked(
    bench: Bench, inflated: Inflated, encoding: str
) -> None:
    async def ask(method: str, path: str, sent: bytes) -> None:
        client = await opened(bench)
        client.writer.write(sent)
        status, _ = await client.answer()
        # As without a body, whatever it says of its encoding.
        assert status in {200, 401, 404, 405}, (method, path)
        assert path.startswith(("/api", "/callback", "/nothing")) <= (status != 200)
        client.writer.write(head("GET", "/-/healthy", Connection="close"))
        await client.ends()
        client.writer.close()

    for method, path in product(METHODS, PATHS):
        await ask(method, path, head(method, path, Content_Encoding=encoding,
                                     Content_Length=len(BOMB)) + BOMB)  # fmt: skip
    for path in PATHS:
        framed = head("POST", path, Content_Encoding=encoding, Transfer_Encoding="chunked")
        await ask("POST", path, framed + chunked(BOMB))
    assert inflated.count == 0


async def test_requests_in_a_row_with_bodies_that_are_not_wanted(
    client: Client, inflated: Inflated
) -> None:
    small = compressed(1 << 20)
    sent = head("POST", "/nothing", Content_Encoding="gzip", Content_Length=len(small)) + small
    client.writer.write(sent * 20)
    assert [(await client.answer())[0] for _ in range(20)] == [404] * 20
    assert inflated.count == 0


async def test_the_rest_of_a_body_that_is_not_wanted_is_not_read_for_long(idle: Bench) -> None:
    await idle.start(limits=Limits(linger=0.1))

    async def flood(method: str, path: str, framing: dict[str, str | int]) -> None:
        client = await opened(idle)
        client.writer.write(head(method, path, **framing))
        if "Content_Length" not in framing:
            client.writer.write(b"%x\r\n" % (1 << 40))
        status, text = await client.answer()
        assert status in {200, 401, 404, 405}
        assert b"connection: close" in text.lower()
        with pytest.raises(ConnectionError):  # noqa: PT012 - whichever comes first
            while True:
                client.writer.write(bytes(1 << 16))
                await client.writer.drain()
        client.writer.close()

    framings: list[dict[str, str | int]] = [
        {"Content_Length": 1 << 40},
        {"Transfer_Encoding": "chunked"},
    ]
    where = product(("GET", "POST"), ("/api/v1/calls", "/nothing", "/metrics"), framings)
    async with deadline():
        await asyncio.gather(*(flood(*one) for one in where))
    assert await idle.status("/-/healthy") == 200


async def test_who_waits_for_100_continue_is_told_the_answer_first(client: Client) -> None:
    client.writer.write(head(Expect="100-continue", Content_Length=len(CALL)))
    status, text = await client.answer()
    assert status == 401
    # Whether the body comes is not known: what follows could be taken for it.
    assert b"connection: close" in text.lower()


async def test_who_waits_for_100_continue_with_access_is_told_to_go_on(client: Client) -> None:
    sent = head(Authorization=TOKEN, Expect="100-continue", Content_Length=len(CALL))
    for added in (1, 0):
        client.writer.write(sent)
        assert (await client.answer())[0] == 100
        client.writer.write(CALL)
        status, text = await client.answer()
        assert (status, f'"added":{added}'.encode() in text) == (202, True)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Content_Length": MAX_BODY + 1}, 413),
        ({"Content_Length": 9, "Content_Encoding": "br"}, 415),
    ],
)
async def test_a_body_that_cannot_be_taken_is_not_asked_for(
    client: Client, headers: dict[str, str | int], expected: int
) -> None:
    client.writer.write(head(Authorization=TOKEN, Expect="100-continue", **headers))
    status, text = await client.answer()
    assert (status, b"connection: close" in text.lower()) == (expected, True)


@pytest.mark.parametrize(
    ("encoding", "body", "expected"),
    [
        ("gzip", gzip.compress(CALL), 202),
        ("GZip", gzip.compress(CALL), 202),
        ("x-gzip", gzip.compress(CALL), 202),
        ("identity, gzip", gzip.compress(CALL), 202),
        ("deflate", zlib.compress(CALL), 202),
        ("identity", CALL, 202),
        ("", CALL, 202),
        ("br", CALL, 415),
        ("zstd", CALL, 415),
        ("compress", CALL, 415),
        ("gzip, gzip", gzip.compress(gzip.compress(CALL)), 415),
        ("gzip\r\nContent-Encoding: deflate", CALL, 415),
        ("\xe9", CALL, 415),
        ("gzip", CALL, 400),
        ("gzip", b"", 400),
        ("gzip", gzip.compress(CALL)[:-9], 400),
        ("gzip", gzip.compress(CALL)[:-1], 400),
        ("gzip", gzip.compress(CALL) + b"x", 400),
        ("gzip", gzip.compress(CALL) * 2, 400),
        ("gzip", gzip.compress(b"{"), 400),
        ("gzip", compressed(MAX_BODY + (1 << 20)), 413),
        ("deflate", zlib.compress(bytes(MAX_BODY + 1)), 413),
    ],
    ids=map(str, range(22)),  # compressed bytes are others in each process
)
async def test_bodies_that_are_wanted(
    client: Client, inflated: Inflated, encoding: str, body: bytes, expected: int
) -> None:
    sent = head(Authorization=TOKEN, Content_Encoding=encoding, Content_Length=len(body))
    client.writer.write(sent + body)
    status, text = await client.answer()
    assert status == expected
    if status == 415:
        assert b"accept-encoding: gzip, deflate\r\n" in text.lower()
    # One that was read whole ends no connection.
    client.writer.write(head("GET", "/-/healthy"))
    assert (await client.answer())[0] == 200
    assert inflated.count == 0


async def test_a_bomb_that_is_wanted_is_unpacked_no_further_than_a_body_may_be(
    bench: Bench,
) -> None:
    bomb = compressed(512 << 20)
    sent = head(Authorization=TOKEN, Content_Encoding="gzip", Content_Length=len(bomb)) + bomb
    clients = [await opened(bench) for _ in range(8)]
    tracemalloc.start()
    try:
        for client in clients:
            client.writer.write(sent)
        assert [(await client.answer())[0] for client in clients] == [413] * 8
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # One at a time, and its pieces once more while they are put together.
    assert most < 3 * MAX_BODY + len(clients) * 3 * len(bomb)
    for client in clients:
        client.writer.close()


def test_a_byte_order_mark_is_skipped() -> None:
    (call,) = parse_calls(Scope(("main",), ()), BOM_UTF8 + b'{"calls": [{"reference_id": "A"}]}')
    assert call.reference_id == "A"


def test_what_is_no_id_is_refused_with_what_it_looks_like() -> None:
    ids = ['="a"', "a;otp", "1.23E+17"]
    body = json.dumps({"calls": [{"reference_id": name} for name in ids]}).encode()
    with pytest.raises(ProblemError) as caught:
        parse_calls(Scope(("main",), ()), body)
    errors = json.loads(caught.value.response().text or "")["errors"]
    assert [(one["pointer"], one["detail"].partition("the text ")[2]) for one in errors] == [
        ("/calls/0/reference_id", "looks like a formula"),
        ("/calls/1/reference_id", "looks like a row of CSV"),
        ("/calls/2/reference_id", "looks like a number that a spreadsheet has rounded"),
    ]
