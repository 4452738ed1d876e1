"""Files of calls and of the configuration, changed while the exporter runs."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest_asyncio

from exporter.simulator import Account, Plan, Simulator
from tests.e2e.processes import Exporter, Series, total
from tests.faults.scene import environment

LIVE = Plan(queued=10_000)
SECONDS = 2.0
"""Within which a change is taken up; a poll of the test and a busy machine come on top."""


@pytest_asyncio.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with Simulator(accounts=[Account("main", "key-main", "s")]) as simulator:
        yield simulator


class Bench:
    """An exporter, and the calls that it watches by what the provider is asked."""

    def __init__(self, folder: Path, simulator: Simulator, exporter: Exporter) -> None:
        self.folder = folder
        self.simulator = simulator
        self.exporter = exporter

    async def watches(self, calls: int) -> None:
        """Wait until so many calls are watched."""
        await self.exporter.until(lambda found: total(found, "esms_calls_watched") == calls)

    async def until(self, condition: Callable[[dict[Series, float]], bool]) -> None:
        await self.exporter.until(condition)


def configure(folder: Path, simulator: Simulator, *, more: str = "") -> Path:
    path = folder / "config.yaml"
    path.write_text(
        f"accounts:\n  - {{name: main, api_key_file: key, secret_key: s, base_url: "
        f"'{simulator.url}'}}\n"
        "polling: {interval: 200ms, max_interval: 200ms}\n"
        "balance: {interval: 0}\n"
        f"ledger: {{url: 'sqlite:///{folder}/ledger.db'}}\n"
        "watch:\n  labels: [campaign]\n"
        "  files: [calls/*.yaml, calls/*.csv, calls/*.txt, mounted/calls.json]\n" + more
    )
    return path


@pytest_asyncio.fixture
async def bench(tmp_path: Path, simulator: Simulator) -> AsyncIterator[Bench]:
    for name in "abcdef":
        simulator.add_call("main", name, LIVE)
    (tmp_path / "key").write_text("key-main\n")
    async with Exporter(configure(tmp_path, simulator)) as exporter:
        await exporter.ready()
        yield Bench(tmp_path, simulator, exporter)


async def test_calls_come_and_go_with_files(bench: Bench) -> None:
    folder = bench.folder / "calls"
    # A folder and a file that appear later.
    folder.mkdir()
    (folder / "a.yaml").write_text("- {reference_id: a, labels: {campaign: otp}}\n- b\n")
    await bench.watches(2)
    # The same call in two files is one call.
    (folder / "b.csv").write_text("reference_id,campaign\nB,other\nc,otp\n")
    await bench.watches(3)
    # Appending.
    with (folder / "c.txt").open("a") as file:
        file.write("d  # the fourth\n")
    await bench.watches(4)
    with (folder / "c.txt").open("a") as file:
        file.write("e\n")
    await bench.watches(5)
    # Atomic replacement.
    (folder / "new").write_text("reference_id\nc\n")
    (folder / "new").rename(folder / "b.csv")
    (folder / "new").write_text("- b\n")
    (folder / "new").rename(folder / "a.yaml")
    await bench.watches(4)  # b c d e
    (folder / "c.txt").unlink()
    await bench.watches(2)
    # One that ends is counted, with the labels that it was first named with; others are not.
    bench.simulator.add_call("main", "f", Plan())
    (folder / "f.csv").write_text("reference_id,campaign\nf,reminder\n")
    await bench.until(lambda found: total(found, "esms_calls_total", campaign="reminder") == 1)
    (folder / "f.csv").unlink()
    (folder / "f.txt").write_text("F\n")
    await bench.watches(2)
    found = await bench.exporter.scrape()
    assert total(found, "esms_calls_total") == 1
    assert total(found, "esms_source_errors_total", source="files") == 1  # no mounted/calls.json


async def test_a_volume_of_kubernetes(bench: Bench) -> None:
    mounted = bench.folder / "mounted"
    mounted.mkdir()

    def version(name: str, text: str) -> None:
        (mounted / name).mkdir()
        (mounted / name / "calls.json").write_text(text)
        (mounted / "..data_tmp").symlink_to(name)
        (mounted / "..data_tmp").replace(mounted / "..data")

    version("..1", '["a", "b"]')
    (mounted / "calls.json").symlink_to("..data/calls.json")
    await bench.watches(2)
    version("..2", '["b", "c", "d"]')
    await bench.watches(3)
    before = (await bench.exporter.scrape())[
        "esms_source_last_success_timestamp_seconds", frozenset({("source", "files")})
    ]
    # Half-written: nothing is let go.
    version("..3", '["b", ')
    await bench.until(lambda found: total(found, "esms_source_errors_total", source="files") == 2)
    await bench.watches(3)
    version("..4", '["b"]')
    await bench.watches(1)
    await bench.until(
        lambda found: (
            total(found, "esms_source_last_success_timestamp_seconds", source="files") > before
        )
    )


async def test_the_configuration_and_its_keys(bench: Bench) -> None:
    path = bench.folder / "config.yaml"
    good = path.read_text()
    configure(bench.folder, bench.simulator, more="  calls: [a, b]\n")
    await bench.watches(2)
    # A half-written file changes nothing.
    path.write_text(good[:100])
    name = "esms_exporter_config_last_reload_successful"
    await bench.until(lambda found: total(found, name) == 0)
    await bench.watches(2)
    configure(bench.folder, bench.simulator, more="  calls: [a]\n")
    await bench.watches(1)
    await bench.until(lambda found: total(found, name) == 1)
    # A key that was changed is used from then on.
    (bench.folder / "key").write_text("wrong")
    await bench.until(lambda found: total(found, "esms_account_authorized") == 0)
    (bench.folder / "new").write_text("key-main")
    (bench.folder / "new").rename(bench.folder / "key")
    await bench.until(lambda found: total(found, "esms_account_authorized") == 1)


async def test_a_file_system_that_does_not_answer(tmp_path: Path, simulator: Simulator) -> None:
    for name in "abcd":
        simulator.add_call("main", name, LIVE)
    (tmp_path / "key").write_text("key-main\n")
    for folder, name in (("calls", "a"), ("mounted", "b")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "calls.json").write_text(f'["{name}"]')
    (tmp_path / "calls" / "a.txt").write_text("a\n")
    path = configure(tmp_path, simulator)
    switch, mount = tmp_path / "hangs", f"{tmp_path}/mounted"
    environ = environment(hang=switch)
    async with Exporter(path, environ=environ) as exporter, aiohttp.ClientSession() as http:
        url = await exporter.ready()
        await exporter.until(lambda found: total(found, "esms_calls_watched") == 2)
        (tmp_path / "new").write_text(mount)
        (tmp_path / "new").rename(switch)
        # What the others name is taken up, and nothing of what it names is let go.
        (tmp_path / "calls" / "c.txt").write_text("c\n")
        found = await exporter.until(lambda found: total(found, "esms_calls_watched") == 3)
        assert total(found, "esms_source_errors_total", source="files") == 1
        async with http.post(f"{url}/-/reload") as answer:
            assert answer.status == 200
        (tmp_path / "calls" / "c.txt").write_text("")
        await exporter.until(lambda found: total(found, "esms_calls_watched") == 2)
        configure(tmp_path, simulator, more="  calls: [d]\n")
        await exporter.until(lambda found: total(found, "esms_calls_watched") == 3)
        assert exporter.output.count("cannot be searched: no answer within 10 s") == 1
        # Once it answers, it is gone on with.
        switch.unlink()
        (tmp_path / "mounted" / "calls.json").write_text("[]")
        await exporter.until(lambda found: total(found, "esms_calls_watched") == 2)
        (tmp_path / "new").write_text(mount)
        (tmp_path / "new").rename(switch)
        await exporter.until(
            lambda found: total(found, "esms_source_errors_total", source="files") == 2
        )
        exporter.send(signal.SIGTERM)
        assert await exporter.wait() == 0
    # It starts as well.
    async with Exporter(path, environ=environ) as exporter:
        await exporter.ready()
        await exporter.until(lambda found: total(found, "esms_calls_watched") == 2)


async def test_without_auto_reload(tmp_path: Path, simulator: Simulator) -> None:
    (tmp_path / "key").write_text("key-main\n")
    path = configure(tmp_path, simulator)
    async with Exporter(path, "--no-config.auto-reload") as exporter:
        await exporter.ready()
        configure(tmp_path, simulator, more="  calls: [a]\n")
        (tmp_path / "calls").mkdir()
        (tmp_path / "calls" / "a.txt").write_text("b\nc\n")
        # Files of calls are a source of their own; the configuration is as it was.
        await exporter.until(lambda found: total(found, "esms_calls_watched") == 2)
        assert "configuration reloaded" not in exporter.output
