"""Clocks that were wrong, and are put right: a real exporter, restarted, on every engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import pytest

from exporter.simulator import Account, Plan, Simulator
from tests.databases import postgresql
from tests.e2e.processes import Exporter, total
from tests.e2e.sharing import TOKEN, push
from tests.faults.scene import environment

DAYS = 4 * 86_400.0


@contextmanager
def ledger_url(engine: str, folder: Path) -> Iterator[str]:
    if engine == "sqlite":
        yield f"sqlite:///{folder}/ledger.db"
        return
    with postgresql() as server, server.database() as url:
        yield url.replace("+psycopg", "")


class Machine:
    """An exporter on a machine with a clock that can be set."""

    def __init__(self, folder: Path, name: str, url: str, provider: str, give_up: str) -> None:
        self.config = folder / f"{name}.yaml"
        self._clock = folder / f"{name}.clock"
        self.set_clock(0.0)
        self.config.write_text(
            f"accounts: [{{name: main, api_key: k, secret_key: s, base_url: '{provider}'}}]\n"
            f"polling: {{pace: growing, interval: 200ms, max_interval: 200ms, "
            f"not_found_grace: 1s, give_up_after: {give_up}}}\n"
            "balance: {interval: 0}\n"
            f"ledger: {{url: '{url}', heartbeat: 2s}}\n"
            f"watch:\n  labels: [campaign]\n  api: {{tokens: [{{name: app, token: {TOKEN}}}]}}\n"
        )
        self.exporter = Exporter(self.config, environ=environment(clock=self._clock))

    def set_clock(self, wrong_by: float) -> None:
        new = self._clock.with_suffix(".new")
        new.write_text(str(wrong_by))
        new.rename(self._clock)

    async def start(self) -> None:
        await self.exporter.start()
        await self.exporter.ready()

    async def polled(self, times: int = 5) -> None:
        """Return once the calls were asked for so often from now on."""
        name = "esms_api_requests_total"
        before = total(await self.exporter.scrape(), name)
        await self.exporter.until(lambda found: total(found, name) >= before + times)


@pytest.mark.parametrize("wrong_by", [-DAYS, DAYS])
@pytest.mark.parametrize(
    ("engine", "put_right"),
    [
        ("sqlite", "while it runs"),
        ("sqlite", "while it is stopped"),
        ("sqlite", "never"),
        ("postgresql", "while it runs"),  # whose own clock counts
    ],
)
async def test_calls_keep_their_age_whatever_the_clock_says(
    tmp_path: Path, engine: str, wrong_by: float, put_right: str
) -> None:
    async with AsyncExitStack() as ends:
        simulator = await ends.enter_async_context(Simulator(accounts=[Account("main", "k", "s")]))
        url = ends.enter_context(ledger_url(engine, tmp_path))
        simulator.add_call("main", "a", Plan(queued=9e9))
        machine = Machine(tmp_path, "one", url, simulator.url, "3d")
        ends.push_async_callback(machine.exporter.kill)
        machine.set_clock(wrong_by)
        await machine.start()
        await push(machine.exporter, ["a"], "main", "otp")
        await machine.polled()
        if put_right == "while it runs":
            machine.set_clock(0.0)
            await machine.polled()
        await machine.exporter.kill()
        if put_right != "never":
            machine.set_clock(0.0)
        await machine.start()
        await machine.polled()
        found = await machine.exporter.scrape()
        assert total(found, "esms_calls_watched") == 1
        assert total(found, "esms_calls_total") == 0
        # What is old by now is given up.
        await machine.exporter.stop()
        text = machine.config.read_text()
        machine.config.write_text(text.replace("give_up_after: 3d", "give_up_after: 1s"))
        await machine.start()
        await machine.exporter.until(
            lambda found: total(found, "esms_calls_total", status="expired") == 1
        )


async def test_exporters_with_different_clocks_agree_on_ages(tmp_path: Path) -> None:
    async with AsyncExitStack() as ends:
        simulator = await ends.enter_async_context(Simulator(accounts=[Account("main", "k", "s")]))
        url = ends.enter_context(ledger_url("postgresql", tmp_path))
        ids = [f"call-{number}" for number in range(20)]
        for name in ids:
            simulator.add_call("main", name, Plan(queued=9e9))
        behind, ahead = (
            Machine(tmp_path, name, url, simulator.url, "3d") for name in ("behind", "ahead")
        )
        for machine, wrong_by, names in ((behind, -DAYS, ids[:10]), (ahead, DAYS, ids[10:])):
            ends.push_async_callback(machine.exporter.kill)
            machine.set_clock(wrong_by)
            await machine.start()
            await push(machine.exporter, names, "main", "otp")
            await behind.polled(20)  # it holds the lease
        for machine in (behind, ahead):
            await machine.exporter.until(
                lambda found: total(found, "esms_calls_watched") == len(ids)
            )
            if machine is behind:
                await behind.polled(40)
                await behind.exporter.kill()
        await ahead.polled(40)
        assert total(await ahead.exporter.scrape(), "esms_calls_total") == 0
