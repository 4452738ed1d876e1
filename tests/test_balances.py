"""The balances of a service, told by a stand-in for the provider."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from prometheus_client import generate_latest
from structlog.testing import capture_logs

from exporter import balances as module
from exporter.app import App
from exporter.balances import LONGEST_WAIT, wait_after
from exporter.config import AccountConfig, BalanceConfig, Config, LedgerConfig, PollingConfig
from exporter.esms.codes import CODES, Outcome
from exporter.ids import reference_id
from exporter.ledger.types import NewCall
from exporter.secrets import Secret
from exporter.simulator import Account, AccountState, Fault, FaultKind, Plan, Simulator
from exporter.web.status import Viewer, gather
from tests.e2e.processes import Series, parsed
from tests.waiting import deadline, until

OPERATION = "GetBalance_json"
LIVE = Plan(queued=math.inf)


@pytest.mark.parametrize(
    ("failures", "interval", "retry_after", "wait"),
    [
        *((0, 300.0, None, 300.0), (1, 300.0, None, 600.0), (2, 300.0, None, LONGEST_WAIT)),
        *(
            (9_999, 1.0, None, LONGEST_WAIT),
            (3, 3600.0, None, 3600.0),
            (0, 86_400.0, 1.0, 86_400.0),
        ),
        *((1, 10.0, 60.0, 60.0), (1, 10.0, 5.0, 20.0), (1, 10.0, 1e12, LONGEST_WAIT)),
    ],
)
def test_the_wait_doubles_up_to_a_bound(
    failures: int, interval: float, retry_after: float | None, wait: float
) -> None:
    assert wait_after(failures, interval, retry_after) == wait


class Bench:
    """A service, the configuration that it loads, and the stand-in that it asks."""

    def __init__(self, simulator: Simulator, folder: Path) -> None:
        self.simulator = simulator
        self.config = Config(
            accounts=(self.account("main"), self.account("b", balance_warning=50.0)),
            polling=PollingConfig(interval=0.1, max_interval=0.1, timeout=0.3),
            balance=every(0.05),
            ledger=LedgerConfig(url=f"sqlite:///{folder / 'ledger.db'}"),
            shutdown_timeout=1,
        )
        self.service = App(lambda: self.config)

    def account(self, name: str, **changes: object) -> AccountConfig:
        values = {
            "name": name,
            "api_key": Secret(f"key-{name}"),
            "secret_key": Secret(f"secret-{name}"),
            "base_url": self.simulator.url,
            "balance_url": self.simulator.url,
        }
        return AccountConfig(**{**values, **changes})

    async def reload(self, **changes: object) -> None:
        self.config = self.config.model_copy(update=changes)
        await self.service.reload()

    def shown(self) -> dict[Series, float]:
        return parsed(generate_latest(self.service.metrics.registry).decode())

    def value(self, name: str, account: str = "main", **labels: str) -> float | None:
        """Return what a series shows; None where there is none."""
        return self.shown().get((name, frozenset({"account": account, **labels}.items())))

    def balance(self, account: str = "main") -> float | None:
        return self.value("esms_account_balance_vnd", account)

    def requests(self, outcome: str, account: str = "main") -> float:
        labels = {"operation": "get_balance", "outcome": outcome}
        return self.value("esms_api_requests_total", account, **labels) or 0.0

    def asked(self, account: str = "main") -> int:
        """Return how many requests for a balance the provider saw."""
        return sum(
            number
            for (name, operation, _), number in self.simulator.traffic.requests.items()
            if (name, operation) == (account, OPERATION)
        )

    def put(self, **changes: object) -> None:
        account = self.simulator.provider.accounts["main"]
        self.simulator.put_account(replace(account, **changes))  # type: ignore[arg-type]


def every(seconds: float) -> BalanceConfig:
    """Return an interval that nobody may configure."""
    return BalanceConfig.model_construct(interval=seconds)


@pytest_asyncio.fixture
async def simulator() -> AsyncIterator[Simulator]:
    accounts = [
        Account("main", "key-main", "secret-main", balance=36_693),
        Account("b", "key-b", "secret-b", balance=0),
    ]
    async with Simulator(accounts=accounts) as simulator:
        simulator.add_call("main", "call", LIVE)
        yield simulator


@pytest_asyncio.fixture
async def bench(
    simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Bench]:
    monkeypatch.setattr(module, "LONGEST_WAIT", 0.2)
    bench = Bench(simulator, tmp_path)
    await bench.service.open()
    await bench.service.start()
    yield bench
    await bench.service.stop()


async def test_balances_are_shown_and_go_with_the_provider(bench: Bench) -> None:
    begun = time.time() - 10
    await until(lambda: bench.balance() == 36_693 and bench.balance("b") == 0)
    told = bench.value("esms_account_balance_timestamp_seconds")
    assert told is not None
    assert begun <= told <= time.time()
    assert bench.service.balances.known["main"] == (36_693, told)
    page = gather(bench.service, Viewer(), time.time())
    assert [one.balance and one.balance.vnd for one in page.accounts] == [36_693, 0]
    bench.put(balance=20_000)
    await until(lambda: bench.balance() == 20_000)
    assert (bench.value("esms_account_balance_timestamp_seconds") or 0) > told
    assert bench.value("esms_account_balance_warning_vnd") is None
    assert bench.value("esms_account_balance_warning_vnd", "b") == 50


async def test_every_series_but_the_balance_is_there_before_the_first_answer(bench: Bench) -> None:
    await bench.reload(balance=every(0))
    await bench.reload(balance=every(1e9))
    await asyncio.sleep(0)
    assert bench.balance() is None
    assert bench.value("esms_account_balance_timestamp_seconds") == 0
    for outcome in Outcome:
        labels = {"operation": "get_balance", "outcome": outcome.value}
        assert bench.value("esms_api_requests_total", **labels) is not None
    for code in (*CODES, "other"):
        labels = {"operation": "get_balance", "code": code}
        assert bench.value("esms_api_result_codes_total", **labels) is not None
    assert bench.value("esms_api_request_duration_seconds_count", operation="get_balance") == 0


async def test_a_refusal_is_a_failure_and_no_balance(bench: Bench) -> None:
    await until(lambda: bench.balance() == 36_693)
    told = bench.value("esms_account_balance_timestamp_seconds")
    await bench.service.calls.add(None, [NewCall("main", reference_id("call"), {})])
    simulator = bench.simulator
    with capture_logs() as logs:
        body = json.dumps({"Balance": 0, "CodeResponse": "101", "ErrorMessage": "Authorize Failed"})
        simulator.faults.set(
            "refused", Fault(FaultKind.RAW, account="main", operation=OPERATION, body=body)
        )
        await until(lambda: bench.requests("auth") >= 3)
        assert bench.balance() == 36_693
        stale = bench.value("esms_account_balance_timestamp_seconds")
        code = {"operation": "get_balance", "code": "101"}
        assert bench.value("esms_api_result_codes_total", **code) == bench.requests("auth")
        # The calls are asked for all the same, and nobody says that their credentials are refused.
        labels = {"operation": "get_send_status", "outcome": "ok"}
        polls = bench.value("esms_api_requests_total", **labels)
        assert polls is not None
        await until(lambda: (bench.value("esms_api_requests_total", **labels) or 0) > polls + 1)
        assert bench.value("esms_account_authorized") == 1
        assert bench.value("esms_auth_failures_total", code="101") == 0
        simulator.faults.clear()
        await until(lambda: bench.value("esms_account_balance_timestamp_seconds") != stale)
    assert stale is not None
    assert told is not None
    assert stale >= told
    events = [log for log in logs if log.get("account") == "main" and "balance" in log["event"]]
    assert [log["event"] for log in events] == ["balance not known", "balance is known again"]
    assert (events[0]["reason"], events[0]["code"]) == ("auth", "101")
    assert events[0]["message"] == "Authorize Failed"


async def test_an_account_that_is_paused_is_asked_for_its_balance(bench: Bench) -> None:
    fault = Fault(FaultKind.STATUS, operation="GetSendStatus", status=429, retry_after="600")
    bench.simulator.faults.set("throttled", fault)
    await bench.service.calls.add(None, [NewCall("main", reference_id("call"), {})])
    await until(lambda: bench.service.accounts["main"].status.paused is Outcome.THROTTLED)
    bench.put(balance=1)
    await until(lambda: bench.balance() == 1)


# Others come to the same outcomes: see `tests/esms`.
FAULTS = {
    "late": (Fault(FaultKind.LATENCY, seconds=5), "timeout"),
    "reset": (Fault(FaultKind.RESET), "connection"),
    "throttled": (Fault(FaultKind.STATUS, status=429, retry_after="900"), "throttled"),
    "negative": (
        Fault(FaultKind.RAW, body='{"CodeResponse": "100", "Balance": -5}'),
        "bad_response",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_a_fault_leaves_what_was_known_and_comes_to_an_end(bench: Bench, name: str) -> None:
    fault, outcome = FAULTS[name]
    await until(lambda: bench.balance() == 36_693)
    bench.simulator.faults.set("fault", replace(fault, account="main", operation=OPERATION))
    await until(lambda: bench.requests(outcome) >= 2)
    assert bench.balance() == 36_693
    others = bench.requests("ok", "b")
    await until(lambda: bench.requests("ok", "b") > others)
    bench.put(balance=5)
    bench.simulator.faults.clear()
    await until(lambda: bench.balance() == 5)


async def test_a_provider_that_is_away(bench: Bench) -> None:
    await until(lambda: bench.balance() == 36_693)
    await bench.simulator.stop()
    await until(lambda: bench.requests("connection") >= 2)
    assert bench.balance() == 36_693
    bench.put(balance=5)
    await bench.simulator.start()
    await until(lambda: bench.balance() == 5)


async def test_revoked_keys_are_tried_less_and_less_often(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LONGEST_WAIT", LONGEST_WAIT)
    await bench.reload(balance=every(600))
    bench.put(state=AccountState.REVOKED)
    await bench.reload(balance=every(0.06))
    before, begun = bench.asked(), time.monotonic()
    await until(lambda: bench.asked() - before >= 4)
    # Each wait is twice as long as the one before, but for a tenth: 0.12, 0.24 and 0.48 s.
    assert time.monotonic() - begun >= 0.9 * (0.12 + 0.24 + 0.48) - 0.12
    # Other keys are tried at once.
    bench.simulator.put_account(Account("main", "key-new", "secret-new", balance=7))
    keys = {"api_key": Secret("key-new"), "secret_key": Secret("secret-new")}
    accounts = (bench.account("main", **keys), bench.account("b"))
    await bench.reload(accounts=accounts, balance=every(1000))
    await until(lambda: bench.balance() == 7)


async def test_a_reload_that_changes_nothing_of_it_asks_no_more_often(bench: Bench) -> None:
    await bench.reload(balance=every(1000))
    asking = dict(bench.service.balances._tasks)
    main, other = bench.config.accounts
    changed = main.model_copy(update={"rate_limit": 3.0, "balance_warning": 9.0})
    await bench.reload(accounts=(changed, other))
    assert bench.service.balances._tasks == asking
    assert bench.value("esms_account_balance_warning_vnd") == 9
    await bench.reload(accounts=(main, other))
    assert bench.value("esms_account_balance_warning_vnd") is None


async def test_what_other_keys_told_is_not_shown(bench: Bench) -> None:
    await until(lambda: bench.balance() == 36_693)
    main, other = bench.config.accounts
    changed = main.model_copy(update={"api_key": Secret("nobody's")})
    await bench.reload(accounts=(changed, other), balance=every(1000))
    assert bench.balance() is None
    assert bench.value("esms_account_balance_timestamp_seconds") == 0
    assert "main" not in bench.service.balances.known
    # The other account's is still its own.
    assert bench.balance("b") == 0


async def test_it_is_switched_off_and_on(bench: Bench) -> None:
    await until(lambda: bench.balance() == 36_693)
    await bench.reload(balance=BalanceConfig(interval=0.0))
    asked = bench.asked()
    left = [labels for name, labels in bench.shown() if "balance" in name]
    left += [labels for _, labels in bench.shown() if ("operation", "get_balance") in labels]
    assert left == []
    assert bench.value("esms_account_authorized") == 0
    assert bench.service.balances.known == {}
    await asyncio.sleep(0.2)
    assert bench.asked() == asked
    await bench.reload(balance=every(0.05))
    assert bench.value("esms_account_balance_timestamp_seconds") == 0
    await until(lambda: bench.balance() == 36_693)
    assert bench.value("esms_account_balance_warning_vnd", "b") == 50


async def test_an_account_goes_and_comes(bench: Bench) -> None:
    await until(lambda: bench.balance() == 36_693)
    main, other = bench.config.accounts
    await bench.reload(accounts=(other,))
    assert not [labels for _, labels in bench.shown() if ("account", "main") in labels]
    await bench.reload(accounts=(other, main))
    await until(lambda: bench.balance() == 36_693)


async def test_a_stop_waits_for_no_answer(bench: Bench) -> None:
    await bench.reload(polling=PollingConfig(timeout=600))
    bench.simulator.faults.set("late", Fault(FaultKind.HANG, operation=OPERATION))
    asked = bench.asked()
    await until(lambda: bench.asked() > asked)
    async with deadline():
        await bench.service.stop()
    asked = bench.asked()
    await asyncio.sleep(0.2)
    assert bench.asked() == asked
