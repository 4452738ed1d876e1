"""A series for each call, in a running exporter whose configuration changes."""

from __future__ import annotations

from pathlib import Path

from exporter.simulator import Account, Plan, Simulator
from tests.e2e.processes import Exporter, total


def configure(folder: Path, base_url: str, *, enabled: bool) -> Path:
    path = folder / "config.yaml"
    path.write_text(
        "accounts:\n"
        f"  - {{name: main, api_key: k, secret_key: s, base_url: '{base_url}'}}\n"
        "polling: {interval: 200ms, max_interval: 200ms}\n"
        "balance: {interval: 0}\n"
        f"ledger: {{url: 'sqlite:///{folder}/ledger.db'}}\n"
        f"metrics: {{per_call: {{enabled: {str(enabled).lower()}, limit: 10}}}}\n"
        "watch: {calls: [live, ended]}\n"
    )
    return path


async def test_it_comes_and_goes_with_the_configuration(tmp_path: Path) -> None:
    async with Simulator(accounts=[Account("main", "k", "s")]) as simulator:
        simulator.add_call("main", "live", Plan(queued=10_000))
        simulator.add_call("main", "ended", Plan())
        name = "esms_call_state"
        async with Exporter(configure(tmp_path, simulator.url, enabled=True)) as exporter:
            await exporter.ready()
            found = await exporter.until(
                lambda found: total(found, name, state="finished_success") == 1
            )
            assert total(found, name, account="main", reference_id="ended") == 1
            await exporter.until(
                lambda found: total(found, name, reference_id="live", state="queued") == 1
            )
            configure(tmp_path, simulator.url, enabled=False)
            await exporter.until(lambda found: total(found, name) == 0)
