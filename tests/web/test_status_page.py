"""The status page of a real service, behind its real server."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import bcrypt
import pytest
import pytest_asyncio

from exporter.app import App
from exporter.config import (
    AccountConfig,
    ApiConfig,
    BalanceConfig,
    Config,
    LedgerConfig,
    PollingConfig,
    TokenConfig,
    WatchConfig,
)
from exporter.errors import ConfigError, LedgerError, Problem
from exporter.ids import reference_id
from exporter.ledger.records import NewCall
from exporter.secrets import Secret
from exporter.simulator import Account, AccountState, Plan, Simulator
from exporter.sources.configuration import ConfigFile
from exporter.web.server import WebOptions, WebServer
from exporter.web.sockets import ListenAddress
from exporter.web.web_config import load_web_config
from tests.waiting import deadline, until

TOKENS = (
    TokenConfig(name="all", token=Secret("token-all")),
    TokenConfig(name="b", token=Secret("token-b"), accounts=("b",)),
)
IDS = {"main": "11111111-AAAA", "b": "22222222-BBBB"}


class Bench:
    """A service whose calls have failed, and its page."""

    def __init__(self, simulator: Simulator, folder: Path) -> None:
        self.folder = folder
        self.problem: Problem | None = None
        self.config = Config(
            accounts=tuple(
                AccountConfig(
                    name=name,
                    api_key=Secret(f"key-{name}"),
                    secret_key=Secret("s"),
                    base_url=simulator.url,
                )
                for name in IDS
            ),
            polling=PollingConfig(interval=0.1, max_interval=0.1),
            balance=BalanceConfig(interval=0.0),
            watch=WatchConfig(api=ApiConfig(tokens=TOKENS)),
            ledger=LedgerConfig(url=f"sqlite:///{folder / 'ledger.db'}"),
            shutdown_timeout=1,
        )
        self.service = App(self.load)
        self.servers: list[WebServer] = []

    def load(self) -> Config:
        if self.problem:
            raise ConfigError((self.problem,))
        return self.config

    async def serve(self, web: str | None = None) -> str:
        config = None
        if web is not None:
            (self.folder / "web.yml").write_text(web)
            config = ConfigFile(self.folder / "web.yml", load_web_config)
        self.servers.append(
            WebServer(self.service, WebOptions([ListenAddress("127.0.0.1", 0)], config=config))
        )
        (url,) = await self.servers[-1].start()
        return url

    def failures(self, account: str = "main") -> int:
        recent = self.service.calls.histories.recent(account, 0)
        return len(recent.failures)


@pytest_asyncio.fixture
async def simulator() -> AsyncIterator[Simulator]:
    accounts = [Account(name, f"key-{name}", "s") for name in IDS]
    async with Simulator(accounts=accounts) as simulator:
        for account, name in IDS.items():
            simulator.add_call(account, name, Plan(sent_result=0, call_status="BUSY"))
        yield simulator


@pytest_asyncio.fixture
async def bench(simulator: Simulator, tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(simulator, tmp_path)
    await bench.service.open()
    await bench.service.start()
    await bench.service.calls.add(
        None, [NewCall(account, reference_id(name), {}) for account, name in IDS.items()]
    )
    await until(lambda: bench.failures("main") == bench.failures("b") == 1)
    yield bench
    for server in bench.servers:
        await server.stop()
    await bench.service.stop()


async def get(url: str, query: str = "", **headers: str) -> tuple[str, aiohttp.ClientResponse]:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"{url}/{query}", headers=names) as answer,
    ):
        return await answer.text(), answer


async def page_with(url: str, text: str, **headers: str) -> str:
    """Return the page once it shows a text."""
    async with deadline():
        while text not in (page := (await get(url, **headers))[0]):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    return page


def basic(credentials: str) -> str:
    return f"Basic {b64encode(credentials.encode()).decode()}"


def shown(page: str) -> set[str]:
    return {account for account, name in IDS.items() if name in page}


@pytest.mark.parametrize(
    ("query", "accept", "language"),
    [
        ("", "vi-VN,vi;q=0.9", "vi"),
        ("", "fr", "en"),
        ("?lang=en", "vi", "en"),
        ("?lang=vi", "en", "vi"),
        ("?lang=<b>", "vi", "vi"),
        ("?lang=../en&refresh=1", "", "en"),
    ],
)
async def test_languages(bench: Bench, query: str, accept: str, language: str) -> None:
    page, answer = await get(await bench.serve(), query, Accept_Language=accept)
    assert f'<html lang="{language}">' in page
    assert answer.headers["Content-Language"] == language
    assert "Accept-Language" in answer.headers["Vary"]
    assert answer.headers["Refresh"] == "15"


async def test_it_renews_itself_until_that_is_stopped(bench: Bench) -> None:
    _, answer = await get(await bench.serve(), "?refresh=off")
    assert "Refresh" not in answer.headers


@pytest.mark.parametrize(
    ("authorization", "accounts"),
    [
        (None, set()),
        ("Bearer token-all", {"main", "b"}),
        ("bearer token-b", {"b"}),
        ("Bearer wrong", set()),
        ("Basic dG9rZW4tYWxsOg==", set()),
    ],
)
async def test_tokens_show_the_ids_of_their_accounts(
    bench: Bench, authorization: str | None, accounts: set[str]
) -> None:
    headers = {"Authorization": authorization} if authorization else {}
    page, answer = await get(await bench.serve(), **headers)
    assert answer.status == 200
    assert shown(page) == accounts
    assert page.count("Failed: Busy") == 2


async def test_users_see_all_ids(bench: Bench) -> None:
    hashed = bcrypt.hashpw(b"right", bcrypt.gensalt(4)).decode()
    url = await bench.serve(f"basic_auth_users: {{reader: {hashed}}}\n")
    page, answer = await get(url, Authorization=basic("reader:right"))
    assert (answer.status, shown(page)) == (200, {"main", "b"})
    for header in (basic("reader:wrong"), "Bearer token-all"):
        page, answer = await get(url, Authorization=header)
        assert (answer.status, shown(page)) == (401, set())


async def test_what_has_happened_is_there_after_a_restart(
    bench: Bench, simulator: Simulator
) -> None:
    simulator.add_call("main", "third", Plan(duration=5))
    await bench.service.calls.add(None, [NewCall("main", reference_id("third"), {})])
    await until(lambda: bench.service.calls.count == 0)
    before = await get(await bench.serve())
    for server in bench.servers:
        await server.stop()
    await bench.service.stop()
    bench.servers = []
    bench.service = App(bench.load)
    await bench.service.open()
    await bench.service.start()
    after = await get(await bench.serve())
    for page, _ in (before, after):
        assert '<dd class="large">50%</dd>' in page
        assert "▲ 1 delivered" in page
        assert "▼ 1 failed or never told" in page
        assert page.count("Failed: Busy") == 2


async def test_a_call_counts_once_it_is_durable(
    bench: Bench, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, service = await bench.serve(), bench.service
    simulator.add_call("main", "third", Plan())

    def fail(*_: object) -> None:
        raise LedgerError("disk full")

    with monkeypatch.context() as broken:
        broken.setattr(service.ledger.store, "commit", fail)
        await service.calls.add(None, [NewCall("main", reference_id("third"), {})])
        await until(lambda: service.ledger.problem is not None and bool(service.ledger._pending))
        page, _ = await get(url)
    assert "Not ready: disk full" in page
    assert "▲ 1 delivered" not in page
    await until(lambda: service.calls.count == 0)
    page, _ = await get(url)
    assert "▲ 1 delivered" in page


async def test_problems_of_the_last_reload(bench: Bench) -> None:
    url = await bench.serve("{}")
    bench.problem = Problem("config.yaml", 7, "accounts[0].name", "expected <a name>")
    async with aiohttp.ClientSession() as http:
        async with http.post(f"{url}/-/reload") as answer:
            assert answer.status == 400
        page, _ = await get(url)
        assert "config.yaml:7: accounts[0].name: expected &lt;a name&gt;" in page
        bench.problem = None
        async with http.post(f"{url}/-/reload") as answer:
            assert answer.status == 200
    page, _ = await get(url)
    assert "config.yaml:7" not in page
    assert "All is well." in page


async def test_a_web_configuration_that_is_no_good(bench: Bench) -> None:
    url = await bench.serve("{}")
    (bench.folder / "web.yml").write_text("unknown: 1\n")
    async with aiohttp.ClientSession() as http, http.post(f"{url}/-/reload") as answer:
        assert answer.status == 400
    page, _ = await get(url)
    assert "web.yml:1: unknown" in page


async def test_sources_with_their_health(bench: Bench) -> None:
    url = await bench.serve()
    calls = bench.folder / "calls.csv"
    calls.write_text("reference_id,account\nbad id,main\n")
    watch = bench.config.watch.model_copy(update={"files": (str(calls),)})
    bench.config = bench.config.model_copy(update={"watch": watch})
    await bench.service.reload()
    page = await page_with(url, f"{calls}:2", Authorization="Bearer token-all")
    assert "Source “Files”: not as it should be." in page
    page, _ = await get(url)
    assert str(calls) not in page
    calls.write_text("reference_id,account\ngood-id,main\n")
    await page_with(url, "All is well.")
    watch = watch.model_copy(update={"files": ()})
    bench.config = bench.config.model_copy(update={"watch": watch})
    await bench.service.reload()
    page, _ = await get(url)
    assert ">Files</th>" not in page


async def test_a_pause_with_its_reason(bench: Bench, simulator: Simulator) -> None:
    url = await bench.serve()
    simulator.put_account(Account("main", "key-main", "s", state=AccountState.REVOKED))
    await bench.service.calls.add(None, [NewCall("main", reference_id("third"), {})])
    account = bench.service.accounts["main"]
    await until(lambda: account.status.paused is not None)
    said = account.status.message
    assert said
    page, _ = await get(url)
    assert "main: the credentials are refused." in page
    assert "Result code 101." in page
    assert said not in page
    page, _ = await get(url, Authorization="Bearer token-all")
    assert said in page
    # Not any longer than it lasts.
    simulator.put_account(Account("main", "key-main", "s"))
    account.poller.retry()
    await until(lambda: account.status.paused is None)
    assert (account.status.code, account.status.message) == (None, "")
    page, _ = await get(url)
    assert "Result code 101." not in page
