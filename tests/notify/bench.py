"""An exporter in the process of the test, and the configuration that it loads."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import NoneType
from typing import Any, Self

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
from exporter.ids import Kind, reference_id
from exporter.ledger.types import NewCall
from exporter.secrets import Secret
from exporter.simulator import Account, Plan, Simulator
from tests.notify.receiver import SECRET, Receiver
from tests.samples import value
from tests.waiting import until

ACCOUNTS = (Account("main", "key", "s"), Account("b.1", "kb", "s"))


def target(name: str, receiver: Receiver, **more: Any) -> NotifyConfig:  # Any: of its keys
    options = {"timeout": 60.0, **more}  # or a busy machine would be sent events again
    return NotifyConfig(name=name, url=Secret(receiver.url), secret=Secret(SECRET), **options)


class Bench:
    """An exporter with the calls of a simulator, which runs within the block.

    Args:
        simulator: with the accounts above.
        ledger: its URL, or the folder for its file.
        app: makes the exporter.
        sections: of the configuration.
    """

    def __init__(
        self,
        simulator: Simulator,
        ledger: str | Path,
        app: Callable[..., App] = App,
        **sections: Any,  # theirs
    ) -> None:
        self.simulator, self._app = simulator, app
        url = ledger if isinstance(ledger, str) else f"sqlite:///{ledger}/ledger.db"
        self.accounts = tuple(
            AccountConfig(
                name=account.name,
                api_key=Secret(account.api_key),
                secret_key=Secret(account.secret_key),
                base_url=simulator.url,
                message_url=simulator.url,
                balance_url=simulator.url,
                rate_limit=10_000,
            )
            for account in ACCOUNTS
        )
        defaults = {
            "accounts": self.accounts,
            "balance": BalanceConfig(interval=0),
            "polling": PollingConfig(interval=0.1, max_interval=0.1, timeout=60),
            "watch": WatchConfig(labels=("campaign",)),
            "ledger": LedgerConfig(url=Secret(url), heartbeat=4),
            "shutdown_timeout": 60,
        }
        self.config = Config(**(defaults | sections))
        self._running: App | None = None

    @property
    def service(self) -> App:
        assert self._running is not None
        return self._running

    async def start(self) -> None:
        self._running = self._app(lambda: self.config)
        await self.service.open()
        await self.service.start()

    async def stop(self, failure: type[BaseException | None] = NoneType) -> None:
        """Stop the exporter, if that was not done; `failure` is the one of its parts, if any."""
        if self._running is not None:
            service, self._running = self._running, None
            await service.stop()
            assert isinstance(service.supervisor.failure, failure)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def restart(self) -> None:
        """Stop the exporter, and start another one on its ledger."""
        await self.stop()
        await self.start()

    async def change(self, **update: object) -> None:
        """Change sections of the configuration, and have it reloaded."""
        self.config = self.config.model_copy(update=update)
        await self.service.reload()

    async def finish(self, *names: str, plan: Plan | None = None, **labels: str) -> None:
        """Have calls end, and be counted."""
        before = self.counted()
        for name in names:
            self.simulator.add_call("main", name, plan or Plan())
        await self.watch(*names, account="main", kind=None, **labels)
        await until(lambda: self.counted() == before + len(names))

    async def watch(
        self, *names: str, account: str = "main", kind: Kind | None = None, **labels: str
    ) -> None:
        """Have calls watched."""
        new = [NewCall(account, reference_id(name), labels, kind) for name in names]
        await self.service.calls.add(None, new)

    def counted(self, **labels: str) -> float:
        return self.value("esms_calls_total", **labels)

    def value(self, metric: str, **labels: str) -> float:
        return value(self.service.metrics, metric, **labels)

    def done(self, outcome: str = "delivered", target: str = "t") -> float:
        return self.value("esms_notifications_total", target=target, outcome=outcome)

    def in_ledger(self, which: str = "1 = 1", table: str = "notifications") -> int:
        """Return how many notifications are in the ledger, a file."""
        file = self.config.ledger.url.reveal().removeprefix("sqlite:///")
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
            query = f"SELECT count(*) FROM {table} WHERE {which}"
            return int(connection.execute(query).fetchone()[0])
