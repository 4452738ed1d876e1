from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping

import pytest
import pytest_asyncio

from exporter.simulator import Account, Caller, Campaign, Fault, FaultKind, Simulator
from tests.waiting import until

MAIN = Account("main", "key", "secret")
OTP = Campaign(labels={"campaign": "otp"}, max_retry=1, wait_retry=1)


@pytest_asyncio.fixture
async def sim() -> AsyncIterator[Simulator]:
    async with Simulator(accounts=(MAIN, Account("other", "key 2", "secret 2"))) as sim:
        yield sim


class Placed(list[tuple[str, str, Mapping[str, str]]]):
    async def __call__(self, account: str, reference_id: str, labels: Mapping[str, str]) -> None:
        self.append((account, reference_id, labels))


async def test_calls_are_placed_and_handed_on(sim: Simulator) -> None:
    placed = Placed()
    accounts = tuple(sim.provider.accounts.values())
    caller = Caller(sim.url, accounts, (OTP,), placed, rate=1000, limit=10)
    await caller.run()
    assert (caller.placed, caller.refused) == (10, 0)
    assert sorted(account for account, _, _ in placed) == ["main"] * 5 + ["other"] * 5
    assert all(labels == {"campaign": "otp"} for _, _, labels in placed)
    known = {call.reference_id for call in sim.provider.calls.values()}
    assert {reference_id.upper() for _, reference_id, _ in placed} == known


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault(FaultKind.RESET), "ClientOSError"),
        (Fault(FaultKind.HANG), "TimeoutError"),
        (Fault(FaultKind.HTML), "JSONDecodeError"),
        (Fault(FaultKind.NOT_OBJECT), "None"),
        (Fault(FaultKind.HUGE), "too large"),
        (Fault(FaultKind.RAW, body='{"CodeResult": "160"}'), "160"),
        (Fault(FaultKind.RAW, body='{"CodeResult": 100}'), "no SMSID"),
        (Fault(FaultKind.RAW, body="[" * 60_000), "RecursionError"),
    ],
    ids=lambda value: value.kind if isinstance(value, Fault) else value,
)
async def test_refusals_are_survived_and_told_once(
    sim: Simulator, caplog: pytest.LogCaptureFixture, fault: Fault, reason: str
) -> None:
    caplog.set_level(logging.INFO, "exporter.simulator.caller")
    sim.faults.set("it", fault)
    placed = Placed()
    caller = Caller(sim.url, (MAIN,), (OTP,), placed, rate=1000, limit=3, timeout=0.2)
    await caller.run()
    assert (caller.placed, caller.refused) == (0, 3)
    sim.faults.clear()
    await caller.run()
    assert caller.placed == len(placed) == 3
    assert "key" not in caplog.text
    assert [record.getMessage() for record in caplog.records] == [
        f"no call placed account=main reason={reason}",
        "calls are placed again account=main",
    ]


async def test_cancelling_ends_it_at_once(sim: Simulator) -> None:
    sim.faults.set("it", Fault(FaultKind.HANG))
    caller = Caller(sim.url, (MAIN,), (OTP,), Placed(), rate=1000, max_open=2)
    running = asyncio.create_task(caller.run())
    await until(lambda: sim.traffic.open == 2)
    await asyncio.sleep(0.05)
    assert sim.traffic.open == 2
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await until(lambda: sim.traffic.open == 0)


async def test_errors_of_the_callback_are_not_swallowed(sim: Simulator) -> None:
    async def broken(account: str, reference_id: str, labels: Mapping[str, str]) -> None:
        raise LookupError(account)

    with pytest.RaisesGroup(LookupError):
        await Caller(sim.url, (MAIN,), (OTP,), broken, rate=1000, limit=1).run()


@pytest.mark.parametrize("choices", [{"rate": 0.0}, {"rate": 1.0, "max_open": 0}])
def test_bounds(choices: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Caller("http://x", (MAIN,), (OTP,), Placed(), **choices)  # type: ignore[arg-type]


def test_something_to_call_for() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Caller("http://x", (MAIN,), (), Placed(), rate=1)
