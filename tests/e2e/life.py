"""A random life of exporters: calls come from everywhere, and exporters end in every way.

Each call and message is counted once, as the provider says that it ended.
"""

from __future__ import annotations

import asyncio
import random
import signal
import sqlite3
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
from sqlalchemy import create_engine, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from exporter.ids import Kind
from exporter.simulator import Account, Plan, Simulator
from tests.databases import Server
from tests.e2e.counting import Counts, Scrapes, counted, expect, plan, scrape_for_ever
from tests.e2e.processes import API, TOKEN, Exporter, configure, listed, total
from tests.faults.scene import environment
from tests.subprocesses import UNMEASURED
from tests.waiting import deadline

ACCOUNTS: Final = ("main", "other")
FILES: Final = 3
HEARTBEAT: Final = 6.0
SETTLES_WITHIN: Final = 240.0
"""Seconds after which all calls have ended, once nothing happens any more; a deadline."""

DAY: Final = 86_400.0
CLOCKS: Final = (0.0, 0.0, 5.0, -5.0, 3600.0, -3600.0, 4 * DAY, -4 * DAY)
"""Seconds by which the clock of an exporter's machine is wrong, for a while."""


@dataclass(frozen=True)
class Call:
    """A call, or a message.

    Attributes:
        ways: where it comes from: `push` `file` `config` `sql` `callback`.
        ending: how it is to be counted: result and status.
        price: what its callback says that it has cost, or the look-up of a message.
    """

    name: str
    account: str
    campaign: str
    ways: frozenset[str]
    plan: Plan
    ending: tuple[str, str]
    price: float | None = None


class Life:
    """Exporters, where their calls come from, and all that happens to them.

    Args:
        folder: for everything.
        simulator: the provider.
        ledger: the URL of the ledger.
        server: of PostgreSQL, which several exporters share; None for a ledger in a file.
        chance: what happens, and when.
        spread: seconds that a call takes, at most.
    """

    def __init__(
        self,
        folder: Path,
        simulator: Simulator,
        ledger: str,
        server: Server | None,
        chance: random.Random,
        spread: float,
    ) -> None:
        self.calls: list[Call] = []
        self.happened = Counter[str]()
        self.tracebacks: list[str] = []
        self._simulator, self._server, self._chance = simulator, server, chance
        self._ledger, self._spread, self._folder = ledger, spread, folder
        self._trust = chance.choice(("verify", "accept"))
        self._named: dict[str, list[Call]] = {"config": []}
        self._orders = folder / "orders.db"
        with closing(sqlite3.connect(self._orders)) as orders, orders:
            # An exporter that stands still while it reads must not lock this process out.
            orders.execute("PRAGMA journal_mode = WAL")
            orders.execute("CREATE TABLE calls (reference_id, account, campaign, placed_at)")
        (folder / "calls").mkdir()
        self._names = [f"exporter-{number}" for number in range(3 if server else 1)]
        self.exporters: list[Exporter] = []
        for name, config in zip(self._names, self._write_config(), strict=True):
            self._write(folder / f"{name}.clock", "0.0")
            environ = UNMEASURED | environment(clock=folder / f"{name}.clock")
            self.exporters.append(Exporter(config, environ=environ))
        self.scrapes = [Scrapes() for _ in self.exporters]
        self._tasks: set[asyncio.Task[None]] = set()
        self._handed = list[asyncio.Task[None]]()

    # The world around them.

    def _write(self, path: Path, content: str) -> None:
        new = path.with_name(f".{path.name}.new")
        new.write_text(content)
        new.rename(path)

    def _write_config(self) -> list[Path]:
        query = "SELECT reference_id, account, campaign FROM calls WHERE placed_at >= :since"
        url = f"sqlite:///{self._orders}"
        watch = {
            "labels": self._chance.choice((["campaign"], ["campaign", "team"])),
            "files": ["calls/*.csv"],
            "callback": {"trust": self._trust},
            "api": API,
            "sql": [{"name": "orders", "url": url, "interval": "1s", "query": query}],
        }
        polling = {"pace": "growing", "interval": "1s", "max_interval": "1s", "timeout": "5s"}
        calls = [
            listed(
                call.name, call.account, **({"campaign": call.campaign} if call.campaign else {})
            )
            for call in self._named["config"]
        ]
        return [
            configure(
                *(self._folder, self._simulator, calls),
                file=f"{name}.yaml",
                account={"rate_limit": 200, "callback_token": TOKEN},
                polling=polling,
                shutdown_timeout="5s",
                ledger={"url": self._ledger, "heartbeat": f"{HEARTBEAT:.0f}s"},
                watch=watch,
            )
            for name in self._names
        ]

    def _write_file(self, name: str) -> None:
        path = self._folder / "calls" / name
        lines = [f"{c.name},{c.account},{c.campaign}\n" for c in self._named[name]]
        self._write(path, "".join(["reference_id,account,campaign\n", *lines]))

    # Calls come.

    async def place(self) -> None:
        """Place calls until cancelled, each from where it comes."""
        while True:
            for _ in range(self._chance.randrange(1, 6)):
                self._chance.choice((self._place_one,) * 4 + (self._push_message,))()
            await asyncio.sleep(self._chance.uniform(0.1, 0.6))

    def _place_one(self) -> None:
        chance, number = self._chance, len(self.calls)
        planned, ending = plan(chance, self._spread, unknown_for=chance.uniform(0, 1))
        called_back = chance.random() < 0.3
        ways = set(chance.choices(("push", "file", "config", "sql"), (6, 4, 1, 3), k=2))
        if called_back and chance.random() < 0.3:
            ways = set()
        call = Call(
            f"call-{number}",
            chance.choice(ACCOUNTS),
            # One that is called back may be known by that first, without labels.
            "" if called_back else chance.choice(("otp", "reminder")),
            frozenset(ways | ({"callback"} if called_back else set())),
            planned,
            ending,
            chance.choice((None, 350.0, 420.5)) if called_back else None,
        )
        self.calls.append(call)
        self._simulator.add_call(call.account, call.name, planned)
        if "sql" in ways:
            with closing(sqlite3.connect(self._orders, timeout=30)) as orders, orders:
                row = (call.name, call.account, call.campaign)
                orders.execute("INSERT INTO calls VALUES (?, ?, ?, datetime('now'))", row)
        if "file" in ways:
            file = f"{chance.randrange(FILES)}.csv"
            self._named.setdefault(file, []).append(call)
            self._write_file(file)
        if "config" in ways:
            self._named["config"].append(call)
            self._write_config()
        self._handed.append(self._later(self._hand_over(call)))

    def _push_message(self) -> None:
        chance, name = self._chance, f"message-{len(self.calls)}"
        failed, account = chance.choice((0, 0, 69, 169)), chance.choice(ACCOUNTS)
        ending = ("failure" if failed else "success", "none")
        planned = Plan(
            queued=chance.uniform(0, self._spread), receivers=169, failed=failed, price=79_430
        )
        call = Call(name, account, "otp", frozenset({"push"}), planned, ending, planned.price)
        self.calls.append(call)
        self._simulator.add_call(account, name, planned)
        self._handed.append(self._later(self._hand_over(call)))

    async def _hand_over(self, call: Call) -> None:
        if "push" in call.ways:
            labels = {"campaign": call.campaign} if call.campaign else {}
            kind = {"kind": "message" if call.plan.receivers else "call"}
            body = {"calls": [listed(call.name, call.account, **labels) | kind]}
            for _ in range(self._chance.choice((1, 1, 2))):
                await self._ask("POST", "/api/v1/calls", 202, json=body)
        if "callback" in call.ways:
            plan = call.plan
            await asyncio.sleep(plan.unknown_for + plan.approval + plan.queued + 0.5)
            said = {
                "ReferenceId": call.name,
                "SendStatus": "4" if plan.rejected else "5",
                "SentResult": str(plan.sent_result),
                "CallStatus": plan.call_status or "",
                "CallDuration": str(plan.duration),
                "Ivr": plan.ivr,
                **({} if call.price is None else {"Price": str(call.price)}),
            }
            for _ in range(self._chance.choice((1, 1, 2))):
                await self._ask("GET", f"/callback/{call.account}/{TOKEN}", 200, params=said)

    async def _ask(
        self, method: str, path: str, good: int, **options: Any
    ) -> None:  # Any: of aiohttp
        """Ask one exporter or another until one answers as it is to."""
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as http:
            while True:
                url = self._chance.choice(self.exporters).url
                with suppress(aiohttp.ClientError, TimeoutError, OSError):
                    if url:
                        async with http.request(
                            method, f"{url}{path}", headers=headers, **options
                        ) as answer:
                            if answer.status == good:
                                return
                            assert answer.status in {404, 429, 503}, await answer.text()
                await asyncio.sleep(0.1)

    # Exporters and servers end, and come back.

    async def start(self) -> None:
        """Start every exporter, and scrape each all the time."""
        for exporter, scrapes in zip(self.exporters, self.scrapes, strict=True):
            await self._start(exporter)
            self._later(scrape_for_ever(exporter, scrapes, 0.3))
        for exporter in self.exporters:
            await exporter.ready()

    async def _start(self, exporter: Exporter) -> None:
        if "Traceback" in exporter.output:
            self.tracebacks.append(exporter.output)
        await exporter.start()
        self._later(self._find(exporter))

    async def _find(self, exporter: Exporter) -> None:
        with suppress(AssertionError, TimeoutError):  # it has ended before
            await exporter.listening()

    async def trouble(self) -> None:
        """Make one trouble after the other until cancelled."""
        kinds: dict[str, Callable[[Exporter], Awaitable[None]]] = {
            "kills": Exporter.kill,
            "stops": Exporter.stop,
            "standstills": self._stand_still,
            "wrong clocks": self._go_wrong,
            "reloads": self._reload,
        }
        if self._server:
            kinds["server crashes"] = self._crash
        while True:
            # Each comes once before any comes again, and kills twice.
            for name in self._chance.sample([*kinds, "kills"], len(kinds) + 1):
                await asyncio.sleep(self._chance.uniform(0.3, 2.0))
                self.happened[name] += 1
                # One that finds no server ends by itself.
                with suppress(ProcessLookupError):
                    await kinds[name](self._chance.choice(self.exporters))
                await self._start_again()

    async def _start_again(self) -> None:
        for exporter in self.exporters:
            if exporter.running.poll() is not None:
                await self._start(exporter)

    async def _stand_still(self, exporter: Exporter) -> None:
        exporter.send(signal.SIGSTOP)
        try:
            await asyncio.sleep(self._chance.uniform(0.5, 1.5 * HEARTBEAT))
        finally:
            with suppress(ProcessLookupError):
                exporter.send(signal.SIGCONT)

    async def _go_wrong(self, exporter: Exporter) -> None:
        name = self._names[self.exporters.index(exporter)]
        self._write(self._folder / f"{name}.clock", str(self._chance.choice(CLOCKS)))

    async def _reload(self, _exporter: Exporter) -> None:
        self._write_config()

    async def _crash(self, _exporter: Exporter) -> None:
        assert self._server
        await asyncio.to_thread(self._server.stop, signal.SIGQUIT)
        try:
            await asyncio.sleep(self._chance.uniform(0.1, 2.0))
        finally:
            await asyncio.to_thread(self._server.start)

    # How it ends.

    async def settle(self) -> None:
        """Return once every call has come to its end; fail where that takes too long."""
        late: list[str] = []
        await self._all_ready()
        try:
            async with asyncio.timeout(SETTLES_WITHIN):
                await asyncio.gather(*self._handed)
                while late := await asyncio.to_thread(self._late):
                    await asyncio.sleep(0.5)
                    await self._start_again()
        except TimeoutError:
            output = self.exporters[0].output[-2000:]
            raise AssertionError(f"not settled: {late or 'handing over'}\n{output}") from None
        await self._all_ready()
        await asyncio.sleep(2.5)  # what would be counted twice would be counted now

    async def _all_ready(self) -> None:
        """Wait until all are ready; one that finds a server that is still starting ends first."""
        async with deadline():
            for exporter in self.exporters:
                ready = False
                while not ready:
                    await self._start_again()
                    with suppress(AssertionError):
                        await exporter.ready()
                        ready = True

    def _late(self) -> list[str]:
        """Return what is still to end, and what is still to be taken in."""
        try:
            found = self.rows()
        except SQLAlchemyError as error:
            return [str(error)]
        missing = [f"{call.name}: unknown" for call in self.calls if call.name not in found]
        return missing + [f"{name}: open" for name, (result, *_) in found.items() if result is None]

    def rows(self) -> dict[str, tuple[Any, ...]]:  # Any: of several types
        """Return the result, status, and price of all calls, as the ledger has them."""
        url = self._ledger.replace("postgresql:", "postgresql+psycopg:")
        with create_engine(url, poolclass=NullPool).begin() as connection:
            query = "SELECT reference_id, result, status, price FROM calls"
            return {name: tuple(rest) for name, *rest in connection.execute(text(query))}

    def faults(self) -> Iterator[str]:
        """Yield what is not as it has to be, by what the ledger and the last scrapes say."""
        found = self.rows()
        expected, prices = Counts(), 0.0
        for call in self.calls:
            kept = found.get(call.name)
            if kept != (*call.ending, call.price):
                yield f"{call}: {kept}"
            expect(expected, call.account, call.campaign, call.plan, call.ending)
            prices += call.price or 0.0
        shown = Counts()
        for scrapes in self.scrapes:
            shown += counted(scrapes.newest)  # of the accounts that it polls
        if shown != expected:
            yield f"shown: {shown - expected}, lacking: {expected - shown}"
        paid = sum(
            total(scrapes.newest, f"esms_{kind}_price_vnd_total")
            for scrapes in self.scrapes
            for kind in Kind
        )
        if paid != prices:
            yield f"{paid} VND are shown in place of {prices}"
        for name, exporter, scrapes in zip(self._names, self.exporters, self.scrapes, strict=True):
            if scrapes.backwards:
                yield f"{name}: went backwards: {scrapes.backwards[:3]}"
            if "Traceback" in exporter.output:
                yield exporter.output
        yield from self.tracebacks

    def _later(self, work: Any) -> asyncio.Task[None]:  # Any: a coroutine
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def end(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for exporter in self.exporters:
            await exporter.kill()


async def live(
    folder: Path, server: Server | None, *, seed: int, seconds: float, spread: float = 8.0
) -> None:
    """Have a life of some seconds, and settle; fail where it ends otherwise than it has to.

    Args:
        folder: for everything.
        server: of PostgreSQL; None for one exporter on a file.
        seed: chooses what happens.
        seconds: how long things happen.
        spread: seconds that a call takes, at most.
    """
    async with AsyncExitStack() as ends:
        accounts = [Account(name, f"key-{name}", "s") for name in ACCOUNTS]
        simulator = await ends.enter_async_context(Simulator(accounts=accounts))
        url = f"sqlite:///{folder}/ledger.db"
        if server:
            url = ends.enter_context(server.database()).replace("+psycopg", "")
        life = Life(folder, simulator, url, server, random.Random(seed), spread)
        ends.push_async_callback(life.end)
        await life.start()
        doing = [asyncio.create_task(work()) for work in (life.place, life.trouble)]
        done, _ = await asyncio.wait(doing, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        for task in doing:
            task.cancel()
        await asyncio.gather(*doing, return_exceptions=True)
        for task in done:
            task.result()
        await life.settle()
        for exporter, scrapes in zip(life.exporters, life.scrapes, strict=True):
            scrapes.add(await exporter.scrape())
        print(f"{len(life.calls)} calls; {life.happened}")
        faults = list(life.faults())
        assert not faults, "\n".join(faults)
