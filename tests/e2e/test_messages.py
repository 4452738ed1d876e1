"""Messages beside calls, from every source to the metrics, through kills."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import aiohttp

from exporter.simulator import Plan, Simulator
from tests.e2e.counting import Scrapes, scraped
from tests.e2e.processes import API, TOKEN, Exporter, configure, listed, push, total

PHONE = "0901888484"
DELIVERED = Plan(receivers=1, price=470, sent=1)
KILLS = 8


def message(name: str, **labels: str) -> dict[str, object]:
    return {**listed(name, **labels), "kind": "message"}


def sources(folder: Path) -> dict[str, object]:
    """Write one call and one message into each kind of source; return the section `watch`."""
    (folder / "calls.csv").write_text(
        "reference_id,account,kind,campaign\ncsv-call,main,call,otp\ncsv-message,main,message,otp\n"
    )
    with closing(sqlite3.connect(folder / "app.db")) as database, database:
        database.execute("CREATE TABLE sent (id TEXT, account TEXT, kind TEXT)")
        rows = [("sql-call", "main", None), ("sql-message", "main", "message")]
        database.executemany("INSERT INTO sent VALUES (?, ?, ?)", rows)
    query = {
        "name": "app",
        "url": f"sqlite:///{folder}/app.db",
        "query": "SELECT id AS reference_id, account, kind FROM sent",
        "interval": "1s",
    }
    return {"api": API, "sql": [query], "files": ["calls.csv"]}


async def test_every_source_names_both_kinds_and_each_counts_once_through_kills(
    tmp_path: Path, simulator: Simulator, http: aiohttp.ClientSession
) -> None:
    for source in ("yaml", "csv", "sql", "api"):
        simulator.add_call("main", f"{source}-call", Plan(duration=7, sent=1))
        simulator.add_call("main", f"{source}-message", DELIVERED)
    simulator.add_call("main", "many", Plan(receivers=169, failed=69, price=79_430, sent=2))
    simulator.add_call("main", "rejected", Plan(receivers=3, rejected=True, approval=1))
    simulator.add_call("main", "lost", Plan(unknown_for=1e9, receivers=1))
    simulator.add_call("other", "by-default", DELIVERED)
    simulator.add_call("other", "named", Plan(duration=7))
    config = configure(
        tmp_path,
        simulator,
        [
            listed("yaml-call"),
            message("yaml-message", campaign="otp"),
            *(message(name) for name in ("many", "rejected", "lost")),
            listed("by-default", "other"),
            {**listed("named", "other"), "kind": "call"},
        ],
        watch=sources(tmp_path),
        polling={"interval": "200ms", "max_interval": "200ms", "not_found_grace": "3s"},
    )
    document = json.loads(config.read_text())
    document["accounts"][1]["default_kind"] = "message"
    config.write_text(json.dumps(document))
    scrapes = Scrapes()
    async with Exporter(config) as exporter, scraped(exporter, scrapes):
        await exporter.ready()
        await push(exporter, [listed("api-call"), message("api-message")])
        for _ in range(KILLS):
            await asyncio.sleep(0.3)
            await exporter.kill()
            await exporter.start()
            await exporter.ready()
        found = await exporter.until(
            lambda found: (
                total(found, "esms_messages_total") == 4 + 169 + 3 + 1 + 1
                and total(found, "esms_calls_total") == 5
            )
        )
        await asyncio.sleep(0.5)  # what would be counted twice would be counted now
        found = await exporter.scrape()
        headers = {"Authorization": f"Bearer {TOKEN}"}
        url = f"{exporter.url}/api/v1/calls/main/many"
        async with http.get(url, headers=headers) as answer:
            many = await answer.json()
    by_result = {
        result: total(found, "esms_messages_total", account="main", result=result)
        for result in ("success", "failure", "unknown")
    }
    assert by_result == {"success": 4 + 100, "failure": 69 + 3, "unknown": 1}
    assert total(found, "esms_messages_total", account="other", result="success") == 1
    assert total(found, "esms_messages_total", campaign="otp") == 2
    assert total(found, "esms_calls_total", result="success") == 5
    assert total(found, "esms_message_price_vnd_total") == 5 * 470 + 79_430
    assert total(found, "esms_message_result_delay_seconds_count", account="main") == 7
    assert total(found, "esms_messages_watched") == total(found, "esms_calls_watched") == 0
    assert (many["kind"], many["delivered"], many["failed"]) == ("message", 100, 69)
    assert (many["result"], many["status"]) == ("failure", "none")
    assert not scrapes.backwards
