"""What the exporter is made of: locked with hashes, not held back without a reason, and listed."""

from __future__ import annotations

import json
import os
import re
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import subprocesses
from tests.programs import program

ROOT = Path(__file__).parents[2]
LOCKS = sorted(path.name for path in ROOT.glob("requirements*.lock"))
PYPROJECT = (ROOT / "pyproject.toml").read_text()

_PINNED = re.compile(r"(?P<name>[a-z0-9-]+)(\[[a-z0-9,-]+\])?==(?P<version>[^ ;]+)( ; .+)?")
_HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def locked(text: str) -> dict[str, str]:
    """Return names and versions of a lock; whatever is not pinned and hashed fails."""
    found = {}
    # A requirement goes on after a backslash.
    for line in text.replace("\\\n", " ").splitlines():
        requirement, *hashes = re.split(r"\s+(?=--)", line.partition("#")[0].strip())
        if not requirement:
            continue
        pinned = _PINNED.fullmatch(requirement)
        assert pinned, f"not pinned: {requirement}"
        assert hashes, f"without a hash: {requirement}"
        assert all(_HASH.fullmatch(option) for option in hashes), requirement
        found[pinned["name"]] = pinned["version"]
    return found


@pytest.mark.parametrize("name", LOCKS)
def test_every_requirement_is_locked_with_a_hash_and_without_an_address(name: str) -> None:
    text = (ROOT / name).read_text()
    assert locked(text)
    assert "://" not in text


def test_locks_agree_with_each_other_and_hold_what_is_asked_for() -> None:
    run, dev, build, docs = (
        locked((ROOT / f"requirements{name}.lock").read_text())
        for name in ("", "-dev", "-build", "-docs")
    )
    assert run.items() <= dev.items()
    assert all(dev.get(name, version) == version for name, version in docs.items())
    assert build.items() <= dev.items()
    project = tomllib.loads(PYPROJECT)
    extras = project["project"]["optional-dependencies"].values()
    groups = project["dependency-groups"]
    for wanted, lock in (
        ([*project["project"]["dependencies"], *chain(*extras)], run),
        (groups["dev"], dev),
        (groups["build"], build),
        (groups["docs"], docs),
    ):
        for requirement in map(Requirement, wanted):
            version = lock[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version, prereleases=True), requirement
    # What PyMySQL needs for the users that MySQL 8 makes by default.
    assert "cryptography" in run


def unreasoned(text: str) -> list[str]:
    """Return the requirements that have an upper bound and no reason for it on their line."""
    project = tomllib.loads(text)
    wanted = [
        *project["project"]["dependencies"],
        *chain(*project["project"]["optional-dependencies"].values()),
        *chain(*project["dependency-groups"].values()),
        *project["build-system"]["requires"],
    ]
    lines = text.splitlines()
    return [
        name
        for name in wanted
        if any(bound.operator not in {">=", ">", "!="} for bound in Requirement(name).specifier)
        and not any(f'"{name}"' in line and "#" in line.rpartition('"')[2] for line in lines)
    ]


def test_an_upper_bound_has_a_reason() -> None:
    assert unreasoned(PYPROJECT) == []
    capped = PYPROJECT.replace('"click>=8.2",', '"click>=8.2,<9",')
    assert unreasoned(capped) == ["click>=8.2,<9"]
    assert unreasoned(capped.replace('<9",', '<9", # 9 has no options')) == []


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")  # of the validator's own libraries
def test_the_list_of_parts_is_valid_complete_and_the_same_each_time(tmp_path: Path) -> None:
    beside = Path(program("cyclonedx-py", "make lint")).parent
    texts = []
    for number in range(2):
        file = tmp_path / f"{number}.json"
        # As `make` runs it, but with the programs that these tests run with.
        made = [*("make", "--silent", "--old-file", f"{beside.parent}/.dev"), "sbom"]
        made += [f"SBOM={file}", f"VENV={beside.parent}"]
        subprocesses.run(*made, cwd=ROOT, check=True)
        texts.append(file.read_text())
    assert texts[0] == texts[1]
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(texts[0]) is None
    assert validator.validate_str(texts[0].replace('"library"', '"nonsense"', 1)) is not None
    parts = json.loads(texts[0])["components"]
    assert {part["name"]: part["version"] for part in parts} == locked(
        (ROOT / "requirements.lock").read_text()
    )
    assert all(reference["hashes"] for part in parts for reference in part["externalReferences"])


def test_an_audit_that_could_ask_nobody_says_so_and_fails() -> None:
    beside = Path(program("pip-audit", "make lint")).parent
    nobody = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    audit = subprocesses.run(
        ROOT / ".ci" / "audit", env={**os.environ, "BIN": str(beside), **nobody}
    )
    assert (audit.returncode, audit.stdout.splitlines()[-1][:12]) == (2, "NOT CHECKED:")
