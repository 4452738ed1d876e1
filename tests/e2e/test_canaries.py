"""Canary calls of real exporters, which are killed, share a ledger, and are refused."""

from __future__ import annotations

import asyncio
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest

from exporter.simulator import Fault, FaultKind, Operation
from tests.canaries.scene import (
    MAKE_CALL,
    PHONE,
    Hastened,
    Placed,
    configured,
    rows,
    runs,
    simulator,
)
from tests.e2e.processes import total

GOING_ON = "SELECT 1 FROM canary_runs WHERE result IS NULL"
RECORDING = "recording: '1', max_per_day: 144, within: 60s"
EVERY = 4.0


async def test_a_call_is_placed_and_followed_to_its_end(tmp_path: Path) -> None:
    async with simulator() as provider:
        placed = Placed(provider)
        config = configured(tmp_path, provider.url, f"{RECORDING}, expect_key: '1'")
        async with Hastened(config, EVERY) as exporter:
            await exporter.ready()
            first = await exporter.scrape()
            found = await exporter.until(lambda samples: runs(samples, "success") >= 2)
        labels = {"canary": "hourly"}
        assert runs(first) == 0
        assert total(first, "esms_canary_success", **labels) == 0
        assert total(found, "esms_canary_success", **labels) == 1
        assert total(found, "esms_canary_last_success_timestamp_seconds", **labels) > 0
        for stage in ("accepted", "finished"):
            name = "esms_canary_stage_duration_seconds"
            assert total(found, name, stage=stage, **labels) > 0
        assert total(found, "esms_calls_total") == 0
        assert total(found, "esms_calls_watched") == 0
        made = {"operation": "make_call", "outcome": "ok"}
        assert total(found, "esms_api_requests_total", **made) == len(placed.codes)
        assert {params["Phone"] for params in placed.requests} == {PHONE}
        assert len(set(placed.request_ids)) == len(placed.request_ids)
        assert PHONE not in exporter.output
        assert PHONE[1:] not in "".join(map(str, rows(tmp_path, "SELECT * FROM canary_runs")))


@pytest.mark.parametrize(
    ("canary", "result"),
    [
        ("recording: '1', max_per_day: 144, within: 60s, expect_key: '2'", "failure"),
        ("recording: '9', max_per_day: 144", "refused"),
        ("template: '1', variables: [Trung, '20000'], max_per_day: 1", "limited"),
    ],
)
async def test_what_a_run_comes_to(tmp_path: Path, canary: str, result: str) -> None:
    async with simulator() as provider:
        placed = Placed(provider)
        config = configured(tmp_path, provider.url, canary)
        async with Hastened(config, EVERY) as exporter:
            await exporter.ready()
            await exporter.until(lambda samples: runs(samples, result) >= 1)
        if result == "limited":
            assert placed.codes == ["100"]
            assert placed.requests[0]["VariableListStr"] == "Trung||20000"


@pytest.mark.parametrize(
    ("kill_at", "requests", "result"),
    [("intent", 0, "unsure"), ("answer", 1, "unsure"), ("accepted", 1, "success")],
)
async def test_killed_at_any_step_it_never_calls_twice(
    tmp_path: Path, kill_at: str, requests: int, result: str
) -> None:
    async with simulator() as provider:
        placed = Placed(provider)
        # Due once: what comes next is minutes away, unless the hour is about to change. What was
        # lost counts as such after a time-out.
        timeout = "60s" if result == "success" else "2s"
        config = configured(tmp_path, provider.url, RECORDING, timeout)
        killed = Hastened(config, EVERY, kill_at)
        await killed.start()
        await killed.wait()
        assert len(placed.requests) == requests
        async with Hastened(config, 1e6) as exporter:
            await exporter.ready()
            found = await exporter.until(lambda samples: runs(samples) >= 1)
            assert runs(found, result) == 1
            await asyncio.sleep(1)
        assert len(placed.requests) == requests
        (row,) = rows(tmp_path, "SELECT due_at, request_id FROM canary_runs")
        if placed.requests:
            assert placed.request_ids == [row[1]]


async def test_what_came_of_runs_survives_a_restart(tmp_path: Path) -> None:
    async with simulator() as provider:
        config = configured(tmp_path, provider.url, RECORDING)
        async with Hastened(config, EVERY) as exporter:
            await exporter.ready()
            before = await exporter.until(lambda samples: runs(samples, "success") >= 1)
        async with Hastened(config, 1e6) as exporter:
            await exporter.ready()
            after = await exporter.until(lambda samples: runs(samples) >= 1)
        for name in ("esms_canary_success", "esms_canary_last_success_timestamp_seconds"):
            assert total(after, name) >= total(before, name) > 0


async def test_due_times_while_nobody_was_there_are_missed(tmp_path: Path) -> None:
    async with simulator() as provider:
        placed = Placed(provider)
        config = configured(tmp_path, provider.url, RECORDING)
        async with Hastened(config, 1.0) as exporter:
            await exporter.ready()
            await exporter.until(lambda samples: runs(samples) >= 1)
        await asyncio.sleep(4)
        before = len(placed.requests)
        async with Hastened(config, 1.0) as exporter:
            await exporter.ready()
            found = await exporter.until(lambda samples: runs(samples, "missed") >= 3)
            last = await exporter.until(
                lambda samples: runs(samples, "success") > runs(found, "success")
            )
        assert total(last, "esms_canary_success") == 1
        assert len(placed.requests) > before
        assert len(set(placed.request_ids)) == len(placed.requests)


# What the provider does to the request, and what is made of it; tests/esms has all the others.
FAULTS = {
    "reset": (Fault(FaultKind.RESET), "unsure"),
    "hang": (Fault(FaultKind.HANG), "unsure"),
    "telling": (
        Fault(FaultKind.RAW, body=f'{{"CodeResult":"108","ErrorMessage":"Phone {PHONE} bad"}}'),
        "refused",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_a_request_is_sent_once_whatever_the_provider_does(tmp_path: Path, name: str) -> None:
    fault, result = FAULTS[name]
    async with simulator() as provider:
        provider.faults.set("x", replace(fault, operation=Operation.MAKE_CALL_RECORD))
        config = configured(tmp_path, provider.url, RECORDING, "2s" if name == "hang" else "60s")
        async with Hastened(config, EVERY) as exporter:
            await exporter.ready()
            found = await exporter.until(lambda samples: runs(samples) >= 1)
            # What is due later may be waiting for its end.
            assert runs(found, result) == runs(found) == 1
            assert total(found, "esms_canary_success") == 0
        placed = {op: n for (_, op, _), n in provider.traffic.requests.items() if op in MAKE_CALL}
        ((begun,),) = rows(tmp_path, "SELECT count(*) FROM canary_runs")
        assert sum(placed.values()) == begun
        for secret in (PHONE, PHONE[1:], "key-main"):
            assert secret not in exporter.output


async def test_a_provider_that_is_not_there_was_not_asked(tmp_path: Path) -> None:
    async with simulator() as provider:
        url = provider.url
    config = configured(tmp_path, url, RECORDING)
    async with Hastened(config, EVERY) as exporter:
        await exporter.ready()
        found = await exporter.until(lambda samples: runs(samples) >= 1)
        assert runs(found, "unreachable") >= 1


async def test_killed_at_any_moment_it_never_calls_twice(tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(4))
    print(f"seed {seed}")
    chance = random.Random(seed)
    async with simulator() as provider:
        placed = Placed(provider)
        config = configured(tmp_path, provider.url, RECORDING, "2s")
        shown = 0.0
        for _ in range(8):
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
