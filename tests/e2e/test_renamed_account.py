"""An account that is renamed as the documentation says keeps its calls and its counts."""

from __future__ import annotations

import re
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from exporter.simulator import Account, Plan, Simulator
from tests.docs.pages import ROOT
from tests.e2e.processes import Exporter, total
from tests.e2e.sharing import TOKEN, push
from tests.e2e.test_clocks import ledger_url


def recipe() -> list[str]:
    page = (ROOT / "docs" / "sources.md").read_text()
    section = page[page.index("## Renaming an account") :]
    found = re.search(r"```sql\n(.*?)```", section, re.DOTALL)
    assert found
    return [line.strip() for line in found[1].strip().splitlines()]


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
async def test_an_account_that_is_renamed_keeps_its_calls_and_counts(
    tmp_path: Path, engine: str
) -> None:
    async with AsyncExitStack() as ends:
        simulator = await ends.enter_async_context(Simulator(accounts=[Account("any", "k", "s")]))
        url = ends.enter_context(ledger_url(engine, tmp_path))
        for name, plan in {
            "named": Plan(),
            "pushed": Plan(),
            "open": Plan(queued=9e9),
        }.items():
            simulator.add_call("any", name, plan)
        config, file = tmp_path / "config.yaml", tmp_path / "calls.csv"

        def write(account: str) -> None:
            config.write_text(
                f"accounts: [{{name: {account}, api_key: k, secret_key: s,"
                f" base_url: '{simulator.url}'}}]\n"
                "polling: {pace: growing, interval: 200ms, max_interval: 200ms}\n"
                f"balance: {{interval: 0}}\nledger: {{url: '{url}'}}\n"
                f"watch: {{labels: [campaign], files: [calls.csv], "
                f"api: {{tokens: [{{name: app, token: {TOKEN}}}]}}}}\n"
            )
            file.write_text(f"reference_id,account\nnamed,{account}\nopen,{account}\n")

        write("main")
        async with Exporter(config) as exporter:
            await exporter.ready()
            await push(exporter, ["pushed"], "main", "otp")
            await exporter.until(lambda found: total(found, "esms_calls_total") == 2)
        address = url.replace("postgresql:", "postgresql+psycopg:")
        with create_engine(address, poolclass=NullPool).begin() as connection:
            for statement in recipe():
                connection.execute(text(statement))
        write("sales")
        async with Exporter(config) as exporter:
            await exporter.ready()
            await push(exporter, ["pushed"], "sales", "otp")
            before = total(await exporter.scrape(), "esms_api_requests_total")
            found = await exporter.until(
                lambda found: total(found, "esms_api_requests_total") > before + 5
            )
            assert total(found, "esms_calls_total", account="sales") == 2
            assert total(found, "esms_calls_total") == 2
            assert total(found, "esms_calls_watched") == 1
