from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from aiohttp.streams import EMPTY_PAYLOAD
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exporter.app import App
from exporter.config import (
    AccountConfig,
    ApiConfig,
    BalanceConfig,
    Config,
    LedgerConfig,
    TokenConfig,
    WatchConfig,
)
from exporter.metrics import exposition
from exporter.secrets import Secret
from exporter.sources.configuration import ConfigFile
from exporter.web import connections, request_body, views
from exporter.web.connections import _address
from exporter.web.server import WebOptions, WebServer
from exporter.web.sockets import ListenAddress
from exporter.web.web_config import load_web_config
from tests.waiting import DEADLINE, deadline, until
from tests.web.certificates import Certificates

GET = b"GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n"
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Bench:
    def __init__(self, folder: Path) -> None:
        account = AccountConfig(name="main", api_key=Secret("k"), secret_key=Secret("s"))
        ledger = LedgerConfig(url=f"sqlite:///{folder / 'ledger.db'}")
        token = TokenConfig(name="t", token=Secret("token"))
        watch = WatchConfig(api=ApiConfig(tokens=(token,)))
        balance = BalanceConfig(interval=0.0)
        config = Config(accounts=(account,), balance=balance, watch=watch, ledger=ledger)
        self.service = App(lambda: config)
        self.folder = folder
        self.certificates: Certificates | None = None
        self.url = ""

    async def start(self, *, tls: bool = False) -> None:
        config = None
        if tls:
            self.certificates = Certificates(self.folder)
            path = self.folder / "web.yml"
            path.write_text("tls_server_config: {cert_file: server.crt, key_file: server.key}\n")
            config = ConfigFile(path, load_web_config)
        await self.service.open()
        addresses = [ListenAddress("127.0.0.1", 0)]
        self.server = WebServer(self.service, WebOptions(addresses, config=config))
        (self.url,) = await self.server.start()
        await self.service.start()

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def open(self) -> int:
        return self.server._connections._count

    async def connect(self, sent: bytes = b"", host: str = "127.0.0.1") -> Stream:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=(host, 0))
        writer.write(sent)
        return reader, writer

    async def answer(self, sent: bytes, seconds: float = 1.0) -> bytes:
        """Send something and return all that comes back, until the end or for some time."""
        reader, writer = await self.connect(sent)
        answer = b""
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(seconds):
                while piece := await reader.read(65_536):
                    answer += piece
        writer.close()
        return answer

    async def healthy(self) -> bool:
        context = self.certificates.client() if self.certificates else True
        async with (
            aiohttp.ClientSession() as http,
            http.get(f"{self.url}/-/healthy", ssl=context) as answer,
        ):
            return answer.status == 200


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    await bench.start()
    yield bench
    await bench.server.stop()
    await bench.service.stop()
    assert bench.open == 0


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing wait for long."""
    for name in ("HEAD_TIMEOUT", "STALL_TIMEOUT", "LINGER"):
        monkeypatch.setattr(connections, name, 0.3)
    monkeypatch.setattr(connections, "SWEEP_EVERY", 0.05)
    monkeypatch.setattr(request_body, "BODY_TIMEOUT", 0.3)


async def ends(stream: Stream) -> bytes:
    """Wait until the other side closes; returns what came before."""
    reader, writer = stream
    async with deadline():
        try:
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("sent", [b"", b"G", GET[:-2], b"\x16\x03\x01\x02\x00"])
async def test_a_head_that_does_not_come(bench: Bench, sent: bytes) -> None:
    assert b"200 OK" not in await ends(await bench.connect(sent))
    # Nor the next one on a connection.
    reader, writer = await bench.connect(GET)
    await reader.readuntil(b"healthy.\n")
    writer.write(sent or b"G")
    assert b"200 OK" not in await ends((reader, writer))
    await until(lambda: bench.open == 0)


@pytest.mark.usefixtures("soon")
async def test_a_head_that_comes_byte_by_byte(bench: Bench) -> None:
    reader, writer = await bench.connect()
    with contextlib.suppress(ConnectionError, RuntimeError):  # uvloop has one for what is closed
        for number in range(1000):
            writer.write(GET[number % 20 : number % 20 + 1])
            await writer.drain()
            await asyncio.sleep(0.02)
            if reader.at_eof():
                break
    assert number < 100
    writer.close()


@pytest.mark.usefixtures("soon")
async def test_a_connection_is_kept_between_requests(bench: Bench) -> None:
    reader, writer = await bench.connect()
    for _ in range(3):
        writer.write(GET)
        assert b"200 OK" in await reader.readuntil(b"healthy.\n")
        await asyncio.sleep(0.5)  # longer than a head may take
    writer.close()


@pytest.mark.usefixtures("soon")
async def test_a_body_that_does_not_come(bench: Bench) -> None:
    head = b"Host: x\r\nAuthorization: Bearer token\r\nContent-Length: 9\r\n\r\n{"
    answer = await ends(await bench.connect(b"POST /api/v1/calls HTTP/1.1\r\n" + head))
    assert b" 408 " in answer[:20]
    # Where nobody asked for one, it is not waited for.
    answer = await ends(await bench.connect(b"POST /-/reload HTTP/1.1\r\n" + head))
    assert b" 200 " in answer[:20]


@pytest.mark.usefixtures("soon")
async def test_a_scraper_that_does_not_read(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    large = b"# " + b"x" * 20_000_000 + b"\n"
    monkeypatch.setattr(exposition.Renderer, "render", lambda *_, **__: large)
    monkeypatch.setattr(views, "MAX_SCRAPES", 3)
    get = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    silent = [await bench.connect(get) for _ in range(3)]
    await until(lambda: bench.open == 3)
    await asyncio.sleep(0.1)
    # Somebody else is told that there are too many, and not for long.
    last = get.replace(b"x\r\n", b"x\r\nConnection: close\r\n")
    assert b" 503 " in (await bench.answer(last))[:20]
    await until(lambda: bench.open == 0)
    for _, writer in silent:
        writer.close()
    # One that reads slowly, but reads, has its answer.
    reader, writer = await bench.connect(last)
    size = 0
    while piece := await reader.read(1_000_000):
        size += len(piece)
        await asyncio.sleep(0.03)
    assert size > 20_000_000
    writer.close()


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("connection", [b"close", b"keep-alive"])
async def test_what_is_below_the_buffers_does_not_stay_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, tls: bool, connection: bytes
) -> None:
    """Neither a little that is left, nor what TLS holds, is seen as a writer that has to wait."""
    monkeypatch.setattr(connections, "STALL_TIMEOUT", 0.5)
    monkeypatch.setattr(connections, "SWEEP_EVERY", 0.05)
    bench = Bench(tmp_path)
    await bench.start(tls=tls)
    size = 12_000_000 if tls else 2_800_000
    large = b"# " + b"x" * size + b"\n"
    monkeypatch.setattr(exposition.Renderer, "render", lambda *_, **__: large)
    try:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, ("127.0.0.1", bench.port))
            writer: asyncio.StreamWriter | None = None
            get = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: " + connection + b"\r\n\r\n"
            if bench.certificates:
                _, writer = await asyncio.open_connection(
                    sock=client, ssl=bench.certificates.client(), server_hostname="localhost",
                    limit=1,
                )  # fmt: skip
                writer.write(get)
                writer.transport.pause_reading()  # type: ignore[attr-defined]
            else:
                await loop.sock_sendall(client, get)
            await until(lambda: bench.open == 1)
            await until(lambda: bench.open == 0)
            if writer:
                writer.transport.abort()
    finally:
        await bench.server.stop()
        await bench.service.stop()


async def test_who_has_to_make_room_leaves_no_descriptor_open(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MAX_PER_ADDRESS", 3)

    def descriptors() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    held = [await bench.connect() for _ in range(3)]
    await until(lambda: bench.open == 3)
    before = descriptors()
    held += [await bench.connect() for _ in range(30)]
    # The clients keep theirs; the server has no more than three.
    await until(lambda: descriptors() == before + 30)
    for _, writer in held:
        writer.close()


async def test_requests_ahead_of_an_answer_are_bounded(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = asyncio.Event()

    async def wait(_self: object) -> None:
        await go_on.wait()

    monkeypatch.setattr(WebServer, "reload", wait)
    reader, writer = await bench.connect(POST.replace(b"/ ", b"/-/reload ") + b"\r\n")
    await until(lambda: any(one.busy for one in bench.server._connections._all()))
    large = GET[:-2] + b"A: " + b"a" * 7_000 + b"\r\n\r\n"
    for _ in range(5):
        writer.write(large)
    await writer.drain()
    await asyncio.sleep(0.2)
    assert bench.open == 1
    for _ in range(20):
        writer.write(large)
    assert b"200 OK" not in await ends((reader, writer))
    go_on.set()


async def test_all_who_ask_for_a_reload_share_the_next(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    reloads, go_on = [], asyncio.Event()

    async def reload() -> None:
        reloads.append(1)
        await go_on.wait()

    monkeypatch.setattr(bench.service, "reload", reload)
    asked = [asyncio.create_task(bench.server.reload()) for _ in range(5)]
    await until(lambda: len(reloads) == 1)
    asked += [asyncio.create_task(bench.server.reload()) for _ in range(50)]
    go_on.set()
    await asyncio.gather(*asked)
    assert len(reloads) == 2


async def test_a_scraper_that_leaves_in_the_middle(bench: Bench) -> None:
    for _ in range(20):
        _, writer = await bench.connect(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 5)
        await writer.drain()
        writer.transport.abort()
    await until(lambda: bench.open == 0)
    assert await bench.healthy()


async def test_who_holds_many_connections_keeps_nobody_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MAX_PER_ADDRESS", 5)
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 12)
    held = [await bench.connect(GET[:9]) for _ in range(30)]
    assert await bench.healthy()
    assert bench.open <= 5
    for number in range(2, 6):
        held += [await bench.connect(host=f"127.0.0.{number}") for _ in range(9)]
    await until(lambda: bench.open == 12)
    assert await bench.healthy()
    # A request that is being answered is not driven out; where all are, nobody else comes in.
    held.append(await bench.connect())
    await until(lambda: bench.open == 12)
    for gate in bench.server._connections._all():
        gate.begin(EMPTY_PAYLOAD)
    assert await ends(await bench.connect(GET)) == b""
    for gate in bench.server._connections._all():
        gate.end()
    assert await bench.healthy()
    for _, writer in held:
        writer.close()


async def test_too_many_open_files(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_ACCEPT_AGAIN", 0.1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    waiting = socket.create_connection(("127.0.0.1", bench.port))
    spare = [socket.socket() for _ in range(1)]
    used = max(one.fileno() for one in (waiting, *spare))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (used, hard))
        spare.pop().close()
        more = []
        with contextlib.suppress(OSError):
            while True:
                more.append(socket.socket())
        await asyncio.sleep(0.5)
        for one in more:
            one.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    waiting.close()
    assert await bench.healthy()


@pytest.mark.usefixtures("soon")
async def test_a_handshake_that_does_not_come(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    await bench.start(tls=True)
    try:
        streams = [await bench.connect(sent) for sent in (b"", b"\x16", GET, b"\x16\x03\x01" * 20)]
        await until(lambda: bench.open > 0)
        for stream in streams:
            assert b"200 OK" not in await ends(stream)
        await until(lambda: bench.open == 0)
        failures = bench.service.metrics.tls_failures
        told = {reason: series.value for (reason,), series in failures.series() if series.value}
        assert told == {"timeout": 3, "not_tls": 1}
        assert await bench.healthy()
    finally:
        await bench.server.stop()
        await bench.service.stop()


POST = b"POST / HTTP/1.1\r\nHost: x\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
# What is not HTTP, or means two things at once (RFC 9112, sections 5 to 7).
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


@pytest.mark.parametrize("shape", SHAPES)
async def test_what_is_no_request(bench: Bench, shape: str) -> None:
    answer = await bench.answer(SHAPES[shape])
    # Answered once, if at all, and nothing that is smuggled behind it is.
    assert answer.count(b"HTTP/1.") <= 1
    assert b"200 OK" not in answer
    if answer:
        head = answer.partition(b"\r\n\r\n")[0].lower()
        assert b"server: esms-exporter" in head
        assert b"aiohttp" not in head
        assert b"x-content-type-options: nosniff" in head
    assert await bench.healthy()


async def test_any_bytes(bench: Bench) -> None:
    loop = asyncio.get_running_loop()
    pieces = st.sampled_from(
        [b"GET ", b"POST ", b"/metrics", b"/api/v1/calls", b" HTTP/1.1", b"\r\n", b"\r\n\r\n",
         b"Host: x\r\n", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n",
         b"Authorization: Basic ", b"Expect: 100-continue\r\n", b"Upgrade: websocket\r\n",
         b"Connection: Upgrade\r\n", b"\xff", b"\0"]
    )  # fmt: skip
    sent = st.lists(st.one_of(pieces, st.binary(max_size=40)), max_size=30).map(b"".join)

    @given(sent)
    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    def fuzz(data: bytes) -> None:
        answer = asyncio.run_coroutine_threadsafe(bench.answer(data, 0.05), loop).result(DEADLINE)
        assert b"aiohttp" not in answer.lower()
        assert b" 500 " not in answer

    await asyncio.to_thread(fuzz)
    assert await bench.healthy()
    assert bench.service.supervisor.failure is None


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        (("192.0.2.1", 5), "192.0.2.1"),
        (("::ffff:192.0.2.1", 5, 0, 0), "192.0.2.1"),
        (("2001:db8::1", 5, 0, 0), "2001:db8::/64"),
        (("2001:db8::ffff:1:2:3", 5, 0, 0), "2001:db8:0:0::/64"),
        (("fe80::1%eth0", 5, 0, 2), "fe80::/64"),
        ("", ""),
        (b"", ""),
    ],
)
def test_whose_connection_it_is(peer: object, address: str) -> None:
    assert _address(peer) == address.replace(":0:0::/64", "::/64")
