"""Exporters that share a ledger, and what may become of its server, its tables and its secrets."""

from __future__ import annotations

import asyncio
import html
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, suppress
from pathlib import Path
from urllib.parse import unquote, unquote_plus

import aiohttp
import pytest_asyncio
from sqlalchemy import make_url

from exporter.simulator import Plan
from tests.databases import Server, pgbouncer
from tests.e2e import commands
from tests.e2e.processes import Exporter, total
from tests.e2e.sharing import ACCOUNTS, TOKEN, Scene, push, scene
from tests.waiting import DEADLINE, deadline, until

USER, PASSWORD = "l3dg3r-us3r", "l3dg3r-p4ss+w0rd"
BACKENDS = "SELECT pid FROM pg_stat_activity WHERE application_name = 'esms-exporter'"


@pytest_asyncio.fixture
async def there(server: Server, tmp_path: Path) -> AsyncIterator[Scene]:
    async with scene(server, tmp_path) as there:
        yield there


async def get(exporter: Exporter, path: str) -> tuple[int, str]:
    """Ask for a page; fail where it waits for a ledger that does not answer."""
    timeout = aiohttp.ClientTimeout(total=DEADLINE / 2)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with (
        aiohttp.ClientSession(timeout=timeout, headers=headers) as http,
        http.get(f"{exporter.url}{path}") as answer,
    ):
        return answer.status, f"{answer.headers}\n{await answer.text()}"


async def until_ready(exporter: Exporter, status: int) -> str:
    async with deadline():
        while (found := await get(exporter, "/-/ready"))[0] != status:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    return found[1]


async def until_counted(calls: int, *exporters: Exporter) -> None:
    async def counted() -> float:
        return sum([total(await one.scrape(), "esms_calls_total") for one in exporters])

    async with deadline():
        while await counted() < calls:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.1)
    assert await counted() == calls


def in_order(exporter: Exporter) -> bool:
    """Return whether all went well, as the log says."""
    return not any(f"level={word}" in exporter.output for word in ("warning", "error", "critical"))


def go_on(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # it has ended
            os.kill(pid, signal.SIGCONT)


async def test_a_server_that_hangs(there: Scene) -> None:
    names = {f"call-{n}": ACCOUNTS[n % len(ACCOUNTS)].name for n in range(30)}
    for name, account in names.items():
        there.simulator.add_call(account, name, Plan(queued=9e9))
    calls = "".join(f"    - {{reference_id: {c}, account: {a}}}\n" for c, a in names.items())
    ends = [there.exporter(f"exporter{n}", calls, more="shutdown_timeout: 2s\n") for n in range(2)]
    first, second = ends
    hung: list[int] = []
    async with AsyncExitStack() as stack:
        for exporter in ends:
            stack.push_async_callback(exporter.kill)
            await exporter.start()
            await exporter.ready()
        await there.until_held(lambda held: sorted(held.values()) == [3, 3])
        stack.callback(go_on, hung)
        async with deadline():  # each has two connections, and opens them when it needs them
            while len(backends := await asyncio.to_thread(there.rows, BACKENDS)) < 4:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        hung += [pid for (pid,) in backends]
        for pid in hung:
            os.kill(pid, signal.SIGSTOP)
        for exporter in ends:
            told = await until_ready(exporter, 503)
            assert "the ledger does not answer: other exporters may have taken over" in told
            assert (await get(exporter, "/-/healthy"))[0] == 200
            assert (await get(exporter, "/metrics"))[0] == 200
        stopped = time.monotonic() + 2  # those that were under way have come
        await asyncio.sleep(4)  # longer than the time between two polls of a call
        assert not [at for asked in there.asked.values() for at in asked if at > stopped]

        first.send(signal.SIGTERM)
        assert await first.wait() == 0
        go_on(hung)
        await until_ready(second, 200)
        back = time.monotonic()
        await until(lambda: all(any(at > back for at in there.asked_for[name]) for name in names))
        assert "Traceback" not in first.output + second.output


async def test_a_newer_version_changes_the_tables_meanwhile(there: Scene) -> None:
    async with AsyncExitStack() as ends:

        async def started(name: str) -> Exporter:
            exporter = there.exporter(name, "")
            ends.push_async_callback(exporter.kill)
            await exporter.start()
            await exporter.ready()
            return exporter

        async def handed(to: Exporter, prefix: str) -> None:
            names = [f"{prefix}-{number}" for number in range(20)]
            for name in names:
                there.simulator.add_call("main", name, Plan(queued=1.0))
            await push(to, names, "main", "otp")

        first, second = await started("first"), await started("second")
        await handed(first, "before")
        for statement in (
            "ALTER TABLE calls ADD COLUMN note TEXT",
            "ALTER TABLE leases ADD COLUMN note TEXT",
            "CREATE TABLE notes (id INTEGER PRIMARY KEY)",
            "UPDATE alembic_version SET version_num = '9999'",
        ):
            await asyncio.to_thread(there.rows, statement)
        await handed(second, "after")
        # One that starts anew reads and writes what it knows of.
        third = await started("third")
        await handed(third, "anew")
        await until_counted(60, first, second, third)
        assert in_order(first)
        assert in_order(second)

        refuse = "UPDATE compatibility SET oldest_user = '9998'"
        await asyncio.to_thread(there.rows, refuse)
        refused = there.exporter("refused", "")
        await refused.start()
        assert await refused.wait() == 1
        assert "was written by a newer esms-exporter (revision 9999); upgrade this" in (
            refused.output
        )
        assert "Traceback" not in refused.output
        await handed(first, "later")
        await until_counted(80, first, second, third)


async def test_behind_pgbouncer_with_fewer_connections(server: Server, there: Scene) -> None:
    with ExitStack() as last:
        bouncer = last.enter_context(pgbouncer(server, 2))
        port = make_url(bouncer.url).port
        url = make_url(there.url).set(port=port).render_as_string(hide_password=False)
        async with AsyncExitStack() as ends:
            exporters = [there.exporter(f"exporter{n}", "", url=url) for n in range(2)]
            for exporter in exporters:
                ends.push_async_callback(exporter.stop)
                await exporter.start()
            for exporter in exporters:
                await exporter.ready()
            for start in range(0, 200, 20):
                names = [f"call-{number}" for number in range(start, start + 20)]
                for name in names:
                    there.simulator.add_call("main", name, Plan(queued=1.0))
                await asyncio.gather(*(push(one, names, "main", "otp") for one in exporters))
            await until_counted(200, *exporters)
            for exporter in exporters:
                assert in_order(exporter), exporter.output
                assert total(await exporter.scrape(), "esms_replicas") == 2


async def test_nothing_tells_how_the_ledger_is_reached(
    server: Server, there: Scene, tmp_path: Path
) -> None:
    base = make_url(there.url)
    await asyncio.to_thread(there.rows, f"CREATE USER \"{USER}\" PASSWORD '{PASSWORD}'")
    await asyncio.to_thread(there.rows, f'GRANT ALL ON SCHEMA public TO "{USER}"')
    url = base.set(username=USER, password=PASSWORD).render_as_string(hide_password=False)
    wrong = base.set(username=USER, password=f"{PASSWORD}x").render_as_string(hide_password=False)
    shown: list[str] = []
    paths = ("/", "/metrics", "/-/ready", "/api/v1/status", "/api/v1/calls", "/config")

    async def look(exporter: Exporter) -> None:
        for path in paths:
            shown.append((await get(exporter, path))[1])

    async with AsyncExitStack() as ends:
        exporter = there.exporter("exporter", "", url=url, more="shutdown_timeout: 1s\n")
        refused = there.exporter("refused", "", url=wrong)
        config = tmp_path / "exporter.yaml"
        for process in (exporter, refused):
            ends.push_async_callback(process.kill)
            await process.start()
        await exporter.ready()
        there.simulator.add_call("main", "call", Plan())
        await push(exporter, ["call"], "main", "otp")
        await until_counted(1, exporter)
        assert await refused.wait() == 1
        await look(exporter)
        for broken in (config.read_text(), f"{config.read_text()}nothing: {{}}\n"):
            (tmp_path / "checked.yaml").write_text(broken)
            shown += map(str, await commands.run(tmp_path, "check", "--config.file=checked.yaml"))
        await asyncio.to_thread(server.stop)
        try:
            await until_ready(exporter, 503)
            await look(exporter)
            late = there.exporter("late", "", url=url)
            await late.start()
            assert await late.wait() == 1
        finally:
            await asyncio.to_thread(server.start)
        await until_ready(exporter, 200)
        await exporter.stop()
        shown += [exporter.output, refused.output, late.output]
    await asyncio.to_thread(there.rows, f'DROP OWNED BY "{USER}"; DROP USER "{USER}"')
    assert "refuses the user or the password" in refused.output
    text = "\n".join(shown)
    assert "Traceback" not in text
    forms = (text, unquote(text), unquote_plus(text), html.unescape(text), text.replace("\\", ""))
    for hidden in (USER, PASSWORD):
        assert not any(hidden in form for form in forms), hidden
