"""An account that is renamed as the documentation says, on every engine."""

from __future__ import annotations

import re
from pathlib import Path

from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from exporter.simulator import Account, Plan, Simulator
from tests.docs.pages import ROOT
from tests.e2e.processes import API, Exporter, configure, listed, push, total

REQUESTS = "esms_api_requests_total"


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
