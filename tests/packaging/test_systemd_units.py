from __future__ import annotations

import re
from pathlib import Path

import pytest

from exporter.config import load_config
from exporter.config.validation import parse_duration
from tests import subprocesses
from tests.programs import program

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "systemd"
SERVICE = (FOLDER / "esms-exporter.service").read_text()


def settings(name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", SERVICE, re.MULTILINE)


@pytest.fixture
def units(tmp_path: Path) -> list[str]:
    """The units, with a program that is there."""
    (command,) = settings("ExecStart")
    for unit in FOLDER.glob("esms-exporter.*"):
        text = unit.read_text().replace(command.split()[0], "/bin/true")
        (tmp_path / unit.name).write_text(text)
    return sorted(map(str, tmp_path.iterdir()))


def analyze(*arguments: str) -> str:
    path = program("systemd-analyze", "apt-get install systemd")
    shown = subprocesses.run(path, *arguments)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    # What it does not understand it says, and goes on.
    assert "esms-exporter" not in shown.stderr
    return shown.stdout


def test_systemd_understands_the_units(units: list[str]) -> None:
    assert len(units) == 2
    assert analyze("verify", *units) == ""


def test_the_exposure_is_what_the_page_says(units: list[str]) -> None:
    (service,) = (unit for unit in units if unit.endswith(".service"))
    (said,) = re.findall(r"exposure of (\d+\.\d)", (ROOT / "docs/deployment.md").read_text())
    threshold = f"--threshold={round(float(said) * 10)}"
    analyze("security", "--offline=true", "--no-pager", threshold, service)


def test_the_configuration_has_the_keys_that_are_handed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for credential in settings("LoadCredential"):
        (tmp_path / credential.partition(":")[0]).write_text("a-key")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    config = load_config(FOLDER / "config.yaml")
    assert len(config.accounts) == 1
    (stop,) = settings("TimeoutStopSec")
    assert parse_duration(stop) >= config.shutdown_timeout + 10


def test_the_ledger_is_where_it_may_be_written() -> None:
    (state,), (folder,) = settings("StateDirectory"), settings("WorkingDirectory")
    assert folder == f"%S/{state}"
    assert settings("ProtectSystem") == ["strict"]
