"""Releases: the workflows, the notes, and the project's address."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from monitoring.links import HOME
from tests import subprocesses
from tests.programs import program
from tools.release import release_notes

ROOT = Path(__file__).parents[2]
WORKFLOWS = ROOT / ".github" / "workflows"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PUBLIC = "https://git.example.org/team/esms-exporter/blob/main"


def test_workflows_are_valid_and_safe() -> None:
    actionlint = program("actionlint", "go install github.com/rhysd/actionlint/cmd/actionlint")
    linted = subprocesses.run(actionlint, "-shellcheck=", "-pyflakes=", cwd=ROOT)
    assert (linted.returncode, linted.stdout) == (0, "")
    # Among others: actions that are not pinned by commit, and permissions that are not needed.
    audited = subprocesses.run(
        program("zizmor", "make lint"), "--offline", "--quiet", ".github", cwd=ROOT
    )
    assert audited.returncode == 0, audited.stdout + audited.stderr


def test_ci_has_every_version_of_python() -> None:
    tested = yaml.safe_load((WORKFLOWS / "ci.yml").read_text())["jobs"]["test"]
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert tested["strategy"]["matrix"]["python"] == named
    assert PROJECT["requires-python"] == f">={named[0]}"


NOTES = """# Changelog

## [Unreleased]

## [1.2.0] - 2026-01-31

### Added

- A line
  and the [rest](docs/x.md), of [it](https://example.org/).
- Another.

## [1.1.0] - 2026-01-01

- Old.
"""


def test_the_notes_of_a_release() -> None:
    assert release_notes("v1.2.0", NOTES, "1.2.0", PUBLIC) == (
        "### Added\n\n"
        f"- A line and the [rest]({PUBLIC}/docs/x.md), of [it](https://example.org/).\n"
        "- Another.\n"
    )
    assert release_notes("v1.1.0", NOTES, "1.1.0", PUBLIC) == "- Old.\n"


@pytest.mark.parametrize(
    ("tag", "version", "home", "problem"),
    [
        ("v1.2.1", "1.2.0", PUBLIC, "the version in exporter/__init__.py is 1.2.0"),
        ("1.2.0", "1.2.0", PUBLIC, "the version in exporter/__init__.py is 1.2.0"),
        ("v1.3.0", "1.3.0", PUBLIC, r"no section `## \[1\.3\.0\] - YYYY-MM-DD`"),
        ("v1.2", "1.2", PUBLIC, "no section"),
        ("v1.2.0", "1.2.0", "https://example.com/x", "make homepage"),
    ],
)
def test_a_tag_that_cannot_be_released(tag: str, version: str, home: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        release_notes(tag, NOTES, version, home)


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


def test_the_chart_of_a_release(public: Path) -> None:
    helm = program("helm", "go install helm.sh/helm/v3/cmd/helm")
    made = ("make", "chart", "VERSION=1.2.3", "IMAGE=images.example.com/esms")
    subprocesses.run(*made, cwd=public, check=True)
    (chart,) = (public / "dist").iterdir()
    shown = subprocesses.run(*(helm, "template", chart, "--kube-version=1.34"), check=True).stdout
    assert re.search(r'image: "?images\.example\.com/esms:1\.2\.3"?$', shown, re.MULTILINE)
    about = yaml.safe_load(subprocesses.run(helm, "show", "chart", chart, check=True).stdout)
    assert (about["version"], about["appVersion"]) == ("1.2.3", "1.2.3")
