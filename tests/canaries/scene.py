"""Exporters with canary calls, and the provider that they call."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from exporter.config import CanaryConfig
from exporter.secrets import Secret
from exporter.simulator import Account, Fault, FaultKind, Operation, Plan, Reply, Simulator
from tests.e2e.processes import Exporter, Series, total
from tests.subprocesses import UNMEASURED

PHONE = "0912345678"
ACCOUNT = Account("main", "key-main", "s", balance=1e9)
ANSWERED = Plan(approval=2, queued=5, sent=30, ivr="1", price=700)
UNANSWERED = Plan(approval=2, queued=5, sent=20, call_status="NO ANSWER", duration=0)
NO_STATUS = Fault(FaultKind.RAW, operation="GetSendStatus", body='{"CodeResult":"105"}')
MAKE_CALL = (Operation.MAKE_CALL_RECORD, Operation.MAKE_CALL_TEMPLATE)


def by_hand(name: str, max_per_day: int) -> CanaryConfig:
    """Return a canary whose calls are placed by a button, and once a week."""
    return CanaryConfig(
        name=name,
        account="main",
        every=604_800.0,
        phone=Secret(PHONE),
        recording="1",
        max_per_day=max_per_day,
    )


class Hastened(Exporter):
    """An exporter whose canary calls are due every few seconds; see `tests.canaries.hastened`."""

    def __init__(self, config: Path, every: float) -> None:
        super().__init__(config, environ=UNMEASURED)
        script = Path(__file__).with_name("hastened.py")
        self._command = [sys.executable, str(script), str(every), str(config)]
        self._environ["PYTHONPATH"] = str(Path(__file__).parents[2])


class Placed:
    """The requests to place a call that the provider got, and what it said to each."""

    def __init__(self, simulator: Simulator) -> None:
        self.requests: list[Mapping[str, str]] = []
        self.codes: list[str] = []
        simulator.subscribe(self._add)

    def _add(self, operation: str, _: str, params: Mapping[str, str], reply: Reply) -> None:
        if operation in MAKE_CALL:
            self.requests.append(params)
            self.codes.append(reply.code)

    @property
    def request_ids(self) -> list[str]:
        return [params.get("RequestID") or params["RequestId"] for params in self.requests]


def simulator(plan: Plan = ANSWERED) -> Simulator:
    return Simulator(accounts=(ACCOUNT,), draw=lambda _: plan, speed=50, seed=1)


def config_text(base_url: str, ledger: str, canary: str, timeout: str = "60s") -> str:
    return (
        f"accounts:\n  - {{name: main, api_key: key-main, secret_key: s, base_url: '{base_url}'}}\n"
        f"balance: {{interval: 0s}}\n"
        f"polling: {{interval: 200ms, max_interval: 1s, timeout: {timeout}}}\n"
        f"ledger: {{url: '{ledger}', heartbeat: 6s}}\n"
        f"canaries:\n  - {{name: hourly, every: 10m, phone: '{PHONE}', {canary}}}\n"
    )


def configured(folder: Path, url: str, canary: str, timeout: str = "60s") -> Path:
    config = folder / "config.yaml"
    config.write_text(config_text(url, f"sqlite:///{folder}/ledger.db", canary, timeout))
    return config


def runs(samples: Mapping[Series, float], result: str | None = None) -> float:
    labels = {"result": result} if result else {}
    return total(samples, "esms_canary_runs_total", canary="hourly", **labels)


def rows(folder: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(folder / "ledger.db")) as ledger:
        return ledger.execute(query).fetchall()
