"""Calls from a database: a real exporter, the stand-in API and a real PostgreSQL."""

from __future__ import annotations

import asyncio
from pathlib import Path

from exporter.simulator import Account, Plan, Simulator
from tests.databases import PASSWORD, postgresql
from tests.e2e.processes import Exporter, total

FIRST = "505139D7-54F8-48A9-88FA-9460A78731DD"
SECOND = "505139D7-54F8-48A9-88FA-9460A78731DE"
OLD = "505139D7-54F8-48A9-88FA-9460A78731DF"


async def test_a_call_from_its_row_to_its_count(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    async with Simulator(accounts=[Account("main", "k", "s")]) as simulator:
        with postgresql() as database:
            (tmp_path / "url").write_text(database.url.replace("+psycopg", ""))
            config.write_text(
                "accounts:\n  - {name: main, api_key: k, secret_key: s,"
                f" base_url: '{simulator.url}'}}\n"
                "polling: {interval: 200ms, max_interval: 200ms}\n"
                "balance: {interval: 0}\n"
                f"ledger: {{url: 'sqlite:///{tmp_path}/ledger.db', keep_finished: 1d}}\n"
                "watch:\n  labels: [campaign]\n  sql:\n"
                "    - name: orders\n      url_file: url\n      interval: 1s\n"
                "      query: >-\n        SELECT reference_id, campaign FROM calls\n"
                "        WHERE placed_at >= :since\n"
            )
            async with Exporter(config) as exporter:
                await exporter.ready()
                # The table is not there yet: said once, and tried again.
                await exporter.until(
                    lambda found: total(found, "esms_source_errors_total", source="sql:orders") > 1
                )
                database.execute(
                    "CREATE TABLE calls (reference_id uuid, campaign text, placed_at timestamptz)",
                    f"INSERT INTO calls VALUES ('{FIRST}', 'otp', now())",
                    # It may have been counted, and forgotten since.
                    f"INSERT INTO calls VALUES ('{OLD}', 'old', now() - interval '2 days')",
                )
                simulator.add_call("main", FIRST, Plan())
                found = await exporter.until(lambda found: total(found, "esms_calls_total") == 1)
                assert total(found, "esms_calls_total", campaign="otp") == 1
                assert total(found, "esms_calls_watched") == 0
                assert exporter.output.count("source problem") == 1
                simulator.add_call("main", SECOND, Plan(queued=9e9))
                database.execute(f"INSERT INTO calls VALUES ('{SECOND}', 'otp', now())")
                await exporter.until(lambda found: total(found, "esms_calls_watched") == 1)
                # Without its database it goes on with what it has, and takes up again.
                await asyncio.to_thread(database.stop)
                await exporter.says("the database failed: it cannot be reached")
                assert total(await exporter.scrape(), "esms_calls_watched") == 1
                await asyncio.to_thread(database.start)
                await exporter.says("source recovered[^$]*source recovered")
                assert PASSWORD not in exporter.output
