"""Behind a proxy with a path: what `--web.external-url` and `--web.route-prefix` do."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urljoin

import aiohttp
import bcrypt
import click
import pytest

from exporter.app import App
from exporter.cli.run import web_paths
from exporter.config import (
    AccountConfig,
    ApiConfig,
    BalanceConfig,
    Config,
    LedgerConfig,
    TokenConfig,
    WatchConfig,
)
from exporter.secrets import Secret
from exporter.sources.configuration import ConfigFile
from exporter.web.server import WebOptions, WebServer
from exporter.web.sockets import ListenAddress
from exporter.web.web_config import load_web_config

TOKEN = Secret("made-up-token")
HASH = bcrypt.hashpw(b"right", bcrypt.gensalt(4)).decode()


@pytest.mark.parametrize(
    ("external_url", "route_prefix", "external_path", "prefix"),
    [
        ("", "", "", ""),
        ("https://example.com", "", "", ""),
        ("https://example.com/", "/", "", ""),
        ("https://example.com/esms/", "", "/esms", "/esms"),
        ("https://example.com/a/b", "", "/a/b", "/a/b"),
        ("https://example.com/a/b", "/", "/a/b", ""),
        ("https://example.com/a", "b/", "/a", "/b"),
        ("https://example.com", "/b", "", "/b"),
        ("/esms/", "", "/esms", "/esms"),
        ("esms", "", "/esms", "/esms"),
        ("", "//esms//", "/esms", "/esms"),
    ],
)
def test_paths_are_those_of_prometheus(
    external_url: str, route_prefix: str, external_path: str, prefix: str
) -> None:
    assert web_paths(external_url, route_prefix) == (external_path, prefix)


@pytest.mark.parametrize(
    ("external_url", "route_prefix"),
    [
        ("localhost:9090/x", ""),
        ("ftp://example.com/x", ""),
        ('"https://example.com/x"', ""),
        ("https://example.com/x?y", ""),
        ("https://example.com/x#y", ""),
        ("https:///x", ""),
        ("https://example.com/{x}", ""),
        ("", "/a/../b"),
        ("", "/a//b"),
        ("", "/{a}"),
        ("", "/a b"),
        ("", "/\n"),
    ],
)
def test_paths_that_cannot_be(external_url: str, route_prefix: str) -> None:
    with pytest.raises(click.BadParameter, match="expected"):
        web_paths(external_url, route_prefix)


def configuration(folder: Path) -> Config:
    account = AccountConfig(
        name="main", api_key=Secret("k"), secret_key=Secret("s"), callback_token=TOKEN
    )
    return Config(
        accounts=(account,),
        balance=BalanceConfig(interval=0.0),
        watch=WatchConfig(api=ApiConfig(tokens=(TokenConfig(name="t", token=TOKEN),))),
        ledger=LedgerConfig(url=f"sqlite:///{folder / 'ledger.db'}"),
        shutdown_timeout=1.0,
    )


@pytest.mark.parametrize("prefix", ["", "/esms", "/monitoring/esms"])
async def test_everything_is_under_the_prefix(tmp_path: Path, prefix: str) -> None:
    service = App(lambda: configuration(tmp_path))
    await service.open()
    await service.start()
    (tmp_path / "web.yml").write_text(f"basic_auth_users: {{a: {HASH}}}\n")
    web = ConfigFile(tmp_path / "web.yml", load_web_config)
    options = WebOptions(
        [ListenAddress("127.0.0.1", 0)],
        config=web,
        open_probes=True,
        route_prefix=prefix,
        external_path=prefix,
    )
    server = WebServer(service, options)
    (root,) = await server.start()
    password = aiohttp.encode_basic_auth("a", "right")
    token = f"Bearer {TOKEN.reveal()}"
    callback = f"/callback/main/{TOKEN.reveal()}?ReferenceId=r"
    try:
        async with aiohttp.ClientSession() as http:

            async def ask(url: str, login: str = "", method: str = "GET") -> tuple[int, str, str]:
                headers = {"Authorization": login} if login else {}
                async with http.request(method, url, headers=headers) as answer:
                    return answer.status, str(answer.url), await answer.text()

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
                (callback, "GET", "", 200),
                ("/callback/main/wrong", "GET", "", 404),
                ("/nothing", "GET", password, 404),
            ):
                found = await ask(f"{root}{prefix}{path}", login, method)
                assert found[0] == status, (path, found)
                if prefix:  # nothing is beside it
                    outside = await ask(f"{root}{path}", password, method)
                    assert outside[0] == 404, (path, outside)
            # What is wrong with a path of the API is told in the API's own way.
            _, _, problem = await ask(f"{root}{prefix}/api/v1/nothing", password)
            assert f"see {prefix}/api/v1/openapi.json" in problem
            _, _, described = await ask(f"{root}{prefix}/api/v1/openapi.json", token)
            assert ('"servers"' in described) is bool(prefix)
            assert f'"url": "{prefix}"' in described or not prefix
            # The root, and the prefix as it is written, lead to the page; and that to the rest.
            for start in ("/", prefix or "/"):
                found = await ask(f"{root}{start}", password)
                assert found[:2] == (200, f"{root}{prefix}/")
            _, url, page = await ask(f"{root}{prefix}/", password)
            links = re.findall(r'href="([^"#]*)"', page)
            assert {"metrics", "-/healthy", "-/ready"} <= set(links)
            for link in links:
                assert (await ask(urljoin(url, link), password))[0] == 200, link
            assert (await ask(f"{root}/"))[0] == 401
    finally:
        await server.stop()
        await service.stop()


async def test_a_proxy_that_takes_a_path_away_is_followed(tmp_path: Path) -> None:
    """Redirects are relative: the prefix may be another one outside."""
    service = App(lambda: configuration(tmp_path))
    await service.open()
    server = WebServer(
        service, WebOptions([ListenAddress("127.0.0.1", 0)], route_prefix="/inside/esms")
    )
    (root,) = await server.start()
    try:
        async with aiohttp.ClientSession() as http:
            for path, location in (("/", "./inside/esms/"), ("/inside/esms", "./esms/")):
                async with http.get(f"{root}{path}", allow_redirects=False) as answer:
                    assert (answer.status, answer.headers["Location"]) == (302, location)
    finally:
        await server.stop()
        await service.stop()
