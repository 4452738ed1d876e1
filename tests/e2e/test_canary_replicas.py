"""Exporters that share a ledger: each canary call is placed by one of them, and followed."""

from __future__ import annotations

import asyncio
from pathlib import Path

from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from tests.canaries.scene import Hastened, Placed, config_text, runs, simulator
from tests.databases import Server
from tests.e2e.processes import total
from tests.waiting import deadline, until

CANARY = "recording: '1', max_per_day: 144, within: 60s"


async def test_each_call_is_placed_by_one_of_them_and_outlives_it(
    tmp_path: Path, server: Server
) -> None:
    with server.database() as database:
        async with simulator() as provider:
            placed = Placed(provider)
            exporters = []
            for number in range(3):
                config = tmp_path / f"{number}.yaml"
                url = database.replace("+psycopg", "")
                config.write_text(config_text(provider.url, url, CANARY))
                # The first dies as soon as one of its calls is accepted.
                exporters.append(Hastened(config, 2.0, "accepted" if number == 0 else "nowhere"))
            try:
                await exporters[0].start()
                await until(lambda: bool(placed.requests))  # it polls the account
                await asyncio.gather(*(exporter.start() for exporter in exporters[1:]))
                await asyncio.gather(*(exporter.ready() for exporter in exporters[1:]))
                await exporters[0].wait()
                before = len(placed.requests)
                assert before > 0
                async with deadline():  # one of the others goes on
                    ended = 0.0
                    while ended < before + 3:
                        await asyncio.sleep(0.1)
                        ended = max([runs(await it.scrape(), "success") for it in exporters[1:]])
            finally:
                await asyncio.gather(*(exporter.stop() for exporter in exporters))
            engine = create_engine(database, poolclass=NullPool)
            with engine.connect() as connection:
                rows = list(
                    connection.execute(
                        text("SELECT request_id, result, reference_id FROM canary_runs")
                    )
                )
        # One request for each due time, and none was refused as one that came before.
        assert sorted(row.request_id for row in rows) == sorted(placed.request_ids)
        assert set(placed.codes) == {"100"}
        assert {row.result for row in rows} <= {"success", None}
        assert all(row.reference_id for row in rows)


async def test_the_one_that_polls_the_account_shows_them(tmp_path: Path, server: Server) -> None:
    with server.database() as database:
        async with simulator() as provider:
            configs = [tmp_path / "a.yaml", tmp_path / "b.yaml"]
            for config in configs:
                url = database.replace("+psycopg", "")
                config.write_text(config_text(provider.url, url, "recording: '9', max_per_day: 2"))
            async with Hastened(configs[0], 2.0) as one, Hastened(configs[1], 2.0) as other:
                await asyncio.gather(one.ready(), other.ready())
                async with deadline():
                    while not sum([runs(await it.scrape(), "limited") for it in (one, other)]):  # noqa: ASYNC110 - nobody tells
                        await asyncio.sleep(0.1)
                shown = [await exporter.scrape() for exporter in (one, other)]
                (found,) = (one for one in shown if total(one, "esms_account_lease"))
                assert runs(found, "refused") == 2
                assert total(found, "esms_canary_success") == 0
                assert sum(runs(samples, "refused") for samples in shown) == 2
