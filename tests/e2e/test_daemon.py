from __future__ import annotations

import asyncio
import os
import re
import sqlite3
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)

from exporter.metrics.exposition import OPENMETRICS, TEXT
from exporter.simulator import Plan, Simulator
from tests import subprocesses
from tests.docs.pages import text as page
from tests.e2e.processes import Exporter, Series, configure, listed, parsed, total
from tests.ports import free_port
from tests.programs import PROMETHEUS, of_prometheus
from tests.waiting import deadline

LIVE = Plan(queued=10_000)


def documented() -> dict[str, tuple[str, set[str]]]:
    """Return the type and labels of every metric, but for those of parts that are off here."""
    entry = r"^## (esms_(?!notif|canary|mqtt)\w+)\n\n.+\n\n- type: (\w+)\n- labels: (.+)\n"
    return {
        name.removesuffix("_total"): (
            kind,
            {*re.findall(r"`(\w+)`", labels), *(["campaign"] if "LABELS" in labels else [])},
        )
        for name, kind, labels in re.findall(entry, page("docs/metrics.md"), re.MULTILINE)
    }


async def reload(http: aiohttp.ClientSession, exporter: Exporter) -> tuple[int, str]:
    async with http.post(f"{exporter.url}/-/reload") as answer:
        return answer.status, await answer.text()


async def test_every_metric_is_there_before_the_first_call_has_finished(
    tmp_path: Path, simulator: Simulator, http: aiohttp.ClientSession
) -> None:
    simulator.add_call("main", "a", LIVE)
    simulator.add_call("main", "m", Plan(receivers=1, queued=10_000))
    account = {"balance_url": simulator.url, "balance_warning": 500}
    calls = [listed("a", campaign="otp"), {**listed("m", campaign="otp"), "kind": "message"}]
    config = configure(tmp_path, simulator, calls, account=account, balance={"interval": "1s"})
    async with Exporter(config) as exporter:
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
        catalogue = documented()
        assert len(catalogue) > 30
        for name, (kind, names) in catalogue.items():
            family = families[name]
            assert family.type == kind
            assert family.documentation
            assert family.samples, name
            assert {key for sample in family.samples for key in sample.labels} - {"le"} == names
        shown = {name for name, family in families.items() if family.samples}
        assert {name for name in shown if name.startswith("esms_")} == set(catalogue)
        assert {"process_cpu_seconds", "python_info"} <= families.keys()
        assert not [name for name in text.splitlines() if "_created" in name]
        async with http.get(f"{exporter.url}/metrics") as answer:
            assert answer.headers["Content-Type"] == TEXT
            text = await answer.text()
        for version in PROMETHEUS:
            command = (of_prometheus("promtool", version), "check", "metrics")
            checked = await asyncio.to_thread(subprocesses.run, *command, input=text)
            assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", ""), version
        samples = parsed(text)
        endings = {"counter": "_total", "histogram": "_count", "gauge": ""}
        names = {name for name, _ in samples}
        assert {name + endings[kind] for name, (kind, _) in catalogue.items()} <= names
        # The first failure alerts: the series is there, at 0, with the call's labels.
        labels = {"account": "main", "campaign": "otp"}
        ending = {"result": "failure", "status": "no_answer"}
        assert samples["esms_calls_total", frozenset((labels | ending).items())] == 0


async def test_without_auto_reload(tmp_path: Path, simulator: Simulator) -> None:
    watch = {"files": ["*.csv"]}
    config = configure(tmp_path, simulator, watch=watch)
    async with Exporter(config, "--no-config.auto-reload") as exporter:
        await exporter.ready()
        configure(tmp_path, simulator, [listed("a")], watch=watch)
        (tmp_path / "a.csv").write_text("reference_id,account\nb,main\nc,main\n")
        # Files of calls are a source of their own; the configuration is as it was.
        await exporter.until(lambda found: total(found, "esms_calls_watched") == 2)
        assert "configuration reloaded" not in exporter.output


async def test_a_bad_configuration_leaves_the_good_one_in_force(
    tmp_path: Path, simulator: Simulator, http: aiohttp.ClientSession
) -> None:
    simulator.add_call("main", "a", LIVE)
    path = configure(tmp_path, simulator, [listed("a")])
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
        configure(tmp_path, simulator, [listed("a")], ledger={"url": "sqlite:///another.db"})
        status, text = await reload(http, exporter)
        assert status == 400
        assert "ledger.url" in text
        configure(tmp_path, simulator, [listed("a")])
        assert (await reload(http, exporter))[0] == 200
        samples = await exporter.scrape()
        assert total(samples, "esms_exporter_config_last_reload_successful") == 1


def read_by_one_that_stands_still() -> int:
    read_end, write_end = os.pipe()
    os.dup(read_end)  # open as long as the tests run
    os.set_blocking(write_end, False)
    with suppress(BlockingIOError):
        while True:
            os.write(write_end, b"." * 512)
    os.set_blocking(write_end, True)
    return write_end


@pytest.mark.parametrize("closed", ["", "0<&- 1>&- 2>&-"])
async def test_a_log_that_cannot_be_written_changes_nothing_else(
    tmp_path: Path, simulator: Simulator, http: aiohttp.ClientSession, closed: str
) -> None:
    """Nobody reads standard error, or it is closed; `tests/test_logs.py` has more."""
    simulator.add_call("main", "a", Plan())
    config = configure(tmp_path, simulator, [listed("a")])
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = (
        *("sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-m", "exporter"),
        *(f"--config.file={config}", f"--web.listen-address=127.0.0.1:{port}"),
    )
    descriptor = read_by_one_that_stands_still()
    process = await subprocesses.start(*command, stderr=descriptor)
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
    for _ in range(1 if closed else 200):
        async with http.post(f"{url}/-/reload") as answer:
            assert answer.status == 400
    if not closed:
        await scraped(lambda found: total(found, "esms_exporter_log_lines_dropped_total") > 0)
    process.terminate()
    async with deadline():
        assert await process.wait() == 0
    with sqlite3.connect(tmp_path / "ledger.db") as ledger:
        assert ledger.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    ledger.close()
