"""Whatever happens to calls and exporters, and in whatever order: each call is counted once.

`python -m benchmarks.soak --life sqlite` does the same with one exporter and a file.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.databases import Server
from tests.e2e.counting import DURABLE, Scrapes
from tests.e2e.life import live


async def test_every_call_counts_once_in_a_random_life(tmp_path: Path, server: Server) -> None:
    await live(tmp_path, server, seed=12, seconds=25.0)


@pytest.mark.parametrize("name", DURABLE)
def test_a_counter_that_goes_backwards_would_be_seen(name: str) -> None:
    scrapes = Scrapes()
    series = (f"{name}_x", frozenset[tuple[str, str]]())
    scrapes.add({series: 2.0})
    scrapes.add({series: 1.0})
    assert scrapes.backwards == [(series, 2.0, 1.0)]
