"""A database that goes away: nothing of its address is shown or logged."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import make_url

from exporter.config import LedgerConfig, SqlConfig
from exporter.secrets import Secret
from tests.databases import PASSWORD, postgresql
from tests.waiting import until
from tests.web.bench import Bench, serving


async def shown(bench: Bench) -> str:
    """Return all that is said to those who look, with a token and without."""
    texts = []
    for path in ("/-/ready", "/", "/metrics", "/api/v1/status", "/api/v1/calls/main/a"):
        for headers in ({}, {"Authorization": "Bearer token-all"}):
            async with bench.http.get(f"{bench.url}{path}", headers=headers) as answer:
                texts.append(await answer.text())
    return "\n".join(texts)


async def test_a_server_that_goes_away(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with postgresql() as server, server.database() as url:
        ledger = LedgerConfig(url=Secret(url.replace("+psycopg", "")))
        query = SqlConfig.model_validate(
            {"name": "orders", "url": ledger.url, "query": "SELECT '' AS reference_id",
             "interval": 1.0}
        )  # fmt: skip
        async with serving(tmp_path, ledger=ledger) as bench:
            await bench.configure(sql=(query,))
            (status,) = bench.app.sources.sql.statuses
            await until(lambda: status.last_success > 0)
            server.stop()
            try:
                await until(lambda: bool(bench.app.not_ready()))
                await until(lambda: status.problem != "")
                # The ledger itself notices it later than the heartbeat.
                await until(lambda: bench.app.ledger.problem is not None)
                texts = await shown(bench)
            finally:
                server.start()
    logged = "".join(capfd.readouterr())
    assert "refuses connections" in texts
    assert "ledger: refuses connections" in logged
    parsed = make_url(url)
    assert parsed.database
    assert parsed.username
    for part in (PASSWORD, str(parsed.port), parsed.database, parsed.username, "://postgres"):
        assert part not in texts
        assert part not in logged
