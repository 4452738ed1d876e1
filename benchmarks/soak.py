"""Half an hour of troubles at 2,000 polls per second: nothing is lost, and nothing grows.

A real exporter polls the stand-in API, where faults are switched on and off at random, while calls
are placed all the time. In the end every call has to be counted as the provider says it ended.
Memory, open files and threads are sampled on the way, and have to stay flat.

With `--life`, a random life in its place: see `tests/e2e/life.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.processes import BASE_PATH, Exporter, process
from benchmarks.troubles import Troubles
from tests.databases import postgresql
from tests.e2e.life import live

ACCOUNTS: Final = [f"account-{number}" for number in range(8)]
TOKEN: Final = "made-up"
SAMPLE_EVERY: Final = 5.0
AT_MOST: Final = 2_000  # calls that are placed at a time

# What counts as flat: from the most in the first fifth to the most in the last, without the
# warm-up, a figure may grow by this share. Files are connections for the most part, fewer after a
# trouble, and never more than the accounts may have: a leak of one for each trouble of half an hour
# would be more than this. The pool for what blocks may come to one thread more.
WARM_UP: Final = 60.0
GROWTH: Final = {"memory, MB": 0.05, "open files": 0.05, "threads": 0.15}
# MB of the ledger that SQLite keeps in memory: they are left out, for they grow with the ledger.
CACHE: Final = 8.0

# `CallStatus` of the provider, and how the exporter has to count it.
STATUSES: Final = {
    "ANSWERED": "answered",
    "NOANSWERED": "no_answer",
    "NO ANSWER": "no_answer",
    "BUSY": "busy",
    "FAILED": "failed",
    "": "none",
}
Ends = Counter[tuple[str, str, str]]


class Sample(NamedTuple):
    """The exporter at a moment; `life` is how often it was started before."""

    second: float
    life: int
    polls: float
    finished: float
    watched: float
    figures: Mapping[str, float]


class Soak:
    """The exporter, what it is told, and what is seen of it."""

    def __init__(self, http: aiohttp.ClientSession, control: str, config: Path, rate: int) -> None:
        self._http = http
        self._control = control
        self._config = config
        self._rate = rate
        self._placed = 0
        self._polls = 0.0  # of earlier lives
        self.lives = -1
        self.samples: list[Sample] = []
        self.start()
        self._began = time.monotonic()

    def start(self) -> None:
        self.exporter = Exporter(self._config).__enter__()
        self.exporter.wait_until_ready()
        self.exporter.drain()
        self.lives += 1

    async def kill(self) -> None:
        """End it as a power cut does, and start it again."""
        self._polls = (await self.sample()).polls
        await asyncio.to_thread(self.exporter.__exit__)
        await asyncio.to_thread(self.start)

    async def sample(self) -> Sample:
        found = await asyncio.to_thread(self.exporter.totals)
        ledger = await asyncio.to_thread(self._config.with_name("ledger.db").stat)
        figures = {
            "memory, MB": self.exporter.memory() - min(CACHE, ledger.st_size / 2**20),
            "open files": self.exporter.open_files(),
            "threads": self.exporter.threads(),
        }
        return Sample(
            time.monotonic() - self._began,
            self.lives,
            self._polls + found["esms_api_requests_total"],
            found["esms_calls_total"],
            found["esms_calls_watched"],
            figures,
        )

    async def go(self, seconds: float, kill_at: Sequence[float]) -> None:
        """Place calls, so that there are enough to poll all the time, and take samples."""
        due, kills = 0.0, list(kill_at)
        recent = deque[Sample](maxlen=60)
        while (sample := await self.sample()).second < seconds:
            recent.append(sample)
            await self._place(self._wanted(recent) - int(sample.watched))
            if sample.second >= due:
                self.samples.append(sample)
                due += SAMPLE_EVERY
            if kills and sample.second >= kills[0]:
                del kills[0]
                await self.kill()
            await asyncio.sleep(1.0)
        self.samples.append(sample)

    def _wanted(self, recent: Sequence[Sample]) -> int:
        """Return how many calls to watch. Each is polled once a second, unless there is trouble."""
        first, last = recent[0], recent[-1]
        reached = (last.polls - first.polls) / max(1.0, last.second - first.second)
        return int(min(2.0, 1.1 * self._rate / max(1.0, reached)) * self._rate)

    async def _place(self, count: int) -> None:
        if count <= 0:
            return
        count = min(count, AT_MOST)
        first, self._placed = self._placed, self._placed + count
        calls = [
            {"reference_id": f"soak-{number:09d}", "account": ACCOUNTS[number % len(ACCOUNTS)]}
            for number in range(first, self._placed)
        ]
        async with self._http.post(f"{self._control}/calls", json=calls) as answer:
            answer.raise_for_status()
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with self._http.post(
            f"{self.exporter.url}/api/v1/calls", json={"calls": calls}, headers=headers
        ) as answer:
            if answer.status != 202:
                raise SystemExit(f"the exporter refused calls: {await answer.text()}")

    async def settle(self, seconds: float) -> None:
        """Wait until no call is watched any more; what still is after that time is lost."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and (await self.sample()).watched:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(1.0)

    def counted(self) -> Ends:
        """Return how many calls the exporter has counted, by account, result and status."""
        ends = Ends()
        for family in text_string_to_metric_families(self.exporter.scrape()):
            for sample in family.samples:
                if sample.name == "esms_calls_total":
                    labels = sample.labels
                    end = labels["account"], labels["result"], labels["status"]
                    ends[end] += int(sample.value)
        return +ends

    async def truth(self) -> Ends:
        """Return how many calls have ended at the provider, in the same words."""
        ends = Ends()
        for account in ACCOUNTS:
            query = {"account": account}
            async with self._http.get(f"{self._control}/calls", params=query) as answer:
                for call in await answer.json():
                    ends[account, *_end(call)] += 1
        return ends


def _end(call: Mapping[str, Any]) -> tuple[str, str]:
    if not call["finished"]:
        return "unfinished", ""
    answer = call["last_answer"]
    if answer["SendStatus"] == 4:
        return "failure", "rejected"
    return "success" if answer["SentResult"] else "failure", STATUSES[answer["CallStatus"]]


def configuration(folder: Path, base_url: str) -> Path:
    path = folder / "config.yaml"
    accounts = "\n".join(
        f"  - {{name: {name}, api_key: k-{name}, secret_key: s, base_url: '{base_url}',"
        # Even a twentieth of it, to which throttling lowers it, is enough.
        " rate_limit: 20000, max_concurrency: 64}"
        for name in ACCOUNTS
    )
    path.write_text(
        f"accounts:\n{accounts}\n"
        "polling: {pace: growing, interval: 1s, max_interval: 1s, timeout: 2s}\n"
        "balance: {interval: 0}\n"
        f"ledger: {{url: 'sqlite:///{folder}/ledger.db'}}\n"
        f"watch: {{api: {{tokens: [{{name: soak, token: {TOKEN}}}]}}}}\n"
    )
    return path


def judge(samples: Sequence[Sample]) -> Iterator[tuple[str, float, float, bool]]:
    """Yield each figure with the most in the first and in the last fifth, and whether it is flat.

    Of the longest life, without its warm-up; figures of a process that was killed say nothing of
    the next one.
    """
    life, _ = Counter(sample.life for sample in samples).most_common(1)[0]
    own = [sample for sample in samples if sample.life == life]
    warm_up = min(WARM_UP, (own[-1].second - own[0].second) / 3)
    own = [sample for sample in own if sample.second - own[0].second >= warm_up]
    fifth = max(1, len(own) // 5)
    for name, share in GROWTH.items():
        values = [sample.figures[name] for sample in own]
        first, last = max(values[:fifth]), max(values[-fifth:])
        yield name, first, last, last <= first * (1 + share)


def table(samples: Sequence[Sample]) -> str:
    """Return samples from the whole time as a table."""
    lines = ["| minute | life | polls | finished | watched | " + " | ".join(GROWTH) + " |"]
    lines.append("|---" * (5 + len(GROWTH)) + "|")
    for part in range(11):
        at = samples[(len(samples) - 1) * part // 10]
        numbers = (at.life, at.polls, at.finished, at.watched, *at.figures.values())
        lines.append(f"| {at.second / 60:.1f} | " + " | ".join(f"{n:,.0f}" for n in numbers) + " |")
    return "\n".join(lines)


def report(soak: Soak, rate: int, truth: Ends, counted: Ends) -> bool:
    """Print what there is to say; returns whether all is well."""
    samples = soak.samples
    print(table(samples))
    first, last = samples[0], samples[-1]
    reached = (last.polls - first.polls) / (last.second - first.second)
    verdicts = [(f"{reached:,.0f} polls per second, of {rate:,}", reached >= 0.9 * rate)]
    for name, before, after, flat in judge(samples):
        verdicts.append((f"{name}: {before:,.1f}, then {after:,.1f}", flat))
    lost, more = (truth - counted).total(), (counted - truth).total()
    verdicts.append((f"{truth.total():,} calls placed; {lost:,} lost or counted wrong", not lost))
    verdicts.append((f"{more:,} counted that did not end so", not more))
    print()
    for text, good in verdicts:
        print(f"{'good' if good else 'BAD '}  {text}")
    return all(good for _, good in verdicts)


async def run(options: argparse.Namespace, origin: str, folder: Path) -> bool:
    chance, seconds = random.Random(options.seed), options.minutes * 60
    kill_at = sorted(chance.uniform(0.1, 0.9) * seconds for _ in range(options.kills))
    config, control = configuration(folder, origin + BASE_PATH), f"{origin}/_simulator"
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(timeout=timeout) as http:
        soak = Soak(http, control, config, options.rate)
        try:
            troubles = Troubles(http, control, ACCOUNTS, chance, options.longest)
            troubling = asyncio.create_task(troubles.run())
            try:
                await soak.go(seconds, kill_at)
            finally:
                troubling.cancel()
                with suppress(asyncio.CancelledError):
                    await troubling
            # The longest call is one of ten minutes, and the pause of an account may have doubled.
            await soak.settle(900)
            good = report(soak, options.rate, await soak.truth(), soak.counted())
        finally:
            soak.exporter.__exit__()
    print("troubles: " + ", ".join(f"{name} {n}" for name, n in sorted(troubles.seen.items())))
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=int, default=2_000, help="polls per second")
    parser.add_argument("--kills", type=int, default=0, help="how often the exporter is killed")
    parser.add_argument("--longest", type=float, default=10, help="seconds that a trouble lasts")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same troubles")
    parser.add_argument("--speed", type=float, default=1, help="how much faster calls live")
    parser.add_argument(
        "--life", choices=("sqlite", "postgresql"), help="a random life on this engine"
    )
    options = parser.parse_args()
    if options.life:
        server = postgresql() if options.life == "postgresql" else nullcontext()
        with tempfile.TemporaryDirectory() as name, server as running:
            seconds = options.minutes * 60
            asyncio.run(live(Path(name), running, seed=options.seed, seconds=seconds))
        return
    accounts = [f"--account={name}:k-{name}:s" for name in ACCOUNTS]
    simulate = (
        *("exporter", "simulate", "--listen=127.0.0.1:0", "--unknown-ids=not_found"),
        f"--speed={options.speed}",
    )
    with tempfile.TemporaryDirectory() as name, process(*simulate, *accounts) as line:
        origin = line.removeprefix("listening on ")
        sys.exit(0 if asyncio.run(run(options, origin, Path(name))) else 1)


if __name__ == "__main__":
    main()
