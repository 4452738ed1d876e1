"""A whole exporter that notifies a receiver of the calls of a stand-in for the provider."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from exporter.app import App
from exporter.config import (
    AccountConfig,
    BalanceConfig,
    Config,
    LedgerConfig,
    NotifyConfig,
    PollingConfig,
    WatchConfig,
)
from exporter.ids import reference_id
from exporter.ledger.types import NewCall
from exporter.secrets import Secret
from exporter.simulator import Plan, Simulator
from tests.notify.receiver import SECRET, Receiver
from tests.samples import value
from tests.waiting import until


def target(name: str, receiver: Receiver, **more: Any) -> NotifyConfig:  # Any: of its keys
    options = {"timeout": 60.0, **more}  # or a busy machine would be sent events again
    return NotifyConfig(name=name, url=Secret(receiver.url), secret=Secret(SECRET), **options)


class Bench:
    """An exporter that notifies a receiver of the calls of a simulator."""

    def __init__(self, simulator: Simulator, folder: Path, *targets: NotifyConfig) -> None:
        self.simulator = simulator
        self.ledger = folder / "ledger.db"
        account = AccountConfig(
            name="main",
            api_key=Secret("key"),
            secret_key=Secret("s"),
            base_url=simulator.url,
            rate_limit=10_000,
        )
        self.config = Config(
            accounts=(account,),
            balance=BalanceConfig(interval=0.0),
            polling=PollingConfig(interval=0.1, max_interval=0.1, timeout=60),
            watch=WatchConfig(labels=("campaign",)),
            ledger=LedgerConfig(url=f"sqlite:///{self.ledger}"),
            shutdown_timeout=60.0,
            notify=targets,
        )
        self.service: App | None = None

    @property
    def running(self) -> App:
        assert self.service is not None
        return self.service

    async def start(self) -> None:
        self.service = App(lambda: self.config)
        await self.service.open()
        await self.service.start()

    async def stop(self) -> None:
        if self.service is not None:
            service, self.service = self.service, None
            await service.stop()
            assert service.supervisor.failure is None

    def notify(self, *targets: NotifyConfig) -> None:
        """Tell others from the next reload on."""
        self.config = self.config.model_copy(update={"notify": targets})

    async def finish(self, *names: str, plan: Plan | None = None, campaign: str = "otp") -> None:
        """Have calls end, and be counted."""
        before = self.counted
        for name in names:
            self.simulator.add_call("main", name, plan or Plan())
        labels = {"campaign": campaign}
        new = [NewCall("main", reference_id(name), labels) for name in names]
        await self.running.calls.add(None, new)
        await until(lambda: self.counted == before + len(names))

    @property
    def counted(self) -> float:
        return value(self.running.metrics, "esms_calls_total")

    def done(self, outcome: str = "delivered", name: str = "t") -> float:
        counted = {"target": name, "outcome": outcome}
        return value(self.running.metrics, "esms_notifications_total", **counted)

    def requests(self, outcome: str, name: str = "t") -> float:
        counted = {"target": name, "outcome": outcome}
        return value(self.running.metrics, "esms_notification_requests_total", **counted)

    def in_ledger(self, which: str = "1 = 1") -> int:
        """Return how many notifications are in the ledger."""
        with closing(sqlite3.connect(f"file:{self.ledger}?mode=ro", uri=True)) as connection:
            query = f"SELECT count(*) FROM notifications WHERE {which}"
            return int(connection.execute(query).fetchone()[0])

    def pending(self, name: str = "t") -> float:
        return value(self.running.metrics, "esms_notifications_pending", target=name)
