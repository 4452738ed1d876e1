"""An exporter, the accounts that it polls, and the promise that holds whatever goes wrong."""

from __future__ import annotations

import asyncio
import math
import random
import sqlite3
import time
from collections import defaultdict
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Self

import aiohttp

from exporter.simulator import Account, Plan, Simulator
from tests.e2e.counting import Counts, Scrapes, counted, expect, plan, scraped
from tests.e2e.processes import Exporter, Series, configure, total
from tests.subprocesses import UNMEASURED
from tests.waiting import DEADLINE, deadline, until

PHASES = ("before", "during", "after")
Parts = dict[str, dict[Series, float]]
Outcomes = Mapping[str, BaseException | None]
CAMPAIGNS = ("otp", "reminder")

MEMORY = 24 << 20
"""Bytes that a fault may cost at its worst moment: less than what any bomb would take."""


class Scene:
    """A running exporter with accounts, each at a stand-in for the provider of its own.

    A file names all calls from the start; the provider learns of them in three phases,
    `before`, `during` and `after` the fault. Some calls of each account never end.

    Args:
        folder: for the configuration and, unless `ledger` is given, the ledger.
        simulators: by account.
        ledger: the ledger's file.
        host: a name by which the simulators are reached.
        calls: how many calls of an account are placed in each phase.
        endless: how many calls of an account never end, each with a label value of its own.
        environ: more of the exporter's environment.
        inside: a program that becomes the exporter.
        query: SQL that is run on the ledger as a watch source.
        interval: `polling.interval`.
        scrape_every: seconds.
    """

    def __init__(
        self,
        folder: Path,
        simulators: Mapping[str, Simulator],
        *,
        ledger: Path | None = None,
        host: str = "127.0.0.1",
        calls: int = 5,
        endless: int = 1,
        environ: Mapping[str, str] | None = None,
        inside: Sequence[str] = (),
        query: str | None = None,
        interval: str = "300ms",
        scrape_every: float = 0.2,
    ) -> None:
        self.folder = folder
        self.simulators = simulators
        self.ledger = ledger or folder / "ledger.db"
        self.scrapes = Scrapes()
        self.expected: dict[str, Counts] = {name: Counts() for name in simulators}
        self.odd_durations: set[str] = set()  # accounts whose provider tells no durations
        self._host, self._query, self._interval = host, query, interval
        self._calls, self._endless = calls, endless
        self._scrape_every = scrape_every
        self._resident = 0
        self._split: tuple[dict[Series, float], Parts] = {}, {}
        self.config = folder / "config.yaml"
        environ = {**UNMEASURED, **(environ or {})}
        self.exporter = Exporter(self.config, environ=environ, inside=inside)
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for name, simulator in self.simulators.items():
            simulator.put_account(Account(name, f"key-{name}", f"secret-{name}"))
            await self._open.enter_async_context(simulator)
            for number in range(self._endless):
                simulator.add_call(name, f"{name}-endless-{number}", Plan(queued=math.inf))
        self.configure()
        self._open.push_async_callback(self.exporter.kill)
        await self.start()
        scraping = scraped(self.exporter, self.scrapes, self._scrape_every)
        await self._open.enter_async_context(scraping)
        return self

    async def __aexit__(self, _kind: object, error: object, _traceback: object) -> None:
        await self._open.aclose()
        if error is not None:
            print(self.exporter.output[-4000:])

    def configure(self, **more: Mapping[str, str]) -> None:
        """Write the configuration, with more keys of some accounts, and the file of calls."""
        endless = [(f"endless-{number}", f"endless-{number}") for number in range(self._endless)]
        placed = [(f"{p}-{n}", CAMPAIGNS[n % 2]) for p in PHASES for n in range(self._calls)]
        lines = [
            f"{name}-{call},{name},{campaign}\n"
            for name in self.simulators
            for call, campaign in (*endless, *placed)
        ]
        (self.folder / "calls.csv").write_text("reference_id,account,campaign\n" + "".join(lines))
        query = {"name": "query", "url": f"sqlite:///{self.ledger}", "interval": "1s"}
        accounts = [
            {
                "name": name,
                "api_key": f"key-{name}",
                "secret_key": f"secret-{name}",
                "base_url": simulator.url.replace("127.0.0.1", self._host),
                "rate_limit": 100,
                **more.get(name, {}),
            }
            for name, simulator in self.simulators.items()
        ]
        sql = {"sql": [{**query, "query": self._query}]} if self._query else {}
        configure(
            *(self.folder, ""),
            accounts=accounts,
            watch={"files": ["calls.csv"], **sql},
            polling={"interval": self._interval, "max_interval": "1500ms", "timeout": "5s"},
            ledger={"url": f"sqlite:///{self.ledger}"},
        )

    # The exporter.

    async def start(self) -> None:
        """Start the exporter, and take the measure of its memory once it is ready."""
        await self.exporter.start()
        await self.exporter.ready()

    def settle(self) -> None:
        """Take what memory is used now for what it uses when all is well."""
        process = Path(f"/proc/{self.exporter.running.pid}")
        (process / "clear_refs").write_text("5")  # the highest mark falls to what is used now
        self._resident = self._memory("VmRSS")

    def status(self, key: str) -> str:
        """Return what the system says of the process."""
        lines = Path(f"/proc/{self.exporter.running.pid}/status").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith(key))

    def _memory(self, key: str) -> int:
        return int(self.status(key).split()[0]) * 1024

    async def ask(self, path: str) -> tuple[int, str]:
        async with (
            aiohttp.ClientSession() as http,
            http.get(self.exporter.url + path) as answer,
        ):
            return answer.status, await answer.text()

    async def until_unready(self, words: str) -> None:
        """Wait until the exporter says that it does not do its work, and why."""
        async with deadline():
            while (answer := await self.ask("/-/ready"))[0] != 503:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        assert words in answer[1]
        assert "ledger write failed" in self.exporter.output
        assert (await self.ask("/-/healthy"))[0] == 200

    def requests(self, account: str, outcome: str) -> float:
        """Return how many requests came to an outcome, as of the last scrape."""
        return total(self.newest(account), "esms_api_requests_total", outcome=outcome)

    async def until_requests(self, account: str, outcome: str, more_than: float) -> None:
        """Wait until more requests have come to an outcome: the fault is there."""
        await until(lambda: self.requests(account, outcome) > more_than)

    # The calls.

    def place(self, account: str, phase: str, within: float = 0.0) -> None:
        """Have the calls of a phase placed now, that end at random within so many seconds."""
        for number in range(self._calls):
            # Of each phase, one that is answered.
            planned, ending = plan(random.Random(), within, 2 * number + PHASES.index(phase))
            self.simulators[account].add_call(account, f"{account}-{phase}-{number}", planned)
            expect(self.expected[account], account, CAMPAIGNS[number % 2], planned, ending)

    async def until_ended(self, account: str) -> None:
        """Wait until the provider has ended every call that has been placed to end."""
        calls = self.simulators[account].provider.calls.values()
        ends = [call.placed_at + call.plan.ends_after for call in calls]
        last = max((end for end in ends if end < math.inf), default=0)
        await asyncio.sleep(max(0.0, last - time.monotonic()))

    def missing(self, account: str, samples: Mapping[Series, float]) -> str:
        """Return what is wrong with how an account's calls are counted; nothing when all is."""
        found, expected = counted(samples), self.expected[account]
        if account in self.odd_durations:
            found, expected = (
                Counts({key: n for key, n in each.items() if key[0] in {"calls", "key"}})
                for each in (found, expected)
            )
        calls = self._endless + self._calls * len(PHASES)
        unfinished = calls - sum(n for key, n in found.items() if key[0] == "calls")
        watched = total(samples, "esms_calls_watched")
        if found == expected and watched == unfinished:
            return ""
        return f"missing {expected - found}, too many {found - expected}, {watched:.0f} watched"

    def newest(self, account: str) -> Mapping[Series, float]:
        """Return an account's part of the last scrape."""
        if self._split[0] is not self.scrapes.newest:
            self._split = self.scrapes.newest, split(self.scrapes.newest)
        return self._split[1].get(account, {})

    async def until_counted(self, account: str) -> None:
        """Wait until every call that has been placed, and nothing else, is counted."""
        end = time.monotonic() + DEADLINE
        while problem := self.missing(account, self.newest(account)):
            assert self.exporter.running.poll() is None, self.exporter.output
            assert time.monotonic() < end, f"{account}: {problem}"
            await asyncio.sleep(0.1)

    # The promise.

    async def keeps_its_promise(self) -> None:
        """Check what holds after any fault, once every account's calls have been counted."""
        await asyncio.sleep(1)  # what would be counted twice would be counted now
        assert await self.ask("/-/healthy") == (200, "esms-exporter is healthy.\n")
        assert await self.ask("/-/ready") == (200, "esms-exporter is ready.\n")
        growth = self._memory("VmHWM") - self._resident
        assert growth < MEMORY, f"{growth >> 10} KiB more than before"
        assert "Traceback" not in self.exporter.output
        self._check(await self.exporter.scrape())
        # What was shown was durable: the next life goes on from it.
        await self.exporter.kill()
        await self.start()
        self._check(await self.exporter.scrape())
        with closing(sqlite3.connect(self.ledger)) as ledger:
            assert ledger.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            finished = sum(
                n for counts in self.expected.values() for k, n in counts.items() if k[0] == "calls"
            )
            assert ledger.execute("SELECT count(result) FROM calls").fetchone() == (finished,)

    def _check(self, samples: dict[Series, float]) -> None:
        self.scrapes.add(samples)
        assert self.scrapes.backwards == []
        assert not [series for series, value in samples.items() if math.isnan(value)]
        parts = split(samples)
        problems = {name: self.missing(name, parts[name]) for name in self.simulators}
        assert {name: problem for name, problem in problems.items() if problem} == {}
        now = time.monotonic()
        for name, simulator in self.simulators.items():
            # The provider's own word for it.
            calls = simulator.provider.calls.values()
            ended = [call for call in calls if call.account == name and call.finished(now)]
            assert total(parts[name], "esms_calls_total") == len(ended), name


def split(samples: Mapping[Series, float]) -> Parts:
    """Return the samples of each account."""
    parts: Parts = defaultdict(dict)
    for series, value in samples.items():
        parts[dict(series[1]).get("account", "")][series] = value
    return parts


def environment(**faults: Path) -> dict[str, str]:
    """Return an environment in which `preload/sitecustomize.py` listens to these files."""
    return {
        "PYTHONPATH": str(Path(__file__).parent / "preload"),
        **{f"FAULT_{name.upper()}": str(path) for name, path in faults.items()},
    }


async def run_together(cases: Mapping[str, Awaitable[None]], at_once: int = 100) -> Outcomes:
    """Run cases, none of which ends another; returns what each raised."""
    room = asyncio.Semaphore(at_once)

    async def run(case: Awaitable[None]) -> None:
        async with room:
            await case

    raised = await asyncio.gather(*map(run, cases.values()), return_exceptions=True)
    return dict(zip(cases, raised, strict=True))


def judge(outcomes: Outcomes, case: str) -> None:
    """Raise what a case raised."""
    if error := outcomes[case]:
        raise error
