"""Exporters in one process that share a ledger, each behind a network of its own."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, Final, NamedTuple, Self

from sqlalchemy import create_engine, make_url, text
from sqlalchemy.pool import NullPool

from exporter.app import App
from exporter.config import (
    AccountConfig,
    BalanceConfig,
    CallConfig,
    Config,
    LedgerConfig,
    PollingConfig,
    WatchConfig,
)
from exporter.esms.answers import Answer
from exporter.esms.codes import Outcome
from exporter.ids import reference_id
from exporter.ledger.types import NewCall
from exporter.secrets import Secret
from tests.replicas.proxy import Proxy
from tests.samples import samples, value
from tests.waiting import deadline, until

HEARTBEAT: Final = 4.0
"""Seconds: a machine that is busy with other tests lets none of them stand still for as long."""

QUEUED: Final = Answer(Outcome.OK, "100", send_status=2)
BUSY: Final = Answer(Outcome.OK, "100", send_status=5, sent_result=0, call_status="BUSY")
ANSWERED: Final = Answer(
    Outcome.OK, "100", send_status=5, sent_result=1, call_status="ANSWERED", duration=7, ivr="1"
)


class Asked(NamedTuple):
    """A request: when (seconds of the loop), by whom, and for which call."""

    at: float
    by: str
    name: str


class Provider:
    """Knows who asks for what: each exporter knows it by another address."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.answers: dict[str, Answer] = {}
        self.failing: dict[str, Answer] = {}  # by exporter: what it gets in place of answers
        self.answered: dict[str, asyncio.Event] = {}  # by exporter: answers wait for it
        self.clients = Counter[str]()  # by exporter: how many are open

    def client(self, by: str, *_: object, **__: object) -> Any:  # Any: in place of `EsmsClient`
        return Client(self, by)

    def by(self, name: str, since: float = 0.0) -> Counter[str]:
        """Return how often each exporter asked for a call."""
        return Counter(asked.by for asked in self.asked if asked.name == name and asked.at >= since)


class Client:
    """Stands where `exporter.esms.client.EsmsClient` does."""

    def __init__(self, provider: Provider, by: str) -> None:
        self._provider, self._by = provider, by
        provider.clients[by] += 1

    async def send_status(self, name: str, *_: object) -> Answer:
        now = asyncio.get_running_loop().time()
        self._provider.asked.append(Asked(now, self._by, name))
        if (answered := self._provider.answered.get(self._by)) is not None:
            await answered.wait()
        return self._provider.failing.get(self._by) or self._provider.answers.get(name, QUEUED)

    async def close(self) -> None:
        self._provider.clients[self._by] -= 1


class Exporter:
    """One of them."""

    def __init__(self, name: str, proxy: Proxy, config: Config, provider: Provider) -> None:
        self.name = name
        self.proxy = proxy
        self.config = config
        self.service = App(lambda: self.config, client=partial(provider.client, name))
        self.stopped = False

    async def start(self) -> None:
        await self.service.open()
        await self.service.start()

    async def stop(self) -> None:
        if not self.stopped:
            self.stopped = True
            await self.service.stop()
            assert self.service.supervisor.failure is None

    async def configure(self, **parts: Any) -> None:
        """Go over to a configuration with other parts."""
        self.config = self.config.model_copy(update=parts)
        await self.service.reload()

    @property
    def accounts(self) -> set[str]:
        """The accounts that it polls."""
        return set(self.service.accounts)

    @property
    def holds(self) -> set[str]:
        """The calls that it polls."""
        return {
            call.reference_id
            for account in self.service.accounts.values()
            for call in account.poller.calls.values()
        }

    @property
    def evictions(self) -> int:
        return int(value(self.service.metrics, "esms_replica_evictions_total"))

    def shown(self) -> dict[str, float]:
        """Return the series of finished calls, without zeros."""
        found: dict[str, float] = {}
        for one in samples(self.service.metrics):
            if one.name.startswith("esms_call") and one.value and "account" in one.labels:
                labels = ",".join(f'{name}="{text}"' for name, text in one.labels.items())
                found[f"{one.name}{{{labels}}}"] = one.value
        return {name: value for name, value in found.items() if "esms_calls_watched" not in name}

    def counted(self) -> float:
        """Return how many calls it shows as finished."""
        return sum(value for key, value in self.shown().items() if key.startswith("esms_calls_t"))

    async def push(self, *names: str, account: str = "main", **labels: str) -> None:
        await self.service.sources.api.push(
            [NewCall(account, reference_id(name), labels) for name in names]
        )


class Scene:
    """The exporters, the provider that they ask, and the ledger that they share."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._engine = create_engine(url, poolclass=NullPool)
        self._ends = AsyncExitStack()
        self.provider = Provider()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._ends.aclose()

    def account_configs(self, by: str, *names: str) -> tuple[AccountConfig, ...]:
        return tuple(
            AccountConfig(
                name=name,
                api_key=Secret("key"),
                secret_key=Secret("s"),
                base_url=f"http://{by}.invalid/json",
                rate_limit=200,
            )
            for name in names
        )

    async def exporter(
        self,
        name: str,
        calls: Mapping[str, str] | None = None,
        accounts: Iterable[str] = ("main",),
        interval: float = 0.2,
        user: str | None = None,
    ) -> Exporter:
        """Start an exporter.

        Args:
            name: of the exporter.
            calls: that its configuration names, with their accounts.
            accounts: that it is configured with.
            interval: seconds between two polls of a call.
            user: of the server, whose password is the same; its owner by default.
        """
        to = make_url(self.url)
        assert to.port is not None
        proxy = await self._ends.enter_async_context(Proxy(to.port))
        url = to.set(drivername="postgresql", port=proxy.port)
        if user:
            url = url.set(username=user, password=user)
        config = Config(
            accounts=self.account_configs(name, *accounts),
            balance=BalanceConfig(interval=0.0),
            polling=PollingConfig(interval=interval, max_interval=interval, timeout=1),
            watch=WatchConfig(
                labels=("campaign",),
                calls=tuple(
                    CallConfig(reference_id(call), account)
                    for call, account in (calls or {}).items()
                ),
            ),
            ledger=LedgerConfig(
                url=Secret(url.render_as_string(hide_password=False)), heartbeat=HEARTBEAT
            ),
            shutdown_timeout=1,
        )
        exporter = Exporter(name, proxy, config, self.provider)
        self._ends.push_async_callback(exporter.stop)
        self._ends.callback(proxy.heal)
        await exporter.start()
        return exporter

    def _rows(self, query: str) -> list[Any]:
        with self._engine.begin() as connection:
            result = connection.execute(text(query))
            return list(result) if result.returns_rows else []

    async def rows(self, query: str) -> list[Any]:
        """Run a statement in the ledger."""
        return await asyncio.to_thread(self._rows, query)

    async def settled(self, names: Collection[str], *exporters: Exporter) -> None:
        """Wait until each call is polled by one of them, for good, and accounts are even.

        What the ledger says of who polls an account is the same.
        """

        def shared() -> bool:
            held = [exporter.holds for exporter in exporters]
            counts = [len(exporter.accounts) for exporter in exporters]
            return (
                sum(map(len, held)) == len(names)
                and set().union(*held) == set(names)
                and max(counts) - min(counts) <= 1
            )

        async with deadline():
            since, held = self.clock(), list[set[str]]()
            while held != (held := [exporter.holds for exporter in exporters]) or not shared():
                since = self.clock()
                # As long as it takes to see what others hold, and to follow.
                await asyncio.sleep(0.5 * HEARTBEAT)
        await until(lambda: all(self.provider.by(name, since) for name in names))
        query = "SELECT a.name, l.holder FROM leases l JOIN accounts a ON a.id = l.account_id"
        holders = {
            exporter.service.ledger.store.exporter: exporter.accounts for exporter in exporters
        }
        for account, holder in await self.rows(query):
            assert [id_ for id_, accounts in holders.items() if account in accounts] == [holder]
        holds = {name: exporter.name for exporter in exporters for name in exporter.holds}
        for name in names:
            assert list(self.provider.by(name, since)) == [holds[name]]

    async def row(self, name: str) -> int:
        """Return the row of a call."""
        ((row,),) = await self.rows(f"SELECT id FROM calls WHERE reference_id = '{name}'")
        return int(row)

    async def finds(self, query: str, rows: Sequence[tuple[object, ...]]) -> None:
        """Wait until a query of the ledger finds these rows."""
        async with deadline():
            found = await self.rows(query)
            while found != rows:
                await asyncio.sleep(0.05)
                found = await self.rows(query)

    async def waits(self, statement: str) -> None:
        """Wait until a statement of an exporter waits for a lock; the statement is a pattern."""
        await self.finds(
            "SELECT DISTINCT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
            f"AND query LIKE '{statement}'",
            [(1,)],
        )

    @asynccontextmanager
    async def locked(self, statement: str) -> AsyncIterator[None]:
        """Run a statement that locks something, and hold the lock."""
        connection = await asyncio.to_thread(self._engine.connect)
        try:
            await asyncio.to_thread(connection.execute, text(statement))
            yield
        finally:
            await asyncio.to_thread(connection.close)

    def finish(self, *names: str, answer: Answer = ANSWERED) -> None:
        """Have the provider say that calls have finished."""
        self.provider.answers |= dict.fromkeys(names, answer)

    @staticmethod
    def clock() -> float:
        return asyncio.get_running_loop().time()


def spread(names: Iterable[str], accounts: Sequence[str]) -> dict[str, str]:
    """Return calls with their accounts, to which they belong in turns."""
    return {name: accounts[number % len(accounts)] for number, name in enumerate(names)}


def names(count: int, prefix: str = "call") -> list[str]:
    return [f"{prefix}-{number}" for number in range(count)]
