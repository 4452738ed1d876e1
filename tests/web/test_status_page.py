"""The status page of a real exporter, behind its real server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest_asyncio

from exporter.errors import ConfigError, Problem
from exporter.ids import Kind, reference_id
from exporter.ledger.types import NewCall
from exporter.simulator import Account, AccountState, Plan
from tests.waiting import deadline, until
from tests.web.bench import Bench, basic, users

IDS = {"main": "11111111-AAAA", "b": "22222222-BBBB"}


async def watch(
    bench: Bench, name: str = "third", account: str = "main", kind: Kind | None = None
) -> None:
    await bench.app.calls.push([[NewCall(account, reference_id(name), {}, kind)]])


@pytest_asyncio.fixture
async def failed(idle: Bench) -> Bench:
    """Return a bench with a call of each account that has failed."""
    for account, name in IDS.items():
        idle.simulator.add_call(account, name, Plan(sent_result=0, call_status="BUSY"))
    await idle.start("")
    for account, name in IDS.items():
        await watch(idle, name, account)
    await until(lambda: idle.app.calls.count == 0)
    return idle


async def page_with(bench: Bench, text: str, **headers: Any) -> str:
    """Return the page once it shows a text."""
    async with deadline():
        while text not in (page := (await bench.get("/", **headers))[1]):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    return page


def shown(page: str) -> set[str]:
    return {account for account, name in IDS.items() if name in page}


async def test_languages_and_refresh(bench: Bench) -> None:
    for query, accept, language in (
        ("", "vi-VN,vi;q=0.9", "vi"),
        ("", "fr", "en"),
        ("?lang=en", "vi", "en"),
        ("?lang=vi", "en", "vi"),
        ("?lang=%3Cb%3E", "vi", "vi"),
        ("?lang=../en&refresh=1", "", "en"),
    ):
        response, page = await bench.get(f"/{query}", Accept_Language=accept)
        assert f'<html lang="{language}">' in page
        assert response.headers["Content-Language"] == language
        assert "Accept-Language" in response.headers["Vary"]
        assert response.headers["Refresh"] == "15"
    response, _ = await bench.get("/?refresh=off")
    assert "Refresh" not in response.headers


async def test_tokens_and_users_show_ids(failed: Bench) -> None:
    for header, accounts in (
        ("", set[str]()),
        ("Bearer token-all", {"main", "b"}),
        ("bearer token-b", {"b"}),
        ("Bearer wrong", set()),
        ("Basic dG9rZW4tYWxsOg==", set()),
    ):
        response, page = await failed.get("/", Authorization=header or "none")
        assert (response.status, shown(page)) == (200, accounts)
        assert page.count("Failed: Busy") == 2
    await failed.rewrite(users(reader="right"))
    response, page = await failed.get(Authorization=basic("reader", "right"))
    assert (response.status, shown(page)) == (200, {"main", "b"})
    for header in (basic("reader", "wrong"), "Bearer token-all"):
        response, page = await failed.get(Authorization=header)
        assert (response.status, shown(page)) == (401, set())


async def test_a_message_that_failed_is_shown_as_one_also_after_a_restart(bench: Bench) -> None:
    bench.simulator.add_call("main", "otp", Plan(receivers=1, failed=1))
    await watch(bench, "otp", kind=Kind.MESSAGE)
    page = await page_with(bench, "Failed (message)")
    assert "Open messages" in page
    recent = bench.app.calls.recent_results
    recent.forget("main")
    assert "Failed (message)" not in (await bench.get("/"))[1]
    await bench.app.calls.load_totals(["main"])
    assert "Failed (message)" in (await bench.get("/"))[1]


async def test_problems_of_the_last_reload(failed: Bench) -> None:
    def fail() -> None:
        problem = Problem("config.yaml", 7, "accounts[0].name", "expected <a name>")
        raise ConfigError((problem,))

    failed.loading = fail
    assert await failed.status("/-/reload", "POST") == 400
    _, page = await failed.get()
    assert "config.yaml:7: accounts[0].name: expected &lt;a name&gt;" in page
    failed.loading = lambda: None
    assert await failed.status("/-/reload", "POST") == 200
    _, page = await failed.get()
    assert "config.yaml:7" not in page
    assert "No problems." in page
    failed.web.write_text("unknown: 1\n")
    assert await failed.status("/-/reload", "POST") == 400
    _, page = await failed.get()
    assert "web.yml:1: unknown" in page


async def test_sources_with_their_health(bench: Bench, tmp_path: Path) -> None:
    calls = tmp_path / "calls.csv"
    calls.write_text("reference_id,account\nbad id,main\n")
    await bench.configure(files=(str(calls),))
    page = await page_with(bench, f"{calls}:2", Authorization="Bearer token-all")
    assert "Source “Files” failing: " in page
    _, page = await bench.get()
    assert str(calls) not in page
    calls.write_text("reference_id,account\ngood-id,main\n")
    await page_with(bench, "No problems.")
    await bench.configure(files=())
    _, page = await bench.get()
    assert ">Files</th>" not in page


async def test_a_pause_with_its_reason(bench: Bench) -> None:
    bench.simulator.put_account(Account("main", "key-main", "s", state=AccountState.REVOKED))
    await watch(bench)
    account = bench.app.accounts["main"]
    await until(lambda: account.status.paused is not None)
    said = account.status.message
    assert said
    _, page = await bench.get()
    assert "main: credentials refused." in page
    assert "Result code 101." in page
    assert said not in page
    _, page = await bench.get(Authorization="Bearer token-all")
    assert said in page
    # Not any longer than it lasts.
    bench.simulator.put_account(Account("main", "key-main", "s"))
    account.poller.retry()
    await until(lambda: account.status.paused is None)
    assert (account.status.code, account.status.message) == (None, "")
