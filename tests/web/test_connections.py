"""What connections may cost, and what is no HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Gauge

from exporter.app import App
from exporter.web.connections import Limits, address_of
from tests.waiting import DEADLINE, deadline, until
from tests.web.bench import TLS, Bench, Stream

GET = b"GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n"
METRICS = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\n"
RELOAD = POST.replace(b"/ ", b"/-/reload ", 1)
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
SOON = Limits(head=0.3, body=0.3, stall=0.5, linger=0.3, accept_retry=0.1, scrapes=3)


def count(bench: Bench) -> int:
    return len(bench.server.connections.open)


async def no_more_connections(bench: Bench) -> None:
    await until(lambda: count(bench) == 0)


async def healthy(bench: Bench) -> bool:
    return await bench.status("/-/healthy", Connection="close") == 200


def busy(bench: Bench) -> int:
    return sum(one.busy for one in bench.server.connections.open)


@contextlib.contextmanager
def reloads_held(bench: Bench) -> Iterator[None]:
    """Have requests for a reload wait until the end of the block."""
    release = threading.Event()

    def hold() -> None:
        assert release.wait(DEADLINE)

    bench.loading = hold
    try:
        yield
    finally:
        release.set()


# Slow clients.


async def test_a_head_that_does_not_come(idle: Bench) -> None:
    await idle.start(limits=SOON)

    async def is_ended(sent: bytes) -> None:
        assert b"200 OK" not in await (await idle.connect(sent)).ends()
        # Nor the next one on a connection.
        reader, writer = await idle.connect(GET)
        await reader.readuntil(b"healthy.\n")
        writer.write(sent or b"G")
        assert b"200 OK" not in await Stream(reader, writer).ends()

    await asyncio.gather(*map(is_ended, (b"", b"G", GET[:-2], b"\x16\x03\x01\x02\x00")))
    await no_more_connections(idle)


async def test_a_head_that_comes_byte_by_byte(idle: Bench) -> None:
    await idle.start(limits=SOON)
    reader, writer = await idle.connect()
    with contextlib.suppress(ConnectionError, RuntimeError):  # uvloop has one for what is closed
        async with deadline():
            for byte in GET * 10_000:
                if reader.at_eof():
                    break
                writer.write(bytes([byte % 26 + 65]))
                await writer.drain()
                await asyncio.sleep(0.01)
    await no_more_connections(idle)
    writer.close()


async def test_a_connection_is_kept_between_requests(idle: Bench) -> None:
    await idle.start(limits=SOON)
    reader, writer = await idle.connect()
    for _ in range(3):
        writer.write(GET)
        assert b"200 OK" in await reader.readuntil(b"healthy.\n")
        await asyncio.sleep(2 * SOON.head)
    writer.close()


async def test_a_body_that_does_not_come(idle: Bench) -> None:
    await idle.start(limits=SOON)
    head = b"Host: x\r\nAuthorization: Bearer token-all\r\nContent-Length: 9\r\n\r\n{"
    answer = await (await idle.connect(b"POST /api/v1/calls HTTP/1.1\r\n" + head)).ends()
    assert b" 408 " in answer[:20]
    # A body that is not wanted is not waited for.
    answer = await (await idle.connect(b"POST /-/reload HTTP/1.1\r\n" + head)).ends()
    assert b" 200 " in answer[:20]


async def test_a_handshake_that_does_not_come(idle: Bench) -> None:
    await idle.start(f"{TLS}}}\n", limits=SOON)
    sent = (b"", b"\x16", GET, b"\x16\x03\x01" * 20)
    for stream in [await idle.connect(one) for one in sent]:
        assert b"200 OK" not in await stream.ends()
    await no_more_connections(idle)
    _, metrics = await idle.get("/metrics")
    name = "esms_exporter_tls_handshake_failures_total"
    assert f'{name}{{reason="timeout"}} 3' in metrics
    assert f'{name}{{reason="not_tls"}} 1' in metrics


class LargeApp(App):
    """An exporter with so many metrics that an answer does not fit into the kernel's buffers."""

    size = 8_000_000

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # Any: as the exporter takes them
        super().__init__(*args, **kwargs)
        Gauge("large", "x" * self.size, registry=self.metrics.registry)


@pytest.fixture
def large(tmp_path: Path) -> Bench:
    return Bench(tmp_path, LargeApp)


async def test_a_scraper_that_does_not_read(large: Bench) -> None:
    async with large as bench:
        await bench.start(limits=Limits(stall=5.0, scrapes=3))
        silent = [await bench.connect(METRICS) for _ in range(4)]
        async with deadline():
            lines = [await reader.readline() for reader, _ in silent]
        # One too many is refused, but not for long.
        assert sorted(line.split()[1] for line in lines) == [b"200", b"200", b"200", b"503"]
        # The one that was refused is kept for its next request.
        await until(lambda: count(bench) == 1)
        for _, writer in silent:
            writer.transport.abort()
        # One that reads slowly, but reads, gets its answer.
        reader, writer = await bench.connect(METRICS.replace(b"x\r", b"x\r\nConnection: close\r"))
        size = 0
        while piece := await reader.read(1_000_000):
            size += len(piece)
            await asyncio.sleep(0.05)
        assert size > LargeApp.size
        writer.close()


@pytest.mark.parametrize(("tls", "connection"), [(False, b"keep-alive"), (True, b"close")])
async def test_a_client_that_takes_nothing_of_what_is_below_the_buffers(
    large: Bench, *, tls: bool, connection: bytes
) -> None:
    """Neither a little that is left, nor what TLS holds, is seen as a writer that has to wait."""
    async with large as bench:
        await bench.start(f"{TLS}}}\n" if tls else None, limits=SOON)
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, ("127.0.0.1", bench.port))
            options: dict[str, Any] = {}
            if tls:
                options = {"ssl": bench.certificates.client(), "server_hostname": "localhost"}
            _, writer = await asyncio.open_connection(sock=client, limit=1, **options)
            writer.write(METRICS.replace(b"x\r", b"x\r\nConnection: " + connection + b"\r"))
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            await until(lambda: count(bench) == 1)
            await no_more_connections(bench)
            writer.transport.abort()


# Many connections, and much at a time.


async def test_requests_ahead_of_an_answer_are_bounded(bench: Bench) -> None:
    with reloads_held(bench):
        reader, writer = await bench.connect(RELOAD + b"\r\n")
        await until(lambda: busy(bench) == 1)
        large = GET[:-2] + b"A: " + b"a" * 7_000 + b"\r\n\r\n"
        writer.write(large * 5)
        await writer.drain()
        assert await healthy(bench)
        assert busy(bench) == 1
        writer.write(large * 20)
        assert b"200 OK" not in await Stream(reader, writer).ends()


async def test_many_connections_do_not_keep_a_scrape_out(idle: Bench) -> None:
    await idle.start(limits=Limits(per_address=5, connections=12))

    def descriptors() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    held = [await idle.connect(GET[:9]) for _ in range(5)]
    await until(lambda: count(idle) == 5)
    before = descriptors()
    held += [await idle.connect(GET[:9]) for _ in range(30)]
    # The clients keep theirs; the server closes what has to make room.
    await until(lambda: descriptors() <= before + 30)
    assert await healthy(idle)
    assert count(idle) <= 5
    for number in range(2, 6):
        held += [await idle.connect(host=f"127.0.0.{number}") for _ in range(9)]
    await until(lambda: count(idle) == 12)
    assert await healthy(idle)
    for _, writer in held:
        writer.close()


async def test_five_hundred_slow_clients_do_not_keep_a_scrape_out(bench: Bench) -> None:
    with contextlib.ExitStack() as stack:
        slow = []
        for number in range(500):
            client = socket.create_connection(("127.0.0.1", bench.port))
            slow.append(stack.enter_context(client))
            client.send(METRICS[:-2] + b"A: " + b"a" * (number % 50))
        for _ in range(3):
            for client in slow:
                with contextlib.suppress(OSError):  # it had to make room
                    client.send(b"a")
            assert await bench.status("/metrics", Connection="close") == 200


async def test_a_request_that_is_answered_keeps_its_connection(idle: Bench) -> None:
    await idle.start(limits=Limits(per_address=3))
    with reloads_held(idle):
        sent = RELOAD + b"Connection: close\r\n\r\n"
        streams = [await idle.connect(sent) for _ in range(3)]
        await until(lambda: busy(idle) == 3)
        assert await (await idle.connect(GET)).ends() == b""
    assert [b" 200 " in (await stream.ends())[:20] for stream in streams] == [True] * 3
    assert await healthy(idle)


async def test_too_many_open_files(idle: Bench) -> None:
    await idle.start(limits=SOON)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    waiting, spare = socket.create_connection(("127.0.0.1", idle.port)), socket.socket()
    used = max(waiting.fileno(), spare.fileno())
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (used, hard))
        spare.close()
        more = []
        with contextlib.suppress(OSError):
            while True:
                more.append(socket.socket())
        await asyncio.sleep(5 * SOON.accept_retry)
        for one in more:
            one.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    waiting.close()
    assert await healthy(idle)


def test_what_connections_are_limited_by() -> None:
    for host, address in (
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:1:2:3", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ):
        assert address_of(host) == address


# What is no HTTP, or means two things at once (RFC 9112, sections 5 to 7).
SHAPES = {
    "garbage": b"\x00\xff\xfe\r\n\r\n",
    "a line too long": b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "a header too long": GET[:-2] + b"A: " + b"a" * 20_000 + b"\r\n\r\n",
    "too many headers": GET[:-2] + b"A: a\r\n" * 300 + b"\r\n",
    "no version": b"GET /\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "two lengths": POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n12345" + GET,
    "length and chunks": POST + b"Content-Length: 4\r\n" + CHUNKED + b"0\r\n\r\n" + GET,
    "a length that is none": POST + b"Content-Length: +5\r\n\r\n12345" + GET,
    "a hidden chunked": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + GET,
    "a chunk that is none": POST + CHUNKED + b"0x5\r\n12345\r\n0\r\n\r\n" + GET,
    "a blank before the colon": b"GET /-/healthy HTTP/1.1\r\nHost : x\r\n\r\n",
    "a folded header": GET[:-2] + b" y: z\r\n\r\n",
    "a bare return": b"GET /-/healthy HTTP/1.1\rHost: x\r\r",
    "a NUL": b"GET /-/healthy HTTP/1.1\r\nHost: x\0\r\n\r\n",
}


async def test_what_is_no_request(idle: Bench) -> None:
    await idle.start(limits=SOON)
    for name, shape in SHAPES.items():
        answer = await (await idle.connect(shape)).ends()
        # Answered once, if at all, and nothing that is smuggled behind it is.
        assert answer.count(b"HTTP/1.") <= 1, name
        assert b"200 OK" not in answer, name
        if answer:
            head = answer.partition(b"\r\n\r\n")[0].lower()
            assert b"server: esms-exporter" in head, name
            assert b"aiohttp" not in head, name
            assert b"x-content-type-options: nosniff" in head, name
    assert await healthy(idle)
