"""Metrics and probes; where the server listens; and what is under a prefix of paths."""

from __future__ import annotations

import errno
import gzip
import os
import re
import socket
from typing import Any
from urllib.parse import urljoin, urlsplit

import aiohttp
import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.cli.run import page_url, web_paths
from exporter.errors import ExporterError
from exporter.metrics.exposition import OPENMETRICS, TEXT, accepts_gzip, wants_openmetrics
from exporter.web.server import WebOptions, WebServer
from exporter.web.sockets import ListenAddress, listen
from exporter.web.status_page import LANGUAGES, choose_language
from tests.web.bench import Bench, basic, users

# What Prometheus 3 sends: by default, and with native histograms.
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.7,"
    "application/openmetrics-text;version=0.0.1;q=0.6,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=0.0.4;q=0.4,*/*;q=0.3"
)
PROTOBUF = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily"
NATIVE = (
    f"{PROTOBUF};encoding=delimited;q=0.7,"
    "application/openmetrics-text;version=1.0.0;escaping=underscores;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=underscores;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


async def test_any_accept_gets_an_answer(bench: Bench) -> None:
    for accept, expected in (
        ("", TEXT),
        ("*/*", TEXT),
        ("text/html", TEXT),
        (PROMETHEUS, OPENMETRICS),
        (NATIVE, OPENMETRICS),
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
        (PROTOBUF, TEXT),
        ("\u00ff;q=\u00ff", TEXT),
    ):
        response, _ = await bench.get("/metrics", Accept=accept)
        assert (response.status, response.headers["Content-Type"]) == (200, expected), accept


async def test_gzip(bench: Bench) -> None:
    async with aiohttp.ClientSession(auto_decompress=False) as http:
        for encoding, compressed in (
            ("gzip", True), ("gzip;q=0", False), ("identity", False), ("*", True), ("*;q=0", False),
            ("br, gzip;q=0.1", True), ("", False), ("gzip;q=x", False),
        ):  # fmt: skip
            headers = {"Accept-Encoding": encoding}
            async with http.get(f"{bench.url}/metrics", headers=headers) as response:
                body = await response.read()
            assert (response.headers.get("Content-Encoding") == "gzip") is compressed
            text = (gzip.decompress(body) if compressed else body).decode()
            assert "esms_exporter_build_info" in text
            assert "Accept" in response.headers["Vary"]


@given(st.text())
def test_no_header_is_too_odd(text: str) -> None:
    assert wants_openmetrics(text) in (True, False)
    assert accepts_gzip(text) in (True, False)
    assert choose_language(text) in LANGUAGES


async def test_the_other_paths(bench: Bench) -> None:
    for method, path, status in (
        ("HEAD", "/metrics", 200),
        ("HEAD", "/", 200),
        ("GET", "/-/reload", 405),
        ("POST", "/metrics", 405),
    ):
        response, text = await bench.get(path, method)
        assert (method, path, response.status) == (method, path, status)
        assert method != "HEAD" or text == ""
    response, page = await bench.get("/")
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    assert 'href="metrics"' in page
    assert ">main</h3>" in page
    assert ">b</h3>" in page


async def test_not_ready_before_it_has_started(idle: Bench) -> None:
    await idle.app.open()
    await idle.serve()
    response, text = await idle.get("/-/ready")
    assert (response.status, text) == (503, "starting: the ledger is being read\n")
    assert "Not ready: starting" in (await idle.get("/"))[1]
    assert await idle.status("/-/healthy") == 200
    assert await idle.status("/api/v1/status") == 503


# Where it listens.


def test_listen_addresses() -> None:
    for text, *parts in (
        (":10375", "", 10375),
        ("127.0.0.1:10375", "127.0.0.1", 10375),
        ("[::1]:10375", "::1", 10375),
        ("localhost:0", "localhost", 0),
    ):
        address = ListenAddress.parse(text)
        assert [address.host, address.port, str(address)] == [*parts, text]
    for text in (
        "",
        "1",
        "::1:1",
        "127.0.0.1:",
        ":65536",
        ":-1",
        ":x",
        "[::1]",
        ":\u0661",
        "a..b:1",
        "\udcff:1",
    ):
        with pytest.raises(ValueError, match=r"^expected `:10375`, "):
            ListenAddress.parse(text)


async def test_an_address_in_use(bench: Bench) -> None:
    address = ListenAddress("127.0.0.1", bench.port)
    server = WebServer(bench.app, WebOptions([address]))
    with pytest.raises(ExporterError, match=rf"^cannot listen on 127\.0\.0\.1:{address.port}: "):
        await server.start()
    await server.stop()


async def test_every_address_gets_a_line(bench: Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    addresses = [("127.0.0.1", 0), ("localhost", 0), ("", port)]
    server = WebServer(
        bench.app, WebOptions([ListenAddress(*address) for address in addresses], "/other")
    )
    try:
        urls = await server.start()
        assert len(urls) >= 3
        # One line for all addresses of the machine, IPv4 and IPv6.
        assert f"http://localhost:{port}" in urls
        for url in urls:
            async with bench.http.get(f"{url}/other") as response:
                assert response.status == 200
    finally:
        await server.stop()


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
    with pytest.raises(ExporterError, match=r"^cannot listen on \[::1\]:0: "):
        listen([ListenAddress("::1", 0)])


# Behind a proxy with a path.


@pytest.mark.parametrize(
    ("external_url", "route_prefix", "paths"),
    [
        ("", "", ("", "")),
        ("https://example.com", "", ("", "")),
        ("https://example.com/", "/", ("", "")),
        ("https://example.com/esms/", "", ("/esms", "/esms")),
        ("https://example.com/a/b", "", ("/a/b", "/a/b")),
        ("https://example.com/a/b", "/", ("/a/b", "")),
        ("https://example.com/a", "b/", ("/a", "/b")),
        ("https://example.com", "/b", ("", "/b")),
        ("/esms/", "", ("/esms", "/esms")),
        ("esms", "", ("/esms", "/esms")),
        ("", "//esms//", ("/esms", "/esms")),
        ("localhost:9090/x", "", None),
        ("ftp://example.com/x", "", None),
        ('"https://example.com/x"', "", None),
        ("https://example.com/x?y", "", None),
        ("https://example.com/x#y", "", None),
        ("https:///x", "", None),
        ("https://example.com/{x}", "", None),
        ("", "/a/../b", None),
        ("", "/a//b", None),
        ("", "/{a}", None),
        ("", "/a b", None),
        ("", "/\n", None),
    ],
)
def test_paths_are_those_of_prometheus(
    external_url: str, route_prefix: str, paths: tuple[str, str] | None
) -> None:
    if paths is None:
        with pytest.raises(click.BadParameter, match="expected"):
            web_paths(external_url, route_prefix)
    else:
        assert web_paths(external_url, route_prefix) == paths


@pytest.mark.parametrize(
    ("external_url", "expected"),
    [
        ("", None),
        ("/esms", None),
        ("https://example.com", "https://example.com/"),
        ("http://[::1]:8080/esms/", "http://[::1]:8080/esms/"),
    ],
)
def test_the_url_of_the_status_page(external_url: str, expected: str | None) -> None:
    assert page_url(external_url) == expected
    for wrong in ("https://user:password@example.com", "https://a b", "https://example.com:0"):
        with pytest.raises(click.BadParameter, match="expected"):
            page_url(wrong)


@pytest.mark.parametrize("prefix", ["", "/esms", "/monitoring/esms"])
async def test_everything_is_under_the_prefix(idle: Bench, prefix: str) -> None:
    bench = idle
    options = {"open_probes": True, "route_prefix": prefix, "external_path": prefix}
    await bench.start(users(a="right"), **options)
    password, token = basic("a", "right"), "Bearer token-all"
    for path, method, login, status in (
        ("/metrics", "GET", password, 200),
        ("/metrics", "GET", "", 401),
        ("/-/healthy", "GET", "", 200),
        ("/-/ready", "GET", "", 200),
        ("/-/reload", "POST", password, 200),
        ("/-/reload", "POST", "", 401),
        ("/api/v1/status", "GET", token, 200),
        ("/api/v1/status", "GET", "", 401),
        ("/api/v1/nothing", "GET", password, 404),
        ("/callback/main/made%2Fup%20token?ReferenceId=r", "GET", "", 200),
        ("/callback/main/wrong", "GET", "", 404),
        ("/nothing", "GET", password, 404),
    ):
        headers = {"Authorization": login} if login else {}
        assert await bench.status(f"{prefix}{path}", method, **headers) == status, path
        if prefix:  # nothing is beside it
            assert await bench.status(path, method, Authorization=password) == 404, path
    # What is wrong with a path of the API is told in the API's own way.
    _, problem = await bench.get(f"{prefix}/api/v1/nothing", Authorization=password)
    assert f"see {prefix}/api/v1/openapi.json" in problem
    _, described = await bench.get(f"{prefix}/api/v1/openapi.json", Authorization=token)
    assert ('"servers"' in described) is bool(prefix)
    assert f'"url": "{prefix}"' in described or not prefix
    # The root, and the prefix as it is written, redirect to the page: relatively, as a proxy may
    # serve another path.
    if prefix:
        last = prefix[prefix.rindex("/") :]
        for start, location in (("/", f".{prefix}/"), (prefix, f".{last}/")):
            response, _ = await bench.get(start, Authorization=password)
            assert (response.status, response.headers["Location"]) == (302, location)
    assert await bench.status("/") == 401
    _, page = await bench.get(f"{prefix}/", Authorization=password)
    links = re.findall(r'href="([^"#]*)"', page)
    assert {"metrics", "-/healthy", "-/ready"} <= set(links)
    for link in links:
        parts = urlsplit(urljoin(f"{prefix}/", link))
        found = f"{parts.path}?{parts.query}"
        assert await bench.status(found, Authorization=password) == 200, link
