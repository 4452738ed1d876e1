from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)

from exporter.metrics.exposition import OPENMETRICS, TEXT
from exporter.simulator import Account, AccountState, Plan, Simulator
from tests import subprocesses
from tests.e2e.commands import run
from tests.e2e.processes import Exporter, Series, parsed, total
from tests.ports import free_port
from tests.waiting import deadline

LIVE = Plan(queued=10_000)

# Every metric of polling, of the ledger and of the exporter itself: type and labels.
CATALOGUE = {
    "esms_calls": ("counter", {"account", "result", "status", "campaign"}),
    "esms_call_duration_seconds": ("histogram", {"account", "campaign"}),
    "esms_call_keypresses": ("counter", {"account", "key", "campaign"}),
    "esms_call_result_delay_seconds": ("histogram", {"account"}),
    "esms_call_price_vnd": ("counter", {"account", "campaign"}),
    "esms_callbacks": ("counter", {"account", "outcome"}),
    "esms_calls_watched": ("gauge", {"account", "state"}),
    "esms_oldest_watched_call_timestamp_seconds": ("gauge", {"account"}),
    "esms_api_requests": ("counter", {"account", "operation", "outcome"}),
    "esms_api_result_codes": ("counter", {"account", "operation", "code"}),
    "esms_api_odd_values": ("counter", {"account", "field"}),
    "esms_api_request_duration_seconds": ("histogram", {"account", "operation"}),
    "esms_auth_failures": ("counter", {"account", "code"}),
    "esms_account_authorized": ("gauge", {"account"}),
    "esms_account_paused_until_timestamp_seconds": ("gauge", {"account"}),
    "esms_account_balance_vnd": ("gauge", {"account"}),
    "esms_account_balance_timestamp_seconds": ("gauge", {"account"}),
    "esms_account_balance_warning_vnd": ("gauge", {"account"}),
    "esms_last_successful_poll_timestamp_seconds": ("gauge", {"account"}),
    "esms_poll_lag_seconds": ("histogram", {"account"}),
    "esms_ledger_commit_duration_seconds": ("histogram", set()),
    "esms_ledger_errors": ("counter", set()),
    "esms_replicas": ("gauge", set()),
    "esms_replica_last_heartbeat_timestamp_seconds": ("gauge", set()),
    "esms_account_lease": ("gauge", {"account"}),
    "esms_replica_evictions": ("counter", set()),
    "esms_source_last_success_timestamp_seconds": ("gauge", {"source"}),
    "esms_source_errors": ("counter", {"source"}),
    "esms_exporter_build_info": ("gauge", {"version", "python_version"}),
    "esms_exporter_config_last_reload_successful": ("gauge", set()),
    "esms_exporter_config_last_reload_success_timestamp_seconds": ("gauge", set()),
    "esms_exporter_log_lines_dropped": ("counter", set()),
    "esms_exporter_tls_handshake_failures": ("counter", {"reason"}),
    "esms_exporter_tls_certificate_expiry_timestamp_seconds": ("gauge", set()),
}


@pytest_asyncio.fixture
async def simulator() -> AsyncIterator[Simulator]:
    accounts = [Account("main", "key-main", "s"), Account("other", "key-other", "s")]
    async with Simulator(accounts=accounts) as simulator:
        yield simulator


@pytest_asyncio.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, simulator: Simulator) -> Write:
    def write(
        *calls: str,
        accounts: tuple[str, ...] = ("main", "other"),
        labels: str = "[campaign]",
        ledger: str = "ledger.db",
        key: str = "key",
        balance: str = "0",
        more: str = "",
    ) -> Path:
        path = tmp_path / "config.yaml"
        lines = "".join(
            f"  - {{name: {name}, api_key: {key}-{name}, secret_key: s, "
            f"base_url: '{simulator.url}', balance_url: '{simulator.url}', balance_warning: 500}}\n"
            for name in accounts
        )
        watched = "".join(f"    - {call}\n" for call in calls)
        path.write_text(
            f"accounts:\n{lines}polling: {{interval: 200ms, max_interval: 200ms}}\n"
            f"balance: {{interval: {balance}}}\n"
            f"ledger: {{url: 'sqlite:///{tmp_path}/{ledger}'}}\n"
            f"watch:\n  labels: {labels}\n" + (f"  calls:\n{watched}" if calls else "") + more
        )
        return path

    return write


def call(name: str, account: str = "main", campaign: str = "otp") -> str:
    return f"{{reference_id: {name}, account: {account}, labels: {{campaign: {campaign}}}}}"


async def reload(http: aiohttp.ClientSession, exporter: Exporter) -> tuple[int, str]:
    async with http.post(f"{exporter.url}/-/reload") as answer:
        return answer.status, await answer.text()


async def test_every_metric_is_there_before_the_first_call_has_finished(
    write: Write, simulator: Simulator, http: aiohttp.ClientSession
) -> None:
    simulator.add_call("main", "a", LIVE)
    async with Exporter(write(call("a"), balance="1s")) as exporter:
        await exporter.ready()
        await exporter.until(
            lambda samples: (
                total(samples, "esms_api_requests_total", operation="get_send_status") > 0
                and total(samples, "esms_account_balance_vnd") > 0
            )
        )
        async with http.get(f"{exporter.url}/metrics", headers={"Accept": OPENMETRICS}) as answer:
            assert answer.headers["Content-Type"] == OPENMETRICS
            text = await answer.text()
        found = openmetrics_families(text)  # type: ignore[no-untyped-call]
        families = {family.name: family for family in found}
        for name, (kind, names) in CATALOGUE.items():
            family = families[name]
            assert family.type == kind
            assert family.documentation
            assert family.samples, name
            assert {key for sample in family.samples for key in sample.labels} - {"le"} == names
        # Without series: what is not configured here.
        shown = {name for name, family in families.items() if family.samples}
        assert {name for name in shown if name.startswith("esms_")} == set(CATALOGUE)
        assert {"process_cpu_seconds", "python_info"} <= families.keys()
        assert not [name for name in text.splitlines() if "_created" in name]
        async with http.get(f"{exporter.url}/metrics") as answer:
            assert answer.headers["Content-Type"] == TEXT
            plain = {name for name, _ in parsed(await answer.text())}
        endings = {"counter": "_total", "histogram": "_count", "gauge": ""}
        assert {name + endings[kind] for name, (kind, _) in CATALOGUE.items()} <= plain
        # The first failure alerts: the series is there, at 0, with the call's labels.
        samples = await exporter.scrape()
        assert total(samples, "esms_calls_total", campaign="otp") == 0
        labels = {
            "account": "main",
            "campaign": "otp",
            "result": "failure",
            "status": "no_answer",
        }
        assert samples["esms_calls_total", frozenset(labels.items())] == 0


async def test_refused_credentials_pause_and_recover(
    write: Write, simulator: Simulator, http: aiohttp.ClientSession
) -> None:
    for name in ("a", "b", "c"):
        simulator.add_call("main", name, Plan())
        simulator.add_call("other", name, Plan())
    simulator.put_account(Account("main", "key-main", "s", state=AccountState.REVOKED))
    calls = [call(name, account) for name in "abc" for account in ("main", "other")]
    async with Exporter(write(*calls)) as exporter:
        await exporter.ready()
        # One account's trouble does not delay the other's.
        samples = await exporter.until(lambda found: total(found, "esms_calls_total") == 3)
        assert total(samples, "esms_calls_total", account="other", result="success") == 3
        until = "esms_account_paused_until_timestamp_seconds"
        samples = await exporter.until(lambda found: total(found, until, account="main") > 0)
        assert total(samples, "esms_auth_failures_total", account="main", code="101") == 2
        assert total(samples, "esms_account_authorized", account="main") == 0
        assert total(samples, "esms_account_authorized", account="other") == 1
        assert total(samples, "esms_calls_watched", account="main") == 3
        assert total(samples, "esms_calls_watched", account="main", state="new") == 3
        async with http.get(exporter.url) as answer:
            assert "paused: credentials refused" in await answer.text()
        assert exporter.output.count('event="account paused"') == 1
        # New keys are tried at once, not when the pause ends.
        simulator.put_account(Account("main", "new-main", "s"))
        simulator.put_account(Account("other", "new-other", "s"))
        write(*calls, key="new")
        assert (await reload(http, exporter))[0] == 200
        samples = await exporter.until(lambda found: total(found, "esms_calls_total") == 6)
        assert total(samples, until) == 0
        assert total(samples, "esms_account_authorized", account="main") == 1
        assert total(samples, "esms_auth_failures_total") == 2


async def test_the_proxy_of_an_account_is_used_for_everything(
    write: Write, simulator: Simulator, tmp_path: Path
) -> None:
    simulator.add_call("main", "a", LIVE)
    config = write(call("a"), balance="1s")
    closed = "secret_key: s, proxy_url: 'http://u:hunter2@127.0.0.1:9',"
    config.write_text(config.read_text().replace("secret_key: s,", closed))
    async with Exporter(config, "--log.level=debug") as exporter:
        await exporter.ready()
        name, failed = "esms_api_requests_total", {"account": "main", "outcome": "connection"}
        await exporter.until(
            lambda found: (
                total(found, name, operation="get_send_status", **failed) > 0
                and total(found, name, operation="get_balance", **failed) > 0
            )
        )
        assert "hunter2" not in exporter.output
    ended = await run(tmp_path, "lookup", "a", "--account=main", f"--config.file={config}")
    assert ended.code == 1
    assert "connection" in ended.errors
    assert "hunter2" not in ended.errors + ended.output
    assert simulator.traffic.total("main") == 0


async def test_reload_takes_calls_in_and_lets_others_go(
    write: Write, simulator: Simulator, http: aiohttp.ClientSession
) -> None:
    for name in ("a", "b", "c"):
        simulator.add_call("main", name, LIVE)
    simulator.add_call("main", "done", Plan(ivr="1"))
    async with Exporter(write(call("a"), call("b"), call("done"))) as exporter:
        await exporter.ready()
        samples = await exporter.until(lambda found: total(found, "esms_calls_total") == 1)
        assert total(samples, "esms_calls_watched") == 2
        write(call("B"), call("c"), call("DONE"))
        exporter.send(signal.SIGHUP)
        await exporter.says('event="configuration reloaded"')
        samples = await exporter.until(
            lambda found: total(found, "esms_calls_watched", state="queued") == 2
        )
        asked = simulator.traffic.total("main")
        assert total(samples, "esms_calls_total") == 1  # neither again, nor the one let go
        assert total(samples, "esms_oldest_watched_call_timestamp_seconds", account="main") > 1e9
        # Other labels: projected anew, nothing is lost.
        write(call("b"), call("c"), call("done"), labels="[campaign, team]")
        assert await reload(http, exporter) == (200, "configuration reloaded\n")
        samples = await exporter.scrape()
        assert total(samples, "esms_calls_total", campaign="otp", team="") == 1
        assert total(samples, "esms_call_keypresses_total", key="1") == 1
        # An account that leaves takes its series along, and finds its totals when it is back.
        write(accounts=("other",))
        assert (await reload(http, exporter))[0] == 200
        samples = await exporter.scrape()
        assert {dict(labels).get("account", "other") for _, labels in samples} == {"other"}
        write(call("done"), call("new"))
        simulator.add_call("main", "new", Plan())
        assert (await reload(http, exporter))[0] == 200
        samples = await exporter.until(lambda found: total(found, "esms_calls_total") == 2)
        assert total(samples, "esms_calls_watched", account="main") == 0
        assert simulator.traffic.total("main") > asked
    # What was counted is there after a restart, and is not counted again.
    async with Exporter(write(call("done"), call("new"))) as exporter:
        await exporter.ready()
        samples = await exporter.scrape()
        assert total(samples, "esms_calls_total", campaign="otp", status="answered") == 2
        assert total(samples, "esms_call_duration_seconds_sum") == 26
        await asyncio.sleep(0.4)
        assert total(await exporter.scrape(), "esms_api_requests_total") == 0


async def test_a_bad_configuration_leaves_the_good_one_in_force(
    write: Write, simulator: Simulator, http: aiohttp.ClientSession
) -> None:
    simulator.add_call("main", "a", LIVE)
    path = write(call("a"))
    async with Exporter(path) as exporter:
        await exporter.ready()
        path.write_text("accounts: []\npoling: {}\n")
        status, text = await reload(http, exporter)
        assert status == 400
        assert len(text.splitlines()) == 2
        assert f"{path}:1: accounts" in text
        samples = await exporter.scrape()
        assert total(samples, "esms_exporter_config_last_reload_successful") == 0
        assert total(samples, "esms_source_errors_total", source="config") == 1
        asked = total(samples, "esms_api_requests_total")
        await exporter.until(lambda found: total(found, "esms_api_requests_total") > asked)
        write(call("a"), ledger="another.db")
        status, text = await reload(http, exporter)
        assert status == 400
        assert "ledger.url" in text
        write(call("a"))
        assert (await reload(http, exporter))[0] == 200
        samples = await exporter.scrape()
        assert total(samples, "esms_exporter_config_last_reload_successful") == 1


async def test_several_addresses(write: Write, http: aiohttp.ClientSession) -> None:
    async with Exporter(write(), "--web.listen-address=[::1]:0", "--log.format=json") as exporter:
        match = await exporter.says(r'"addresses": "(\S+) (\S+)"')
        for url in match.groups():
            async with http.get(f"{url}/-/healthy") as answer:
                assert answer.status == 200
        assert {url.rpartition(":")[0] for url in match.groups()} == {
            "http://127.0.0.1",
            "http://[::1]",
        }


def _full() -> int:
    return os.open("/dev/full", os.O_WRONLY)


def _not_read() -> int:
    read_end, write_end = os.pipe()
    os.close(read_end)
    return write_end


def _read_by_one_that_stands_still() -> int:
    read_end, write_end = os.pipe()
    os.dup(read_end)  # open as long as the tests run
    os.set_blocking(write_end, False)
    with suppress(BlockingIOError):
        while True:
            os.write(write_end, b"." * 512)
    os.set_blocking(write_end, True)
    return write_end


@pytest.mark.parametrize(
    ("standard_error", "closed"),
    [
        (_full, ""),
        (_not_read, ""),
        (_read_by_one_that_stands_still, ""),
        (_full, "0<&- 1>&- 2>&-"),
    ],
    ids=["disk full", "no reader", "reader stands still", "closed"],
)
async def test_a_log_that_cannot_be_written_changes_nothing_else(
    write: Write,
    http: aiohttp.ClientSession,
    simulator: Simulator,
    standard_error: Callable[[], int],
    closed: str,
) -> None:
    simulator.add_call("main", "a", Plan())
    url, config = f"http://127.0.0.1:{(port := free_port())}", write(call("a"))
    command = (
        *("sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-m", "exporter"),
        *(f"--config.file={config}", f"--web.listen-address=127.0.0.1:{port}"),
    )
    process = await subprocesses.start(*command, stderr=(descriptor := standard_error()))
    os.close(descriptor)

    async def scraped(condition: Callable[[dict[Series, float]], bool]) -> None:
        found: dict[Series, float] = {}
        async with deadline():
            while not condition(found):
                assert process.returncode is None
                await asyncio.sleep(0.1)
                with suppress(aiohttp.ClientConnectionError):
                    async with http.get(f"{url}/metrics") as answer:
                        found = parsed(await answer.text())

    await scraped(lambda found: total(found, "esms_calls_total", result="success") == 1)
    # Many problems make long lines: soon more than may be pending.
    config.write_text("accounts:\n" + "".join(f"- {{name: '{n}'}}\n" for n in range(100)))
    for _ in range(200 if standard_error is _read_by_one_that_stands_still else 1):
        async with http.post(f"{url}/-/reload") as answer:
            assert answer.status == 400
    if not closed:
        await scraped(lambda found: total(found, "esms_exporter_log_lines_dropped_total") > 0)
    process.terminate()
    async with deadline():
        assert await process.wait() == 0
    with sqlite3.connect(config.with_name("ledger.db")) as ledger:
        assert ledger.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    ledger.close()
