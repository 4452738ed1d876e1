"""Files of results: each call has its line, however a look-up ends."""

from __future__ import annotations

import re
import signal
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from exporter.simulator import AccountState, Fault, FaultKind, Simulator
from tests.e2e.commands import Command, run
from tests.e2e.lookups import ACCOUNTS, CONFIG, MAIN, configure, in_csv, in_json, place
from tests.waiting import until


@pytest_asyncio.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with Simulator(accounts=ACCOUNTS) as simulator:
        yield simulator


@pytest.mark.parametrize(
    ("number", "ending"),
    [
        (signal.SIGKILL, "csv"),
        (signal.SIGKILL, "json"),
        (signal.SIGINT, "csv"),
        (signal.SIGTERM, "json"),
    ],
)
async def test_a_file_is_resumed(
    tmp_path: Path, simulator: Simulator, number: signal.Signals, ending: str
) -> None:
    configure(tmp_path, simulator.url, rate=300)
    ids = place(simulator, 300)
    (tmp_path / "ids.txt").write_text("\n".join(ids))
    results = tmp_path / f"results.{ending}"
    arguments = ("lookup", "--from-file=ids.txt", f"--output-file={results.name}", CONFIG)
    read = in_csv if ending == "csv" else in_json
    process = Command(tmp_path, *arguments)
    await until(lambda: results.exists() and results.read_bytes().count(b"\n") > 50)
    process.send_signal(number)
    ended = await process.end()
    if number is signal.SIGKILL:
        results.write_bytes(results.read_bytes()[:-7])  # as a power cut leaves it
    else:
        assert ended.code == 1
        assert re.fullmatch(r"\d+ of 300 calls answered; not: \d+ not requested\n", ended.errors)
        assert results.read_bytes().endswith(b"\n")
    before = {row["reference_id"] for row in read(results.read_text().rpartition("\n")[0])}
    assert 40 <= len(before) < 300
    asked: list[str] = []
    simulator.subscribe(lambda _, __, params, ___: asked.append(params["ReferenceId"]))
    found = await run(tmp_path, *arguments)
    assert (found.code, found.output) == (0, "")
    assert found.errors == f"300 of 300 calls answered, {len(before)} of them already in the file\n"
    assert Counter(row["reference_id"] for row in read(results.read_text())) == Counter(ids)
    assert {*asked} == {*ids} - before
    asked.clear()
    found = await run(tmp_path, *arguments)
    assert found.errors == "300 of 300 calls answered, 300 of them already in the file\n"
    assert not asked


async def test_what_was_not_answered_is_asked_again(tmp_path: Path, simulator: Simulator) -> None:
    configure(tmp_path, simulator.url)
    simulator.put_account(replace(MAIN, state=AccountState.LOCKED))
    place(simulator, 3)
    arguments = ("--output-file=results.csv", CONFIG)
    ids = ["CALL-00000", "CALL-00001"]
    assert (await run(tmp_path, "lookup", *ids, *arguments)).code == 1
    simulator.put_account(MAIN)
    found = await run(tmp_path, "lookup", "CALL-00001", "CALL-00002", *arguments)
    assert found.code == 0
    rows = in_csv((tmp_path / "results.csv").read_text())
    # The last line of a call counts.
    assert {row["reference_id"]: row["outcome"] for row in rows} == {
        "CALL-00000": "auth",
        "CALL-00001": "ok",
        "CALL-00002": "ok",
    }


async def test_two_do_not_write_one_file(tmp_path: Path, simulator: Simulator) -> None:
    configure(tmp_path, simulator.url)
    simulator.faults.set("late", Fault(FaultKind.LATENCY, seconds=0.5, count=1))
    arguments = ("lookup", "a", "--output-file=results.csv", CONFIG)
    first = Command(tmp_path, *arguments)
    await until(lambda: simulator.traffic.open == 1)
    first.send_signal(signal.SIGSTOP)
    second = await run(tmp_path, *arguments)
    assert second.code == 1
    assert second.errors == "esms-exporter: results.csv: is in use by another look-up\n"
    first.send_signal(signal.SIGCONT)
    assert (await first.end()).code == 0


async def test_a_huge_file_at_the_rate_that_is_allowed(
    tmp_path: Path, simulator: Simulator
) -> None:
    configure(tmp_path, simulator.url, rate=100_000)
    ids = place(simulator, 10_000)
    (tmp_path / "ids.csv").write_text("reference_id\n" + "\n".join(ids))
    arguments = ("--from-file=ids.csv", "--output-file=results.csv", CONFIG)
    found = await Command(tmp_path, "lookup", *arguments).end()
    assert found == (0, "", "10000 of 10000 calls answered\n")
    rows = in_csv((tmp_path / "results.csv").read_text())
    assert sorted(row["reference_id"] for row in rows) == ids
    assert simulator.traffic.total() == 10_000
    assert simulator.traffic.peak_open["main"] <= 32
