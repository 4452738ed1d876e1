"""A server that is restarted, takes no more connections, or was changed by a newer version."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import make_url

from exporter.errors import LedgerError
from tests.databases import Server
from tests.replicas.scene import Exporter, Scene, names, spread
from tests.waiting import until

END_ALL = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'"


def reason(exporter: Exporter) -> str:
    """Return why an exporter is not ready; nothing where it is."""
    return "; ".join(exporter.service.not_ready())


async def test_a_server_that_takes_no_connection_for_a_while(server: Server, scene: Scene) -> None:
    calls = names(10)
    accounts = ("main", "b")
    database = make_url(scene.url).database
    await scene.rows("CREATE ROLE app LOGIN PASSWORD 'app'")
    try:
        await scene.rows(f"GRANT ALL ON DATABASE {database} TO app")
        await scene.rows("GRANT ALL ON SCHEMA public TO app")
        first = await scene.exporter("first", spread(calls, accounts), accounts, user="app")
        second = await scene.exporter("second", spread(calls, accounts), accounts, user="app")
        exporters = (first, second)
        await until(lambda: first.holds | second.holds == set(calls))

        async def polls_again() -> None:
            await until(lambda: not any(map(reason, exporters)))
            since = scene.clock()
            await until(lambda: all(scene.provider.by(name, since) for name in calls))
            scene.finish(calls.pop())
            finished = len(scene.provider.answers)
            await until(lambda: first.counted() + second.counted() == finished)

        # As at `max_connections`, but for this user alone.
        await scene.rows("ALTER ROLE app CONNECTION LIMIT 0")
        await scene.rows(END_ALL)
        await until(lambda: all("too many connections" in reason(one) for one in exporters))
        await scene.rows("ALTER ROLE app CONNECTION LIMIT -1")
        await polls_again()

        await asyncio.to_thread(server.stop)
        await until(lambda: all(map(reason, exporters)))
        await asyncio.to_thread(server.start)
        await polls_again()
        for exporter in exporters:
            await exporter.stop()
    finally:
        await scene.rows("DROP OWNED BY app; DROP ROLE app")


async def test_a_newer_version_changes_the_tables_meanwhile(scene: Scene) -> None:
    first, second = await scene.exporter("first"), await scene.exporter("second")
    await until(lambda: bool(first.accounts or second.accounts))
    await first.push(*names(20, "before"))
    for statement in (
        "ALTER TABLE calls ADD COLUMN note TEXT",
        "ALTER TABLE leases ADD COLUMN note TEXT",
        "CREATE TABLE notes (id INTEGER PRIMARY KEY)",
        "UPDATE alembic_version SET version_num = '9999'",
    ):
        await scene.rows(statement)
    await second.push(*names(20, "after"))
    # One that starts anew reads and writes what it knows of.
    third = await scene.exporter("third")
    await third.push(*names(20, "anew"))
    exporters = (first, second, third)
    scene.finish(*names(20, "before"), *names(20, "after"), *names(20, "anew"))
    await until(lambda: sum(one.counted() for one in exporters) == 60)
    assert not any(one.service.ledger.errors for one in exporters)
    await scene.rows("UPDATE compatibility SET oldest_user = '9998'")
    with pytest.raises(LedgerError, match="was written by a newer esms-exporter"):
        await scene.exporter("refused")
    scene.finish(*names(20, "later"))
    await first.push(*names(20, "later"))
    await until(lambda: sum(one.counted() for one in exporters) == 80)
