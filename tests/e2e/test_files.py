"""Calls of files and of a database, and the configuration, changed while the exporter runs."""

from __future__ import annotations

import asyncio
from pathlib import Path

from exporter.simulator import Plan, Simulator
from tests.databases import PASSWORD, postgresql
from tests.e2e.processes import Exporter, configure, total

LIVE = Plan(queued=10_000)
FILES = ["calls/*.yaml", "calls/*.csv", "calls/*.txt", "mounted/calls.json"]


def prepare(folder: Path, simulator: Simulator, *calls: str) -> Path:
    (folder / "key").write_text("key-main\n")
    return configure(
        *(folder, simulator, calls),
        accounts=[simulator.provider.accounts["main"]],
        account={"api_key": None, "api_key_file": "key"},
        watch={"files": FILES},
    )


async def watches(exporter: Exporter, calls: int) -> None:
    """Wait until so many calls are watched."""
    await exporter.until(lambda found: total(found, "esms_calls_watched") == calls)


async def test_calls_come_and_go_with_files(tmp_path: Path, simulator: Simulator) -> None:
    folder = tmp_path / "calls"
    async with Exporter(prepare(tmp_path, simulator)) as exporter:
        await exporter.ready()
        # A folder and a file that appear later.
        folder.mkdir()
        (folder / "a.yaml").write_text("- {reference_id: a, labels: {campaign: otp}}\n- b\n")
        await watches(exporter, 2)
        # The same call in two files is one call.
        (folder / "b.csv").write_text("reference_id,campaign\nB,other\nc,otp\n")
        await watches(exporter, 3)
        for number, name in enumerate("de", 4):
            with (folder / "c.txt").open("a") as file:
                file.write(f"{name}  # appended\n")
            await watches(exporter, number)
        # Atomic replacement.
        for name, text in (("b.csv", "reference_id\nc\n"), ("a.yaml", "- b\n")):
            (folder / "new").write_text(text)
            (folder / "new").rename(folder / name)
        await watches(exporter, 4)  # b c d e
        (folder / "c.txt").unlink()
        await watches(exporter, 2)
        # One that ends is counted, with the labels that it was first named with; others are not.
        simulator.add_call("main", "f", Plan())
        (folder / "f.csv").write_text("reference_id,campaign\nf,reminder\n")
        await exporter.until(
            lambda found: total(found, "esms_calls_total", campaign="reminder") == 1
        )
        (folder / "f.csv").unlink()
        (folder / "f.txt").write_text("F\n")
        await watches(exporter, 2)
        found = await exporter.scrape()
        assert total(found, "esms_calls_total") == 1
        errors = "esms_source_errors_total"
        assert total(found, errors, source="files") == 1  # no mounted/calls.json


async def test_without_auto_reload(tmp_path: Path, simulator: Simulator) -> None:
    path = prepare(tmp_path, simulator)
    async with Exporter(path, "--no-config.auto-reload") as exporter:
        await exporter.ready()
        prepare(tmp_path, simulator, "a")
        (tmp_path / "calls").mkdir()
        (tmp_path / "calls" / "a.txt").write_text("b\nc\n")
        # Files of calls are a source of their own; the configuration is as it was.
        await watches(exporter, 2)
        assert "configuration reloaded" not in exporter.output


async def test_a_call_from_its_row_to_its_count(tmp_path: Path, simulator: Simulator) -> None:
    first, second, old = (f"505139D7-54F8-48A9-88FA-9460A78731D{end}" for end in "DEF")
    with postgresql() as database:
        (tmp_path / "url").write_text(database.url.replace("+psycopg", ""))
        query = "SELECT reference_id, campaign, 'main' AS account FROM calls"
        orders = {"name": "orders", "url_file": "url", "interval": "1s"}
        config = configure(
            *(tmp_path, simulator),
            watch={"sql": [{**orders, "query": f"{query} WHERE placed_at >= :since"}]},
            ledger={"url": f"sqlite:///{tmp_path}/ledger.db", "keep_finished": "1d"},
        )
        async with Exporter(config) as exporter:
            await exporter.ready()
            # The table is not there yet: said once, and tried again.
            await exporter.until(
                lambda found: total(found, "esms_source_errors_total", source="sql:orders") > 1
            )
            database.execute(
                "CREATE TABLE calls (reference_id uuid, campaign text, placed_at timestamptz)",
                f"INSERT INTO calls VALUES ('{first}', 'otp', now())",
                # It may have been counted, and forgotten since.
                f"INSERT INTO calls VALUES ('{old}', 'old', now() - interval '2 days')",
            )
            simulator.add_call("main", first, Plan())
            found = await exporter.until(lambda found: total(found, "esms_calls_total") == 1)
            assert total(found, "esms_calls_total", campaign="otp") == 1
            assert total(found, "esms_calls_watched") == 0
            assert exporter.output.count("source problem") == 1
            simulator.add_call("main", second, LIVE)
            database.execute(f"INSERT INTO calls VALUES ('{second}', 'otp', now())")
            await watches(exporter, 1)
            # Without its database it goes on with what it has, and takes up again.
            await asyncio.to_thread(database.stop)
            await exporter.says("the database failed: it cannot be reached")
            assert total(await exporter.scrape(), "esms_calls_watched") == 1
            await asyncio.to_thread(database.start)
            await exporter.says("source recovered[^$]*source recovered")
            assert PASSWORD not in exporter.output
