"""Configurations that the documentation shows are good ones."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from exporter.config import Config, load_config
from exporter.web.web_config import load_web_config
from tests import subprocesses
from tests.docs import pages
from tests.docs.pages import Block
from tests.programs import every_prometheus, of_prometheus
from tests.web.certificates import Certificates

YAML = [block for page in pages.names() for block in pages.blocks(page) if block.language == "yaml"]
WEB = {"tls_server_config", "http_server_config", "basic_auth_users", "rate_limit"}

# What a block leaves out.
REST = {"accounts": [{"name": "main", "api_key": "made-up", "secret_key": "made-up"}]}

# What a file has to hold, by a part of its name.
CONTENTS = (
    ("url", "sqlite:///made-up"),
    ("ledger", "sqlite:///made-up"),
    ("phone", "0912345678"),
    ("webhook", f"whsec_{'MadeUp00' * 4}"),
)


def keys(block: Block) -> set[str]:
    found = yaml.safe_load(block.text)
    return set(found) if isinstance(found, dict) else set()


def named(keys_wanted: set[str]) -> list[Any]:  # Any: pytest's parameters
    """Return the blocks that are made of these keys alone."""
    return [
        pytest.param(block, id=block.place)
        for block in YAML
        if keys(block) and keys(block) <= keys_wanted
    ]


def files(folder: Path, block: Block) -> None:
    """Write the files that a block names, and put something into its variables."""
    for name in re.findall(r"_file: *([\w./-]+)", block.text):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(next((text for part, text in CONTENTS if part in name), "made-up"))
        if path.suffix == ".pem":
            trustme.CA().cert_pem.write_to_path(str(path))
        path.chmod(0o600)


@pytest.mark.parametrize("block", named(set(Config.model_fields)))
def test_configurations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: Block) -> None:
    files(tmp_path, block)
    for name in re.findall(r"\$\{(\w+)", block.text):
        monkeypatch.setenv(name, "made-up")
    whole = {**REST, **yaml.safe_load(block.text)}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(whole))
    load_config(tmp_path / "config.yaml")


@pytest.mark.parametrize("block", named(WEB))
def test_web_configurations(tmp_path: Path, block: Block) -> None:
    Certificates(tmp_path)
    (tmp_path / "web.yml").write_text(block.text)
    load_web_config(tmp_path / "web.yml")


PROMETHEUS = [
    pytest.param(block, command, id=block.place)
    for key, command in (("scrape_configs", "config --syntax-only"), ("groups", "rules"))
    for block in YAML
    if key in keys(block)
]


@every_prometheus
@pytest.mark.parametrize(("block", "command"), PROMETHEUS)
def test_configurations_of_prometheus(
    tmp_path: Path, version: str, block: Block, command: str
) -> None:
    (tmp_path / "file.yml").write_text(block.text)
    promtool = of_prometheus("promtool", version)
    checked = subprocesses.run(promtool, "check", *command.split(), "file.yml", cwd=tmp_path)
    assert checked.returncode == 0, f"{block.place}: {checked.stdout}{checked.stderr}"


def test_there_are_some_of_each() -> None:
    assert len(named(set(Config.model_fields))) >= 4
    assert named(WEB)
    assert PROMETHEUS
