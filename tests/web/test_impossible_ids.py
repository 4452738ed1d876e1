"""Ids and labels that no call can have: refused before the ledger sees them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from yarl import URL

from exporter.config import LedgerConfig
from exporter.secrets import Secret
from tests.databases import postgresql
from tests.web.api_bench import Bench, serving

# As they stand in a path and in JSON.
IDS = {
    "NUL": ("a%00b", "a\\u0000b"),
    "NUL alone": ("%00", "\\u0000"),
    "control": ("a%1Bb", "a\\u001bb"),
    "DEL": ("a%7F", "a\\u007f"),
    "blank": ("a%20b", "a b"),
    "no ASCII": ("%C3%A9", "\\u00e9"),
    "separator": ("a%E2%80%A8b", "a\\u2028b"),
    "surrogate": ("%ED%A0%80", "\\ud800"),
    "no UTF-8": ("\udcff", "\\udcff"),
    "too long": ("a" * 129, "a" * 129),
}


@pytest_asyncio.fixture(params=["sqlite", "postgresql"])
async def bench(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    if request.param == "sqlite":
        async with serving(tmp_path) as bench:
            yield bench
        return
    with postgresql() as server, server.database() as url:
        ledger = LedgerConfig(url=Secret(url.replace("+psycopg", "")))
        async with serving(tmp_path, ledger=ledger) as bench:
            yield bench


async def status(bench: Bench, method: str, path: str, body: str = "") -> int:
    """Return the status of a request with what no client would send."""
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Authorization: Bearer token-all\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", URL(bench.url).port)
    writer.write(head.encode(errors="surrogateescape"))
    async with asyncio.timeout(60):
        answer = await reader.read()
    writer.close()
    return int(answer.split()[1])


async def test_ids_and_labels_that_no_call_can_have(bench: Bench) -> None:
    await bench.watch("there")
    for name, (in_path, in_json) in IDS.items():
        for account in ("main", "nobody", in_path):
            for method in ("GET", "DELETE"):
                got = await status(bench, method, f"/api/v1/calls/{account}/{in_path}")
                assert got == 400, (name, method, account)
        assert await status(bench, "GET", f"/api/v1/calls?account={in_path}") == 400, name
        call = f'{{"account": "main", "reference_id": "{in_json}"}}'
        assert await status(bench, "POST", "/api/v1/calls", f'{{"calls": [{call}]}}') == 400, name
        for label in (f'{{"campaign": "{in_json}"}}', f'{{"{in_json}": "x"}}'):
            call = f'{{"account": "main", "reference_id": "a", "labels": {label}}}'
            got = await status(bench, "POST", "/api/v1/calls", f'{{"calls": [{call}]}}')
            # A value may hold any text that can be shown.
            allowed = label.startswith('{"campaign"') and name in {"blank", "no ASCII"}
            assert got == (202 if allowed else 400), (name, label)
    assert bench.service.ledger.errors == 0
    assert bench.service.not_ready() == []
    _, page = await bench.ask("GET", "/calls")
    assert [call["reference_id"] for call in page["calls"]] == ["there", "a"]
