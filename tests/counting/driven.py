"""The exporter, with a clock, a provider and a fate that are up to the test."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Coroutine, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from exporter.app import App
from exporter.calls import WatchedCall
from exporter.config import Config
from exporter.esms.answers import Answer
from exporter.ledger.clock import Moment
from exporter.polling.poller import Poller
from tests.counting.model import Series
from tests.samples import samples

T = TypeVar("T")


class Clock:
    """The time, and a machine's clock, which may be wrong."""

    def __init__(self) -> None:
        self.now = self._booted = 1_760_000_000.0
        self.error = 0.0

    def moment(self) -> Moment:
        """What the clocks of the machine say."""
        return Moment(self.now + self.error, self.now - self._booted, "the only boot")


class HeldClient:
    """Holds each request until the test answers it, in a list."""

    def __init__(self, held: list[asyncio.Future[Answer]]) -> None:
        self._held = held

    async def send_status(self, *_: object) -> Answer:
        self._held.append(asyncio.get_running_loop().create_future())
        return await self._held[-1]

    async def close(self) -> None:
        pass


@dataclass(eq=False)
class Asked:
    """A request that is under way."""

    poller: Poller
    call: WatchedCall
    answer: asyncio.Future[Answer]
    task: asyncio.Task[None]


class Driven:
    """A service of which nothing works by itself.

    Args:
        loop: where everything runs, a step at a time.
        folder: where its ledger and its files of calls are.
        config: what it loads.
        clock: of its machine.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, folder: Path, config: Config, clock: Clock
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._folder = folder
        self.config = config
        self._reading = sqlite3.connect(self._path)
        self.asked: list[Asked] = []
        self._held: list[asyncio.Future[Answer]] = []
        self.start()

    @property
    def _path(self) -> Path:
        return self._folder / "ledger.db"

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(work)

    # How it begins and ends.

    def start(self) -> None:
        self.run(self._start())
        self.look()  # what was written just now lies still: nobody else writes

    def _client(self, *_: object, **__: object) -> Any:  # Any: in place of `EsmsClient`
        return HeldClient(self._held)

    async def _start(self) -> None:
        # As `App.start`, but for what works by the clock: commits, looks at files, prunes.
        self.service = App(lambda: self.config, clocks=self._clock.moment, client=self._client)
        await self.service.open()
        await self.service.ledger.call(self._wait_for_no_lock)
        await self.service._apply(self.service._loaded.pop())
        for source in (self.service.sources.api, self.service.sources.callback):
            self.service.supervisor.start(source.run())

    def _wait_for_no_lock(self) -> None:
        with self.service.ledger.store.database.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA busy_timeout = 0")

    def close(self) -> None:
        self.crash()
        self._reading.close()

    def stop(self) -> None:
        self.run(self._stop())

    async def _stop(self) -> None:
        await self._end(*(asked.task for asked in self.asked))
        self.service.ledger.close_soon()
        await self.service.ledger.run()
        await self.service.stop()

    def crash(self) -> None:
        """End it as a kill does: what was only observed, and what is under way, is lost."""
        self.run(self._crash())

    async def _crash(self) -> None:
        await self.service.supervisor.stop()
        await self._end(*(asked.task for asked in self.asked))
        await self.service.ledger.close()

    async def _end(self, *tasks: asyncio.Task[None]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.asked.clear()

    # What it does meanwhile.

    def scheduled(self) -> list[tuple[Poller, WatchedCall]]:
        """Return the calls that are to be asked for."""
        pollers = [account.poller for _, account in sorted(self.service.accounts.items())]
        return [
            (poller, call)
            for poller in pollers
            for _, call in sorted(poller.calls.items())
            if call.tick >= 0
        ]

    def in_schedule(self, poller: Poller) -> set[int]:
        """Return the rows of the calls that a poller will come to, known to it or not."""
        wheel = poller._wheel
        rows = {
            call.id
            for tick, calls in wheel._buckets.values()
            for call in calls
            if call.tick == tick
        }
        for queue in (wheel._healthy, wheel._failing):
            for labels in queue._label_sets.values():
                for due in labels.queues.values():
                    entries = zip(due.calls, due.ticks, strict=True)
                    rows |= {call.id for call, tick in entries if call.tick == tick}
        return rows

    def ask(self, poller: Poller, call: WatchedCall) -> Asked:
        """Begin a poll, as the poller does when a call is due."""
        poller._wheel.discard(call)
        return self.run(self._ask(poller, call))

    async def _ask(self, poller: Poller, call: WatchedCall) -> Asked:
        task = asyncio.create_task(poller._poll(call))
        await asyncio.sleep(0)
        asked = Asked(poller, call, self._held.pop(), task)
        self.asked.append(asked)
        return asked

    def answer(self, asked: Asked, answer: Answer) -> None:
        """End a poll."""
        asked.answer.set_result(answer)
        self.asked.remove(asked)
        self.run(_ended(asked.task))

    def look(self) -> None:
        """Look for changes of files until those that lie still are read, as at every second."""
        for _ in range(2):
            self.run(self.service.sources.files.check())

    def commit(self) -> bool:
        """Write what was observed; returns whether that could be done."""
        return self.run(self.service.ledger._flush())

    # What is seen of it.

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Have another program hold the ledger."""
        with closing(sqlite3.connect(self._path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            yield

    def _rows(self, query: str, *parameters: str) -> list[Any]:  # Any: rows of what is asked
        return self._reading.execute(query, parameters).fetchall()

    def known(self) -> list[tuple[object, ...]]:
        """Return the ledger's calls as a model does."""
        query = (
            "SELECT a.name, c.normalized_id, c.reference_id, c.kind, l.labels, c.first_watched,"
            " c.pushed, c.result, c.status, (SELECT json_group_array(source) FROM call_sources"
            " WHERE call_id = c.id) FROM calls c JOIN accounts a ON a.id = c.account_id"
            " JOIN label_sets l ON l.id = c.label_set_id ORDER BY 1, 2"
        )
        return [
            (
                *row[:4],
                sorted(json.loads(row[4]).items()),
                row[5],
                bool(row[6]),
                *row[7:9],
                sorted(name.replace(f"{self._folder}/", "") for name in json.loads(row[9])),
            )
            for row in self._rows(query)
        ]

    def unfinished(self, account: str) -> dict[int, tuple[str, str, float]]:
        """Return kind, state, and since when, of an account's open calls in the ledger."""
        query = (
            "SELECT c.id, c.kind, c.state, c.state_since FROM calls c JOIN accounts a"
            " ON a.id = c.account_id WHERE a.name = ? AND c.result IS NULL"
        )
        return {row: (*rest,) for row, *rest in self._rows(query, account)}

    def shown(self) -> dict[Series, float]:
        """Return what is shown of finished calls, without zeros."""
        found: dict[Series, float] = {}
        below = 0.0  # what the buckets before this one hold
        for sample in samples(self.service.metrics):
            name, _, part = sample.name.rpartition("_")
            labels = dict(sample.labels)
            of_ended = name.startswith(("esms_call", "esms_message"))
            if not of_ended or labels.keys() & {"state", "outcome"}:
                continue
            if part == "total":
                name = sample.name
                cells = [labels.pop(label, "") for label in ("result", "status", "key")]
                cell, number = "/".join(filter(None, cells)) or "sum", sample.value
            elif part == "bucket":
                cell = labels.pop("le")
                below = 0.0 if cell == "1.0" else below
                number, below = sample.value - below, sample.value
            else:
                cell, number = part, sample.value
            if number and part != "count":
                found[name, (labels.pop("account"), cell, *labels.values())] = number
        return found


async def _ended(task: asyncio.Task[None]) -> None:
    await task
