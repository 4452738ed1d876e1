from __future__ import annotations

import errno
import gzip
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from exporter.app import App
from exporter.config import AccountConfig, BalanceConfig, Config, LedgerConfig
from exporter.errors import ListenError
from exporter.metrics.exposition import OPENMETRICS, TEXT, accepts_gzip, wants_openmetrics
from exporter.secrets import Secret
from exporter.web.server import WebOptions, WebServer
from exporter.web.sockets import ListenAddress, listen

LOOPBACK = ListenAddress("127.0.0.1", 0)


def configuration(folder: Path) -> Config:
    return Config(
        accounts=tuple(
            AccountConfig(name=name, api_key=Secret("k"), secret_key=Secret("s"))
            for name in ("main", "other")
        ),
        balance=BalanceConfig(interval=0.0),
        ledger=LedgerConfig(url=f"sqlite:///{folder / 'ledger.db'}"),
    )


@pytest_asyncio.fixture
async def service(tmp_path: Path) -> AsyncIterator[App]:
    config = configuration(tmp_path)
    service = App(lambda: config)
    await service.open()
    yield service
    await service.stop()


@pytest_asyncio.fixture
async def shared(service: App, tmp_path: Path) -> AsyncIterator[str]:
    """Yield the address of a server."""
    server = WebServer(service, WebOptions([LOOPBACK]))
    (url,) = await server.start()
    await service.start()
    yield url
    await server.stop()


@pytest_asyncio.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield session


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        ("text/html", TEXT),
        # What Prometheus 3 sends: by default, with native histograms, and with one protocol alone.
        (
            (
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.7,"
                "application/openmetrics-text;version=0.0.1;q=0.6,"
                "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=0.0.4;q=0.4,"
                "*/*;q=0.3"
            ),
            OPENMETRICS,
        ),
        (
            (
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;"
                "encoding=delimited;q=0.7,"
                "application/openmetrics-text;version=1.0.0;escaping=underscores;q=0.6,"
                "application/openmetrics-text;version=0.0.1;q=0.5,"
                "text/plain;version=1.0.0;escaping=underscores;q=0.4,text/plain;version=0.0.4;q=0.3,"
                "*/*;q=0.2"
            ),
            OPENMETRICS,
        ),
        ("application/openmetrics-text;version=2.0.0;escaping=values;q=0.7,*/*;q=0.6", TEXT),
        ("text/plain;version=1.0.0;escaping=allow-utf-8;q=0.7,*/*;q=0.6", TEXT),
        ("application/openmetrics-text", OPENMETRICS),
        ("application/openmetrics-text; version=abc", TEXT),
        ("application/openmetrics-text;version=2.0.0", TEXT),
        ('application/openmetrics-text;version="1.0.0";q=0.5, text/plain;q=0.4', OPENMETRICS),
        ("application/openmetrics-text;q=0.2, text/plain;version=0.0.4;q=0.3", TEXT),
        ("application/openmetrics-text;q=0, */*", TEXT),
        ("application/openmetrics-text;q=nan", TEXT),
        ("application/openmetrics-text;q=2;;;=,,;", TEXT),
        ("application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily", TEXT),
        ("\u00ff;q=\u00ff", TEXT),
    ],
)
async def test_any_accept_gets_an_answer(
    shared: str, http: aiohttp.ClientSession, accept: str, expected: str
) -> None:
    async with http.get(f"{shared}/metrics", headers={"Accept": accept}) as answer:
        assert (answer.status, answer.headers["Content-Type"]) == (200, expected)


@pytest.mark.parametrize(
    ("encoding", "compressed"),
    [
        ("gzip", True), ("gzip;q=0", False), ("identity", False), ("*", True), ("*;q=0", False),
        ("br, gzip;q=0.1", True), ("", False), ("gzip;q=x", False),
    ],
)  # fmt: skip
async def test_gzip(
    shared: str, http: aiohttp.ClientSession, encoding: str, *, compressed: bool
) -> None:
    async with http.get(f"{shared}/metrics", headers={"Accept-Encoding": encoding}) as answer:
        body = await answer.read()
        assert (answer.headers.get("Content-Encoding") == "gzip") is compressed
        text = (gzip.decompress(body) if compressed else body).decode()
    assert "esms_exporter_build_info" in text
    assert "Accept" in answer.headers["Vary"]


async def test_the_other_paths(shared: str, http: aiohttp.ClientSession) -> None:
    for method, path, status in (
        ("GET", "/-/healthy", 200),
        ("GET", "/-/ready", 200),
        ("HEAD", "/metrics", 200),
        ("HEAD", "/", 200),
        ("GET", "/nothing", 404),
        ("GET", "/-/reload", 405),
        ("POST", "/metrics", 405),
    ):
        async with http.request(method, shared + path) as answer:
            assert (method, path, answer.status) == (method, path, status)
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert method != "HEAD" or await answer.read() == b""
    async with http.get(f"{shared}/") as answer:
        page = await answer.text()
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert 'href="metrics"' in page
    assert ">main</h3>" in page
    assert ">other</h3>" in page


async def test_not_ready_before_it_has_started(service: App, http: aiohttp.ClientSession) -> None:
    server = WebServer(service, WebOptions([LOOPBACK]))
    (url,) = await server.start()
    async with http.get(f"{url}/-/ready") as answer:
        assert (answer.status, await answer.text()) == (503, "starting: the ledger is being read\n")
    async with http.get(f"{url}/") as answer:
        assert "Not ready: starting" in await answer.text()
    async with http.get(f"{url}/-/healthy") as answer:
        assert answer.status == 200
    await server.stop()


async def test_an_address_in_use(service: App, shared: str) -> None:
    address = ListenAddress.parse(shared.removeprefix("http://"))
    server = WebServer(service, WebOptions([address]))
    with pytest.raises(ListenError, match=rf"^cannot listen on 127\.0\.0\.1:{address.port}: "):
        await server.start()
    await server.stop()


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        (":10375", "", 10375),
        ("127.0.0.1:10375", "127.0.0.1", 10375),
        ("[::1]:10375", "::1", 10375),
        ("localhost:0", "localhost", 0),
    ],
)
def test_listen_addresses(text: str, host: str, port: int) -> None:
    assert ListenAddress.parse(text) == ListenAddress(host, port)
    assert str(ListenAddress(host, port)) == text


@pytest.mark.parametrize(
    "text", ["", "10375", "::1:10375", "127.0.0.1:", ":65536", ":-1", ":x", "[::1]", ":\u0661"]
)
def test_what_is_no_listen_address(text: str) -> None:
    with pytest.raises(ValueError, match=r"^expected `:10375`, "):
        ListenAddress.parse(text)


@given(st.text())
def test_no_header_is_too_odd(text: str) -> None:
    assert wants_openmetrics(text) in (True, False)
    assert accepts_gzip(text) in (True, False)


@pytest.mark.parametrize("number", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
def test_a_machine_without_ipv6_listens_on_what_there_is(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    real, kind, resolve = socket.socket, socket.SOCK_STREAM, socket.getaddrinfo

    class OnlyIPv4(real):  # type: ignore[misc, valid-type] # the class that is patched
        def __init__(self, family: int = socket.AF_INET, *given: Any, **named: Any) -> None:
            if family == socket.AF_INET6:
                raise OSError(number, os.strerror(number))
            super().__init__(family, *given, **named)

    def with_ipv6_first(host: str, port: int, *given: Any, **named: Any) -> list[Any]:
        if host != "localhost":
            return resolve(host, port, *given, **named)
        both = (socket.AF_INET6, ("::1", port, 0, 0)), (socket.AF_INET, ("127.0.0.1", port))
        return [(family, kind, 6, "", address) for family, address in both]

    monkeypatch.setattr(socket, "socket", OnlyIPv4)
    monkeypatch.setattr(socket, "getaddrinfo", with_ipv6_first)
    for host, address in (("localhost", "127.0.0.1"), ("", "0.0.0.0")):
        (listener,) = listen([ListenAddress(host, 0)])
        with listener:
            assert listener.getsockname()[0] == address
    with pytest.raises(ListenError, match=r"^cannot listen on \[::1\]:0: "):
        listen([ListenAddress("::1", 0)])


async def test_every_address_gets_a_line(service: App, http: aiohttp.ClientSession) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    addresses = [LOOPBACK, ListenAddress("localhost", 0), ListenAddress("", port)]
    server = WebServer(service, WebOptions(addresses, "/other"))
    try:
        urls = await server.start()
        assert len(urls) >= 3
        # One line for all addresses of the machine, IPv4 and IPv6.
        assert f"http://localhost:{port}" in urls
        for url in urls:
            async with http.get(f"{url}/other") as answer:
                assert answer.status == 200
    finally:
        await server.stop()
