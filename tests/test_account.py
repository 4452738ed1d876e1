"""The balances of accounts that an exporter polls, reported by a stand-in for the provider."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from prometheus_client import generate_latest
from structlog.testing import capture_logs

from exporter.account import LONGEST_BALANCE_WAIT, balance_wait
from exporter.app import App
from exporter.config import AccountConfig, BalanceConfig
from exporter.esms.client import EsmsClient
from exporter.esms.codes import CODES, Outcome
from exporter.ids import Kind
from exporter.secrets import Secret
from exporter.simulator import Fault, FaultKind, Plan, Simulator
from exporter.web.status_page import Viewer, build_status_view
from tests.e2e.processes import Series, parsed
from tests.notify.bench import ACCOUNTS
from tests.notify.bench import Bench as Exporting
from tests.waiting import deadline, until

OPERATION = "GetBalance_json"
KNOWN_AT = "esms_account_balance_timestamp_seconds"
WARNING = "esms_account_balance_warning_vnd"


@pytest.mark.parametrize(
    ("failures", "interval", "retry_after", "wait"),
    [
        *((0, 300.0, None, 300.0), (1, 300.0, None, 600.0)),
        *((2, 300.0, None, LONGEST_BALANCE_WAIT), (9_999, 1.0, None, LONGEST_BALANCE_WAIT)),
        *((3, 3600.0, None, 3600.0), (0, 86_400.0, 1.0, 86_400.0)),
        *((1, 10.0, 60.0, 60.0), (1, 10.0, 5.0, 20.0), (1, 10.0, 1e12, LONGEST_BALANCE_WAIT)),
    ],
)
def test_the_wait_doubles_up_to_a_bound(
    failures: int, interval: float, retry_after: float | None, wait: float
) -> None:
    assert balance_wait(failures, interval, retry_after) == wait


class Bench(Exporting):
    """An exporter with balances, and the stand-in that it asks for them."""

    def __init__(self, simulator: Simulator, folder: Path) -> None:
        self.connected: list[AccountConfig] = []  # of each client that was made
        app = partial(App, client=self._connect)
        super().__init__(simulator, folder, app, balance=every(0.05), shutdown_timeout=1)
        main, other = self.accounts
        accounts = (main, other.model_copy(update={"balance_warning": 50.0}))
        self.config = self.config.model_copy(update={"accounts": accounts})

    def _connect(self, account: AccountConfig, *args: Any, **options: Any) -> EsmsClient:
        self.connected.append(account)
        return EsmsClient(account, *args, **options)

    def shown(self) -> dict[Series, float]:
        return parsed(generate_latest(self.service.metrics.registry).decode())

    def of(self, name: str, account: str = "main", **labels: str) -> float | None:
        """Return what a series shows; None where there is none."""
        return self.shown().get((name, frozenset({"account": account, **labels}.items())))

    def balance(self, account: str = "main") -> float | None:
        return self.of("esms_account_balance_vnd", account)

    def requests(self, outcome: str, operation: str = "get_balance") -> float:
        labels = {"operation": operation, "outcome": outcome}
        return self.of("esms_api_requests_total", **labels) or 0.0

    def asked(self) -> int:
        """Return how many requests for balances the provider saw."""
        requests = self.simulator.traffic.requests.items()
        return sum(number for (_, operation, _), number in requests if operation == OPERATION)

    def set_balance(self, vnd: float) -> None:
        account = self.simulator.provider.accounts["main"]
        self.simulator.put_account(replace(account, balance=vnd))

    def fail(self, fault: Fault) -> None:
        self.simulator.faults.set("fault", replace(fault, account="main", operation=OPERATION))


def every(seconds: float) -> BalanceConfig:
    """Return an interval that nobody may configure."""
    return BalanceConfig.model_construct(interval=seconds)


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    main, other = (
        replace(one, balance=vnd) for one, vnd in zip(ACCOUNTS, (36_693, 0), strict=True)
    )
    async with Simulator(accounts=[main, other]) as simulator:
        simulator.add_call("main", "call", Plan(queued=math.inf))
        async with Bench(simulator, tmp_path) as bench:
            yield bench


async def test_balances_are_shown_and_change_with_the_providers(bench: Bench) -> None:
    begun = time.time() - 10
    await until(lambda: bench.balance() == 36_693 and bench.balance("b.1") == 0)
    known_at = bench.of(KNOWN_AT)
    assert known_at is not None
    assert begun <= known_at <= time.time()
    page = build_status_view(bench.service, Viewer(), time.time())
    assert [one.balance and one.balance.vnd for one in page.accounts] == [36_693, 0]
    bench.set_balance(20_000)
    await until(lambda: bench.balance() == 20_000)
    assert (bench.of(KNOWN_AT) or 0) > known_at
    assert (bench.of(WARNING), bench.of(WARNING, "b.1")) == (None, 50)


async def test_balances_are_switched_off_and_on(bench: Bench) -> None:
    await until(lambda: bench.balance() == 36_693)
    await bench.change(balance=every(0))
    asked = bench.asked()
    left = [labels for name, labels in bench.shown() if "balance" in name]
    left += [labels for _, labels in bench.shown() if ("operation", "get_balance") in labels]
    assert left == []
    await asyncio.sleep(0.5)
    assert bench.asked() <= asked + len(ACCOUNTS)  # those that were under way
    await bench.change(balance=every(1e9))
    # Every series but the balance is there before the first answer.
    assert (bench.balance(), bench.of(KNOWN_AT), bench.of(WARNING, "b.1")) == (None, 0, 50)
    operation = {"operation": "get_balance"}
    for outcome in Outcome:
        assert bench.of("esms_api_requests_total", **operation, outcome=outcome.value) == 0
    for code in (*CODES, "other"):
        assert bench.of("esms_api_result_codes_total", **operation, code=code) == 0
    assert bench.of("esms_api_request_duration_seconds_count", **operation) == 0
    await bench.change(balance=every(0.05))
    await until(lambda: bench.balance() == 36_693)


async def test_a_refusal_leaves_the_last_balance_and_the_polls_alone(bench: Bench) -> None:
    await until(lambda: bench.balance() == 36_693)
    await bench.watch("call")
    with capture_logs() as logs:
        body = json.dumps({"Balance": 0, "CodeResponse": "101", "ErrorMessage": "Authorize Failed"})
        bench.fail(Fault(FaultKind.RAW, body=body))
        await until(lambda: bench.requests("auth") >= 3)
        code = {"operation": "get_balance", "code": "101"}
        assert bench.of("esms_api_result_codes_total", **code) == bench.requests("auth")
        polls = bench.requests("ok", "get_send_status")
        await until(lambda: bench.requests("ok", "get_send_status") > polls + 1)
        assert bench.of("esms_account_authorized") == 1
        assert bench.of("esms_auth_failures_total", code="101") == 0
        assert bench.balance() == 36_693
        bench.set_balance(5)
        bench.simulator.faults.clear()
        await until(lambda: bench.balance() == 5)
    events = [log for log in logs if log.get("account") == "main" and "balance" in log["event"]]
    assert [log["event"] for log in events] == [
        "balance request failed",
        "balance requests recovered",
    ]
    reason = {"reason": "auth", "code": "101", "message": "Authorize Failed"}
    assert reason.items() <= events[0].items()


async def test_a_paused_account_is_asked_for_its_balance(bench: Bench) -> None:
    fault = Fault(FaultKind.STATUS, operation="GetSendStatus", status=429, retry_after="600")
    bench.simulator.faults.set("throttled", fault)
    await bench.watch("call")
    await until(lambda: bench.service.accounts["main"].status.paused is Outcome.THROTTLED)
    bench.set_balance(1)
    await until(lambda: bench.balance() == 1)


async def test_only_what_has_changed_is_requested_anew(bench: Bench) -> None:
    await until(lambda: bench.balance() == 36_693 and bench.balance("b.1") == 0)
    await bench.change(balance=every(1e9))
    main, other = bench.config.accounts
    asked = bench.asked()
    changed = main.model_copy(update={"rate_limit": 3.0, "balance_warning": 9.0})
    await bench.change(accounts=(changed, other))
    assert (bench.of(WARNING), bench.balance()) == (9, 36_693)
    # The balance of other keys says nothing about these.
    changed = main.model_copy(update={"api_key": Secret("nobody's")})
    await bench.change(accounts=(changed, other))
    assert (bench.of(WARNING), bench.balance(), bench.of(KNOWN_AT)) == (None, None, 0)
    assert (bench.balance("b.1"), bench.asked()) == (0, asked)
    await bench.change(accounts=(other,))
    assert not [labels for _, labels in bench.shown() if ("account", "main") in labels]
    await bench.change(accounts=(other, main), balance=every(0.05))
    await until(lambda: bench.balance() == 36_693)


async def test_whatever_a_request_depends_on_is_in_force_after_a_reload(bench: Bench) -> None:
    nowhere = "http://127.0.0.1:9"
    changes = {
        **dict.fromkeys(("base_url", "message_url", "balance_url"), nowhere),
        **dict.fromkeys(("api_key", "secret_key"), Secret("new")),
        "proxy_url": Secret(nowhere),
        "codes": {"102": "auth"},
    }
    others = {
        "name": "main",
        "callback_token": Secret("new"),
        "default_kind": Kind.MESSAGE,
        "balance_warning": 1.0,
        "rate_limit": 1.0,
        "max_concurrency": 1,
    }
    assert changes.keys() | others.keys() == AccountConfig.model_fields.keys()
    main, other = bench.config.accounts
    for key, value in changes.items():
        bench.connected.clear()
        main = main.model_copy(update={key: value})
        await bench.change(accounts=(main, other))
        assert bench.connected == [main], key
    bench.connected.clear()
    await bench.change(accounts=(main.model_copy(update=others), other))
    assert bench.connected == []


async def test_a_stop_waits_for_no_balance(bench: Bench) -> None:
    bench.fail(Fault(FaultKind.HANG))
    asked = bench.asked()
    await until(lambda: bench.asked() > asked)
    async with deadline():
        await bench.service.stop()
    asked = bench.asked()
    await asyncio.sleep(0.5)
    assert bench.asked() <= asked + len(ACCOUNTS)  # those that were under way


async def test_a_code_that_is_configured_as_refused_credentials(bench: Bench) -> None:
    refusals = "esms_auth_failures_total"
    body = json.dumps({"CodeResult": "102", "ErrorMessage": "account locked"})
    bench.simulator.faults.set("fault", Fault(FaultKind.RAW, operation="GetSendStatus", body=body))
    main, other = bench.config.accounts
    await bench.change(accounts=(main.model_copy(update={"codes": {"102": "auth"}}), other))
    await bench.watch("call")
    await until(lambda: bool(bench.of(refusals, code="102")))
    assert bench.of(refusals, code="101") == 0
    assert bench.of(refusals, "b.1", code="102") is None
    assert bench.requests("auth", "get_send_status") == bench.of(refusals, code="102")
    # A reload without the code resumes polling: the call backs off, the account is not paused.
    await bench.change(accounts=(main, other))
    await until(lambda: bench.requests("api_error", "get_send_status") > 0)
    assert bench.of(refusals, code="102") == bench.requests("auth", "get_send_status")
