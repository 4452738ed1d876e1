"""What tests of look-ups share."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from exporter.simulator import Account, Plan, Simulator

KEY, SECRET = "made-up-key-1234567", "made-up-secret"
MAIN = Account("main", KEY, SECRET)
ACCOUNTS = (MAIN, Account("b", "key-b", SECRET))
CONFIG = "--config.file=config.yaml"


def configure(folder: Path, url: str, *names: str, rate: float = 2000) -> Path:
    keys = {"main": KEY, "b": "key-b"}
    accounts = "".join(
        f"  - {{name: {name}, api_key: {keys[name]}, secret_key: {SECRET},"
        f" base_url: '{url}', rate_limit: {rate}}}\n"
        for name in names or ("main",)
    )
    path = folder / "config.yaml"
    path.write_text(
        f"accounts:\n{accounts}polling: {{timeout: 2s}}\nwatch: {{labels: [campaign]}}\n"
    )
    return path


def place(simulator: Simulator, count: int) -> list[str]:
    ids = [f"CALL-{number:05}" for number in range(count)]
    for name in ids:
        simulator.add_call("main", name, Plan())
    return ids


def in_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def in_json(text: str) -> list[dict[str, Any]]:  # Any: JSON
    return [json.loads(line) for line in text.splitlines()]
