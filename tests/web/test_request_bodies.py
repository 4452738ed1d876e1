"""Bodies of requests: refused ones cost nothing, wanted ones a bounded amount."""

from __future__ import annotations

import asyncio
import gzip
import json
import tracemalloc
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterator
from itertools import product

import pytest

from exporter.web.api import MAX_BODY
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


METHODS = ("GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")
PATHS = (
    "/", "/metrics", "/-/healthy", "/-/ready", "/callback/main/x", "/nothing", "/api/v1/calls",
    "/api/v1/calls/main/a", "/api/v1/status", "/api/v1/openapi.json", "/api/v1/nothing",
)  # fmt: skip
ENCODINGS = ("gzip", "GZIP", "x-gzip", "deflate", "br", "zstd", "gzip, gzip", "identity", "x")


async def test_a_body_that_is_not_wanted_is_never_unpacked(
    bench: Bench, inflated: Inflated
) -> None:
    async def ask(method: str, path: str, framing: dict[str, str | int], body: bytes) -> None:
        client = await bench.connect()
        client.writer.write(head(method, path, **framing) + body)
        status, _ = await client.answer()
        # As without a body, whatever it says of its encoding.
        assert status in {200, 401, 404, 405}, (method, path)
        assert path.startswith(("/api", "/callback", "/nothing")) <= (status != 200)
        client.writer.write(head("GET", "/-/healthy", Connection="close"))
        await client.ends()
        client.writer.close()

    where = [*product(METHODS, PATHS, ["gzip"]), *product(["POST"], PATHS[-2:], ENCODINGS)]
    for method, path, encoding in where:
        framing: dict[str, str | int] = {"Content_Encoding": encoding}
        await ask(method, path, framing | {"Content_Length": len(BOMB)}, BOMB)
        if method == "POST":
            await ask(method, path, framing | {"Transfer_Encoding": "chunked"}, chunked(BOMB))
    assert inflated.count == 0


async def test_the_rest_of_a_body_that_is_not_wanted_is_not_read(bench: Bench) -> None:
    async def flood(method: str, path: str, framing: dict[str, str | int]) -> None:
        client = await bench.connect()
        client.writer.write(head(method, path, **framing))
        if "Content_Length" not in framing:
            client.writer.write(b"%x\r\n" % (1 << 40))
        status, text = await client.answer()
        assert status in {200, 401, 404, 405}
        assert b"connection: close" in text.lower()
        # More than the buffers of both kernels hold does not go away.
        taken = 0
        with pytest.raises(ConnectionError):  # noqa: PT012 - whichever comes first
            while taken < 128 << 20:
                client.writer.write(bytes(1 << 20))
                await client.writer.drain()
                taken += 1 << 20
        assert taken < 64 << 20
        client.writer.close()

    framings: list[dict[str, str | int]] = [
        {"Content_Length": 1 << 40},
        {"Transfer_Encoding": "chunked"},
    ]
    where = product(("GET", "POST"), ("/api/v1/calls", "/nothing", "/metrics"), framings)
    async with deadline():
        await asyncio.gather(*(flood(*one) for one in where))
    assert await bench.status("/-/healthy") == 200


async def test_who_waits_for_100_continue_is_told_a_refusal_first(bench: Bench) -> None:
    asks: dict[str, str | int] = {"Expect": "100-continue"}
    login: dict[str, str | int] = {**asks, "Authorization": TOKEN}
    for headers, expected in (
        ({**asks, "Content_Length": len(CALL)}, 401),
        ({**login, "Content_Length": MAX_BODY + 1}, 413),
        ({**login, "Content_Length": 9, "Content_Encoding": "br"}, 415),
    ):
        client = await bench.connect()
        client.writer.write(head(**headers))
        status, text = await client.answer()
        # Whether the body comes is not known: what follows could be taken for it.
        assert (status, b"connection: close" in text.lower()) == (expected, True)
        client.writer.close()
    client = await bench.connect()
    for added in (1, 0):
        client.writer.write(head(**login, Content_Length=len(CALL)))
        assert (await client.answer())[0] == 100
        client.writer.write(CALL)
        status, text = await client.answer()
        assert (status, f'"added":{added}'.encode() in text) == (202, True)
    client.writer.close()


async def test_bodies_that_are_wanted(bench: Bench, inflated: Inflated) -> None:
    zipped = gzip.compress(CALL)
    for encoding, body, expected in (
        ("gzip", zipped, 202),
        ("GZip", zipped, 202),
        ("x-gzip", zipped, 202),
        ("identity, gzip", zipped, 202),
        ("deflate", zlib.compress(CALL), 202),
        ("identity", CALL, 202),
        ("", CALL, 202),
        ("", BOM_UTF8 + CALL, 202),
        ("br", CALL, 415),
        ("zstd", CALL, 415),
        ("gzip, gzip", gzip.compress(zipped), 415),
        ("gzip\r\nContent-Encoding: deflate", CALL, 415),
        ("\xe9", CALL, 415),
        ("gzip", CALL, 400),
        ("gzip", b"", 400),
        ("gzip", zipped[:-9], 400),
        ("gzip", zipped[:-1], 400),
        ("gzip", zipped + b"x", 400),
        ("gzip", zipped * 2, 400),
        ("gzip", gzip.compress(b"{"), 400),
        ("gzip", compressed(MAX_BODY + (1 << 20)), 413),
        ("deflate", zlib.compress(bytes(MAX_BODY + 1)), 413),
    ):
        client = await bench.connect()
        sent = head(Authorization=TOKEN, Content_Encoding=encoding, Content_Length=len(body))
        client.writer.write(sent + body)
        status, text = await client.answer()
        assert status == expected, (encoding, body[:100])
        if status == 415:
            assert b"accept-encoding: gzip, deflate\r\n" in text.lower()
        # One that was read whole ends no connection.
        client.writer.write(head("GET", "/-/healthy"))
        assert (await client.answer())[0] == 200
        client.writer.close()
    assert inflated.count == 0


async def test_a_bomb_that_is_wanted_is_unpacked_no_further_than_a_body_may_be(
    bench: Bench,
) -> None:
    sent = head(Authorization=TOKEN, Content_Encoding="gzip", Content_Length=len(BOMB)) + BOMB
    clients = [await bench.connect() for _ in range(4)]
    tracemalloc.start()
    try:
        for client in clients:
            client.writer.write(sent)
        assert [(await client.answer())[0] for client in clients] == [413] * 4
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # One at a time, and its pieces once more while they are put together.
    assert most < 3 * MAX_BODY + len(clients) * 3 * len(BOMB)
    for client in clients:
        client.writer.close()
