"""Clocks that were wrong and are put right, and accounts that are renamed, on every engine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from exporter.simulator import Account, Plan, Simulator
from tests.docs.pages import ROOT
from tests.e2e.processes import API, Exporter, configure, listed, push, total
from tests.faults.scene import environment

DAYS = 4 * 86_400.0
REQUESTS = "esms_api_requests_total"


class Machine:
    """An exporter on a machine with a clock that can be set."""

    def __init__(self, folder: Path, name: str, url: str, provider: Simulator) -> None:
        self._folder, self._file, self._provider, self._url = folder, f"{name}.yaml", provider, url
        self._clock = folder / f"{name}.clock"
        config = self.give_up_after("3d")
        self.exporter = Exporter(config, environ=environment(clock=self._clock))

    def give_up_after(self, time: str) -> Path:
        polling = {"pace": "growing", "interval": "200ms", "max_interval": "200ms"}
        return configure(
            *(self._folder, self._provider),
            accounts=[self._provider.provider.accounts["main"]],
            file=self._file,
            polling={**polling, "not_found_grace": "1s", "give_up_after": time},
            ledger={"url": self._url, "heartbeat": "2s"},
            watch={"api": API},
        )

    def set_clock(self, wrong_by: float) -> None:
        new = self._clock.with_suffix(".new")
        new.write_text(str(wrong_by))
        new.rename(self._clock)

    async def start(self) -> None:
        await self.exporter.start()
        await self.exporter.ready()

    async def polled(self, times: int = 5) -> None:
        """Return once the calls were asked for so often from now on."""
        before = total(await self.exporter.scrape(), REQUESTS)
        await self.exporter.until(lambda found: total(found, REQUESTS) >= before + times)


@pytest.mark.parametrize(
    ("url", "wrong_by", "put_right"),
    [
        ("sqlite", -DAYS, "while it is stopped"),
        ("sqlite", DAYS, "while it runs"),
        ("postgresql", -DAYS, "while it runs"),  # whose own clock counts
    ],
    indirect=["url"],
)
async def test_calls_keep_their_age_whatever_the_clock_says(
    tmp_path: Path, simulator: Simulator, url: str, wrong_by: float, put_right: str
) -> None:
    simulator.add_call("main", "a", Plan(queued=9e9))
    machine = Machine(tmp_path, "one", url, simulator)
    machine.set_clock(wrong_by)
    try:
        await machine.start()
        await push(machine.exporter, [listed("a")])
        await machine.polled()
        if put_right == "while it runs":
            machine.set_clock(0.0)
            await machine.polled()
        await machine.exporter.kill()
        machine.set_clock(0.0)
        await machine.start()
        await machine.polled()
        found = await machine.exporter.scrape()
        assert total(found, "esms_calls_watched") == 1
        assert total(found, "esms_calls_total") == 0
        # What is old by now is given up.
        machine.give_up_after("1s")
        await machine.exporter.until(
            lambda found: total(found, "esms_calls_total", status="expired") == 1
        )
    finally:
        await machine.exporter.kill()


def recipe() -> list[str]:
    """Return the statements that rename an account, as the documentation has them."""
    page = (ROOT / "docs" / "sources.md").read_text()
    section = page[page.index("## Renaming an account") :]
    found = re.search(r"```sql\n(.*?)```", section, re.DOTALL)
    assert found
    return [line.strip() for line in found[1].strip().splitlines()]


async def test_an_account_that_is_renamed_keeps_its_calls_and_counts(
    tmp_path: Path, url: str
) -> None:
    async with Simulator(accounts=[Account("any", "k", "s")]) as simulator:
        for name in ("named", "pushed"):
            simulator.add_call("any", name, Plan())
        simulator.add_call("any", "open", Plan(queued=9e9))

        def write(account: str) -> Exporter:
            named = f"reference_id,account\nnamed,{account}\nopen,{account}\n"
            (tmp_path / "calls.csv").write_text(named)
            accounts, watch = [Account(account, "k", "s")], {"files": ["calls.csv"], "api": API}
            ledger = {"url": url}
            return Exporter(
                configure(tmp_path, simulator, accounts=accounts, watch=watch, ledger=ledger)
            )

        async with write("main") as exporter:
            await exporter.ready()
            await push(exporter, [listed("pushed", campaign="otp")])
            await exporter.until(lambda found: total(found, "esms_calls_total") == 2)
        address = url.replace("postgresql:", "postgresql+psycopg:")
        with create_engine(address, poolclass=NullPool).begin() as connection:
            for statement in recipe():
                connection.execute(text(statement))
        async with write("sales") as exporter:
            await exporter.ready()
            await push(exporter, [listed("pushed", "sales", campaign="otp")])
            before = total(await exporter.scrape(), REQUESTS)
            found = await exporter.until(lambda found: total(found, REQUESTS) > before + 5)
            assert total(found, "esms_calls_total", account="sales") == 2
            assert total(found, "esms_calls_total") == 2
            assert total(found, "esms_calls_watched") == 1
