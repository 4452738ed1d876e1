"""The wheel and the sdist: built twice, checked, and used where nothing else is installed."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import Iterable
from importlib.metadata import distribution, distributions
from pathlib import Path

import aiohttp
import pytest
from packaging.requirements import Requirement

from monitoring.links import HOME
from tests import subprocesses
from tests.programs import program
from tests.waiting import deadline

ROOT = Path(__file__).parents[2]
EXTRAS = ("home-assistant", "mysql", "postgresql")
CONFIG = """
accounts: [{name: main, api_key: k, secret_key: s}]
ledger: {url: postgresql://h/d}
watch: {sql: [{name: crm, url: mysql://h/d, query: SELECT 1 AS reference_id}]}
home_assistant: {url: mqtt://h}
"""


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the wheel and the sdist, as a release builds them."""
    folder = tmp_path_factory.mktemp("dist")
    build = (sys.executable, "-m", "hatchling", "build", "--directory", folder)
    environ = {**os.environ, "SOURCE_DATE_EPOCH": "1767225600"}
    subprocesses.run(*build, cwd=ROOT, env=environ, check=True)
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(re.sub(r"\d+\.\d+\.\d+", "V", name) for name in first) == [
        "esms_exporter-V-py3-none-any.whl",
        "esms_exporter-V.tar.gz",
    ]
    subprocesses.run(*build, cwd=ROOT, env=environ, check=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    return folder


def test_indexes_can_show_it(dist: Path) -> None:
    (wheel,) = distributions(name="esms-exporter", path=[str(*dist.glob("*.whl"))])
    # What indexes and the action that uploads it know; hatchling writes a newer one by default.
    assert wheel.metadata["Metadata-Version"] == "2.4"
    links = re.findall(r"\]\(([^)]+)\)", str(wheel.metadata.json["description"]))
    assert {f"{HOME}/docs/first-steps.md", f"{HOME}/LICENSE"} <= {*links}
    assert not [link for link in links if "://" not in link]
    assert [link for link in links if ".png" in link and link.endswith("?raw=true")]


def test_twine_finds_nothing_to_say(dist: Path) -> None:
    checked = subprocesses.run(program("twine", "make lint"), "check", "--strict", *dist.iterdir())
    assert checked.returncode == 0, checked.stdout + checked.stderr


def link(site: Path, requirements: Iterable[str], extras: Iterable[str]) -> None:
    """Add what requirements name, and what that needs, to an environment."""
    for requirement in map(Requirement, requirements):
        marker = requirement.marker
        if marker and not any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            continue
        found = distribution(requirement.name)
        names = {path.parts[0] for path in found.files or ()} - {"..", "__pycache__"}
        if new := [name for name in names if not (site / name).exists()]:
            for name in new:
                (site / name).symlink_to(str(found.locate_file(name)))
            link(site, found.requires or (), requirement.extras)


@pytest.fixture
def environment(dist: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Return a new virtual environment with only the wheel and its dependencies."""
    folder = tmp_path / "venv"
    subprocesses.run(sys.executable, "-m", "venv", "--without-pip", folder, check=True)
    (wheel,) = dist.glob("*.whl")
    install = ("pip", "install", "--offline", "--no-index", "--no-deps", "--no-cache")
    uv = program("uv", "make lint")
    subprocesses.run(uv, *install, "--python", folder / "bin" / "python", wheel, check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (installed,) = distributions(name="esms-exporter", path=[str(site)])
    link(site, installed.requires or (), request.param)
    return folder


@pytest.mark.parametrize("environment", [(), EXTRAS], indirect=True, ids=["plain", "extras"])
async def test_it_runs_in_a_fresh_environment(
    environment: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    esms_exporter = environment / "bin" / "esms-exporter"
    alone = {"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path)}
    demo = await subprocesses.start(
        *(esms_exporter, "demo", "--web.listen-address=127.0.0.1:0"),
        cwd=tmp_path,
        env=alone,
        stderr=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
    )
    assert demo.stderr
    log = ""
    async with deadline():
        while "event=ready" not in log:
            line = (await demo.stderr.readline()).decode()
            assert line, log
            log += line
        (url,) = re.findall(r"addresses=(\S+)", log)
        async with aiohttp.ClientSession() as http, http.get(f"{url}/metrics") as answer:
            assert "esms_calls_watched{" in await answer.text()
        demo.send_signal(signal.SIGINT)
        await demo.stderr.read()
        assert await demo.wait() == 0
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)
    check = (esms_exporter, "check", f"--config.file={config}")
    checked = subprocesses.run(*check, env=alone)
    if request.node.callspec.id == "extras":
        assert (checked.returncode, checked.stderr) == (0, "")
    else:
        assert checked.returncode == 1
        for missing in ("`psycopg`", "`pymysql`", "esms-exporter[home-assistant]"):
            assert missing in checked.stderr
