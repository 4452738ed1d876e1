"""A service that is called back, for tests of the callback."""

from __future__ import annotations

from pathlib import Path

import aiohttp
from yarl import URL

from exporter.app import App
from exporter.calls import WatchedCall
from exporter.config import (
    AccountConfig,
    BalanceConfig,
    CallbackConfig,
    Config,
    LedgerConfig,
    PollingConfig,
    WatchConfig,
)
from exporter.ids import reference_id
from exporter.ledger.records import NewCall
from exporter.secrets import Secret
from exporter.simulator import Plan, Simulator
from exporter.web.callback import callback_url
from tests.waiting import until

TOKEN = "made/up token"
OTP = {"campaign": "otp"}
# As the provider's page shows it.
DOCUMENTED = {
    "ReferenceId": "a",
    "CallDuration": "13",
    "CallStatus": "ANSWERED",
    "Ivr": "1",
    "Price": "350.5000",
    "SentResult": "1",
    "CID": "02871002454",
    "SendStatus": "5",
}
LIVE = Plan(queued=10_000)


class Bench:
    """A service that is called back; it polls so seldom that only a callback explains a poll."""

    def __init__(self, folder: Path, simulator: Simulator, http: aiohttp.ClientSession) -> None:
        self.http = http
        self.simulator = simulator
        self.config = Config(
            accounts=(
                AccountConfig(
                    name="main",
                    api_key=Secret("key"),
                    secret_key=Secret("s"),
                    callback_token=Secret(TOKEN),
                    base_url=simulator.url,
                ),
                AccountConfig(
                    name="b", api_key=Secret("kb"), secret_key=Secret("s"), base_url=simulator.url
                ),
            ),
            polling=PollingConfig(interval=600, max_interval=600),
            balance=BalanceConfig(interval=0.0),
            watch=WatchConfig(labels=("campaign",)),
            ledger=LedgerConfig(url=f"sqlite:///{folder / 'ledger.db'}"),
            shutdown_timeout=1,
        )
        self.service = App(lambda: self.config)
        self.url = ""
        self.retry_after: str | None = None

    async def start(self) -> None:
        await self.service.open()
        await self.service.start()

    async def trust(self, trust: str = "verify", unknown: str = "watch") -> None:
        callback = CallbackConfig.model_validate({"trust": trust, "unknown": unknown})
        watch = self.config.watch.model_copy(update={"callback": callback})
        self.config = self.config.model_copy(update={"watch": watch})
        await self.service.reload()

    @property
    def polls(self) -> float:
        """How often the provider was asked."""
        return sum(self.service.accounts["main"].stats.polls.durations.counts)

    async def watch(self, name: str, plan: Plan) -> None:
        """Watch a call, and wait until it was asked for once."""
        self.simulator.add_call("main", name, plan)
        await self.service.calls.push([[NewCall("main", reference_id(name), OTP)]])
        await until(lambda: any(call.last_polled for call in self.calls.values()))

    def end(self, name: str, plan: Plan) -> None:
        """Let a call have ended, for the provider."""
        assert not plan.ends_after
        self.simulator.add_call("main", name, plan)

    async def call_back(self, token: str = TOKEN, account: str = "main", **fields: str) -> int:
        url = callback_url(self.url, account, Secret(token))
        query = {**DOCUMENTED, **fields}
        async with self.http.get(URL(url, encoded=True).with_query(query)) as answer:
            self.retry_after = answer.headers.get("Retry-After")
            return answer.status

    @property
    def calls(self) -> dict[int, WatchedCall]:
        return dict(self.service.accounts["main"].poller.calls)

    @property
    def outcomes(self) -> dict[str, float]:
        series = self.service.account_metrics["main"].callbacks
        return {outcome.value: value.value for outcome, value in series.items() if value.value}

    def counted(self, status: str) -> float:
        family = self.service.calls.call_metrics.finished
        return sum(v.value for k, v in family._series.items() if k[0] == "main" and k[2] == status)

    @property
    def price(self) -> dict[str, float]:
        series = self.service.calls.call_metrics.price._series
        return {k[1]: v.value for k, v in series.items() if k[0] == "main" and v.value}
