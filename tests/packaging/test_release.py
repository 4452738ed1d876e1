"""The project's address."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from monitoring.links import HOME
from tests import subprocesses
from tests.programs import program

ROOT = Path(__file__).parents[2]
PUBLIC = "https://git.example.org/team/esms-exporter/blob/main"


@pytest.fixture
def public(tmp_path: Path) -> Path:
    """Return a copy of the repository with a public address."""
    git = program("git", "Debian's git")
    names = subprocesses.run(git, "ls-files", "-z", cwd=ROOT, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).exists():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    subprocesses.run(git, "init", "--quiet", cwd=tmp_path, check=True)
    subprocesses.run(git, "add", "--all", cwd=tmp_path, check=True)
    subprocesses.run("make", "homepage", f"HOMEPAGE={PUBLIC}/", cwd=tmp_path, check=True)
    return tmp_path


def test_one_variable_sets_the_address_everywhere(public: Path) -> None:
    files = [path for path in public.rglob("*") if path.is_file() and ".git" not in path.parts]
    texts = {path.relative_to(public): path.read_bytes() for path in files}
    assert not [path for path, text in texts.items() if HOME.encode() in text]
    changed = {str(path) for path, text in texts.items() if PUBLIC.encode() in text}
    assert {"pyproject.toml", "monitoring/rules/alerts.yaml", "docs/alerts.md"} <= changed
    # Generated files have the new address, too.
    git = program("git", "Debian's git")
    subprocesses.run(git, "add", "--all", cwd=public, check=True)
    for module in ("deploy.rules", "monitoring.dashboards"):
        subprocesses.run(sys.executable, "-m", module, cwd=public, check=True)
    assert subprocesses.run(git, "diff", cwd=public).stdout == ""
