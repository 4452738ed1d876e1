"""An exporter that publishes to a broker, in the process of the test."""

from __future__ import annotations

import asyncio

from exporter.app import App
from exporter.config import (
    AccountConfig,
    BalanceConfig,
    Config,
    HomeAssistantConfig,
    LedgerConfig,
    PollingConfig,
    WatchConfig,
)
from exporter.ids import reference_id
from exporter.ledger.types import NewCall
from exporter.notify.home_assistant import NAME
from exporter.secrets import Secret
from exporter.simulator import Plan, Simulator
from tests.samples import value


class Bench:
    """An exporter that publishes to a broker, and the configuration that it loads."""

    def __init__(self, simulator: Simulator, ledger: str, config: HomeAssistantConfig) -> None:
        self.simulator = simulator
        self.config = Config(
            accounts=(self.account("main", "key"), self.account("b.1", "kb")),
            balance=BalanceConfig(interval=0),
            polling=PollingConfig(interval=0.1, max_interval=0.1, timeout=60),
            watch=WatchConfig(labels=("campaign",)),
            ledger=LedgerConfig(url=Secret(ledger), heartbeat=4),
            home_assistant=config,
            shutdown_timeout=60,
        )
        self.service = App(lambda: self.config)
        self.running = False

    def account(self, name: str, key: str) -> AccountConfig:
        return AccountConfig(
            name=name,
            api_key=Secret(key),
            secret_key=Secret("s"),
            base_url=self.simulator.url,
            balance_url=self.simulator.url,
        )

    async def start(self) -> None:
        await self.service.open()
        await self.service.start()
        self.running = True

    async def stop(self) -> None:
        """Stop the exporter, if that was not done."""
        if self.running:
            self.running = False
            await self.service.stop()

    async def restart(self) -> None:
        """Stop the exporter, and start another one on its ledger."""
        await self.stop()
        self.service = App(lambda: self.config)
        await self.start()

    async def change(self, **update: object) -> None:
        self.config = self.config.model_copy(update=update)
        await self.service.reload()

    async def tell(self, **update: object) -> None:
        """Change the section `home_assistant`."""
        assert self.config.home_assistant
        await self.change(home_assistant=self.config.home_assistant.model_copy(update=update))

    async def finish(self, name: str, plan: Plan | None = None, **labels: str) -> None:
        """Have a call watched that finishes."""
        self.simulator.add_call("main", name, plan or Plan())
        await self.watch(name, **labels)

    async def watch(self, name: str, **labels: str) -> None:
        """Have a call watched."""
        await self.service.calls.add(None, [NewCall("main", reference_id(name), labels)])

    async def pause(self, seconds: float) -> None:
        """Wait for what is not to happen."""
        await asyncio.sleep(seconds)

    def messages(self, kind: str, outcome: str) -> float:
        counted = {"kind": kind, "outcome": outcome}
        return value(self.service.metrics, "esms_mqtt_messages_total", **counted)

    def events(self, outcome: str) -> float:
        counted = {"target": NAME, "outcome": outcome}
        return value(self.service.metrics, "esms_notifications_total", **counted)

    @property
    def connected(self) -> float:
        return value(self.service.metrics, "esms_mqtt_connected")

    @property
    def errors(self) -> float:
        return value(self.service.metrics, "esms_mqtt_connection_errors_total")
