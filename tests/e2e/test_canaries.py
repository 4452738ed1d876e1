"""Canary calls of real exporters, which are killed and share a ledger, and of the command."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from exporter.simulator import Fault, FaultKind, Operation
from tests.canaries.scene import (
    MAKE_CALL,
    NO_STATUS,
    PHONE,
    UNANSWERED,
    Hastened,
    Placed,
    config_text,
    configured,
    rows,
    runs,
    simulator,
)
from tests.databases import Server
from tests.e2e.commands import CONFIG, Command, Ended, invoke, run
from tests.e2e.processes import total
from tests.subprocesses import UNMEASURED
from tests.waiting import deadline, until

GOING_ON = "SELECT 1 FROM canary_runs WHERE result IS NULL"
RECORDING = "recording: '1', max_per_day: 144, within: 60s"
TEMPLATE = "template: '1', variables: [Trung, '20000'], max_per_day: 2, within: 60s"
EVERY = 4.0
COMMAND = ("canary", "hourly", CONFIG)
SECRETS = (PHONE, PHONE[1:], "key-main")


@pytest.mark.parametrize(
    ("killed_at", "result"), [("request", "unsure"), ("acceptance", "success")]
)
async def test_killed_after_its_request_it_never_calls_twice(
    tmp_path: Path, killed_at: str, result: str
) -> None:
    async with simulator() as provider:
        placed = Placed(provider)
        # What was lost counts as such after a time-out.
        timeout = "60s" if result == "success" else "2s"
        config = configured(tmp_path, provider.url, RECORDING, timeout)
        killed = Hastened(config, EVERY)

        def kill(operation: Operation, *_: object) -> None:
            if operation in MAKE_CALL:
                killed.send(signal.SIGKILL)

        if killed_at == "request":  # the provider has it, and has not answered
            provider.subscribe(kill)
        await killed.start()
        if killed_at == "acceptance":
            await killed.ready()
            accepted = f"{GOING_ON} AND reference_id IS NOT NULL"
            await until(lambda: bool(rows(tmp_path, accepted)))
            killed.send(signal.SIGKILL)
        await killed.wait()
        async with Hastened(config, 1e6) as exporter:
            await exporter.ready()
            found = await exporter.until(lambda samples: runs(samples) >= 1)
            assert runs(found, result) == 1
            await asyncio.sleep(1)
        assert not any(secret in killed.output + exporter.output for secret in SECRETS)
        assert PHONE[1:] not in "".join(map(str, rows(tmp_path, "SELECT * FROM canary_runs")))
        begun = [row[0] for row in rows(tmp_path, "SELECT request_id FROM canary_runs")]
        assert placed.request_ids == begun
        assert len(begun) == 1


async def test_killed_at_any_moment_it_never_calls_twice(tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(4))
    print(f"seed {seed}")
    chance = random.Random(seed)
    async with simulator() as provider:
        placed = Placed(provider)
        config = configured(tmp_path, provider.url, RECORDING, "2s")
        shown = 0.0
        for _ in range(6):
            exporter = Hastened(config, 1.0)
            await exporter.start()
            await exporter.listening()
            await asyncio.sleep(chance.uniform(0, 2.5))
            shown = max(shown, runs(await exporter.scrape()))
            await exporter.kill()
        async with Hastened(config, 1e6) as exporter:
            await exporter.ready()
            await exporter.until(lambda _: not rows(tmp_path, GOING_ON))
            ended = "SELECT count(*) FROM canary_runs"
            ((counted,),) = rows(tmp_path, "SELECT sum(runs) FROM canary_totals")
            last = await exporter.until(lambda samples: runs(samples) == counted)
        assert counted >= shown > 0
        begun = [row[0] for row in rows(tmp_path, "SELECT request_id FROM canary_runs")]
        assert rows(tmp_path, ended) == [(counted - runs(last, "missed"),)]
    assert len(set(placed.request_ids)) == len(placed.requests)
    assert set(placed.request_ids) <= set(begun)
    assert set(placed.codes) == {"100"}


async def test_each_call_is_placed_by_one_of_several_exporters_and_outlives_it(
    tmp_path: Path, server: Server
) -> None:
    async with simulator() as provider, AsyncExitStack() as ends:
        database = ends.enter_context(server.database())
        placed = Placed(provider)
        exporters = []
        for number in range(3):
            config = tmp_path / f"{number}.yaml"
            url = database.replace("+psycopg", "")
            config.write_text(config_text(provider.url, url, RECORDING))
            exporters.append(Hastened(config, 2.0))
            ends.push_async_callback(exporters[-1].stop)
        first, *others = exporters
        await first.start()
        await until(lambda: bool(placed.requests))  # it polls the account
        await asyncio.gather(*(exporter.start() for exporter in others))
        await asyncio.gather(*(exporter.ready() for exporter in others))
        engine = create_engine(database, poolclass=NullPool)

        def found(query: str) -> list[Any]:
            with engine.connect() as connection:
                return list(connection.execute(text(query)))

        # The first dies while one of its calls is open.
        await until(lambda: bool(found(f"{GOING_ON} AND reference_id IS NOT NULL")))
        await first.kill()
        before = len(placed.requests)
        assert before > 0
        async with deadline():  # one of the others goes on, and shows the runs alone
            shown = [0.0]
            while max(shown) < before + 3:
                await asyncio.sleep(0.1)
                shown = [runs(await exporter.scrape(), "success") for exporter in others]
        assert sum(shown) == max(shown)
        await asyncio.gather(*(exporter.stop() for exporter in others))
        ended = found("SELECT request_id, result, reference_id FROM canary_runs")
        # One request for each due time, and none was refused as one that came before.
        assert sorted(row.request_id for row in ended) == sorted(placed.request_ids)
        assert set(placed.codes) == {"100"}
        assert {row.result for row in ended} <= {"success", None}
        assert all(row.reference_id for row in ended)


# The command.


def tells_nothing(ended: Ended) -> None:
    assert not any(secret in ended.output + ended.errors for secret in SECRETS)


async def test_what_the_command_would_send(tmp_path: Path) -> None:
    async with simulator() as provider:
        placed = Placed(provider)
        configured(tmp_path, provider.url, TEMPLATE)
        ended = await invoke(tmp_path, *COMMAND, "--dry-run")
    assert ended.code == 0
    head, _, due = ended.output.partition("due:\n")
    assert f"GET {provider.url}/MakeCallTemplate_V2\n" in head
    assert "  Phone=***\n  TemplateId=1\n  VariableListStr=Trung||20000\n" in head
    assert len(due.splitlines()) == 5
    tells_nothing(ended)
    assert placed.codes == []
    assert not (tmp_path / "ledger.db").exists()
    for wrong in (("--now", "--dry-run"), ()):
        assert (await invoke(tmp_path, *COMMAND, *wrong)).code == 2
    unknown = await invoke(tmp_path, "canary", "daily", CONFIG, "--dry-run")
    assert unknown.code == 2
    assert "no such canary; configured: hourly" in unknown.errors


async def test_the_command_without_an_exporter(tmp_path: Path) -> None:
    async with simulator() as provider:
        placed = Placed(provider)
        configured(tmp_path, provider.url, TEMPLATE)
        for _ in range(2):
            ended = await run(tmp_path, *COMMAND, "--now")
            assert ended.code == 0, ended
            stages = [line.split()[1] for line in ended.output.splitlines()]
            assert stages == ["placing", "accepted", "success"]
            tells_nothing(ended)
        assert placed.requests[0]["VariableListStr"] == "Trung||20000"
        ended = await run(tmp_path, *COMMAND, "--now")
        assert ended.code == 1
        assert "`max_per_day` (2 calls) is reached" in ended.errors
        assert placed.codes == ["100", "100"]


async def test_the_command_refused_and_interrupted(tmp_path: Path) -> None:
    async with simulator() as provider:
        configured(tmp_path, provider.url, TEMPLATE)
        body = f'{{"CodeResult":"103","ErrorMessage":"no money to call {PHONE}"}}'
        provider.faults.set("x", Fault(FaultKind.RAW, body=body))
        ended = await run(tmp_path, *COMMAND, "--now")
        assert ended.code == 1
        assert "refused code=103 message=(withheld: it repeats the request)" in ended.output
        tells_nothing(ended)

        provider.faults.set("x", Fault(FaultKind.HANG, operation="GetSendStatus"))
        placed = Placed(provider)
        command = Command(tmp_path, *COMMAND, "--now")
        await until(lambda: bool(placed.codes))
        command.send_signal(signal.SIGINT)
        assert (await command.end()).code == 1


async def test_the_command_beside_an_exporter(tmp_path: Path) -> None:
    """What it came to is shown, and what it was killed at is gone on with."""
    async with simulator(UNANSWERED) as provider:
        placed = Placed(provider)
        config = configured(tmp_path, provider.url, TEMPLATE)
        async with Hastened(config, 1e6) as exporter:
            await exporter.ready()
            ended = await run(tmp_path, *COMMAND, "--now")
            assert ended.code == 1
            assert "failure status=no_answer" in ended.output
            found = await exporter.until(lambda samples: runs(samples) == 1)
            assert runs(found, "failure") == 1
            assert total(found, "esms_canary_success") == 0

            provider.faults.set("x", NO_STATUS)
            command = Command(tmp_path, *COMMAND, "--now", environ=UNMEASURED)
            accepted = f"{GOING_ON} AND reference_id IS NOT NULL"
            await until(lambda: bool(rows(tmp_path, accepted)))
            command.send_signal(signal.SIGKILL)
            assert (await command.end()).code == -signal.SIGKILL
            provider.faults.clear()
            await exporter.until(lambda samples: runs(samples, "failure") == 2)
    assert placed.codes == ["100", "100"]
    assert rows(tmp_path, "PRAGMA integrity_check") == [("ok",)]
