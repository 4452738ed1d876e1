from __future__ import annotations

import asyncio
import gc
import os
import tempfile
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from exporter.config import WatchConfig
from exporter.config.watch import CallConfig
from exporter.errors import ConfigError
from exporter.ledger.types import NewCall
from exporter.source_status import SourceStatus
from exporter.sources.files import FilesSource, Found, check_files, find_files
from exporter.sources.source import SourceContext
from exporter.sources.tabular import read_calls
from tests.sources.sink import Sink


class Bench:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sink = Sink()
        self.files = FilesSource(self.sink)

    @property
    def named(self) -> dict[str, str]:
        """The ids that each file names, in one word."""
        prefix = f"file:{self.folder}/"
        return {
            source.removeprefix(prefix): "".join(sorted(ids))
            for source, ids in self.sink.named.items()
            if source and ids
        }

    @property
    def status(self) -> SourceStatus:
        return self.files.statuses[0]

    def write(self, name: str, *lines: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    async def configure(self, *patterns: str) -> None:
        files = tuple(f"{self.folder}/{pattern}" for pattern in patterns)
        watch = WatchConfig.model_construct(files=files)
        await self.files.configure(watch, SourceContext(("main",), ("campaign",), 0))
        await self.files.remove_missing()

    async def restart(self, *patterns: str, **options: Any) -> None:
        """Begin anew, as another exporter on the same ledger."""
        self.files = FilesSource(self.sink, **options)
        await self.configure(*patterns)

    async def settle(self) -> None:
        for _ in range(2):
            await self.files.check()

    async def settled(self) -> dict[str, str]:
        await self.settle()
        return self.named


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def test_calls_come_and_go_with_their_lines_and_files(bench: Bench) -> None:
    await bench.configure("calls/*.txt")
    assert bench.named == {}
    path = bench.write("calls/a.txt", "A", "B")
    await bench.restart("calls/*.txt")
    assert bench.named == {"calls/a.txt": "AB"}  # at once
    assert bench.status.last_success > 0
    bench.write("calls/a.txt", "B", "C")
    assert await bench.settled() == {"calls/a.txt": "BC"}
    path.unlink()
    assert await bench.settled() == {}
    bench.write("calls/a.txt", "A")
    assert await bench.settled() == {"calls/a.txt": "A"}
    assert bench.status.errors == 0


async def test_a_file_with_a_bad_line_lets_go_of_nothing(bench: Bench) -> None:
    bench.write("a.txt", "A", "B")
    await bench.configure("a.txt")
    with capture_logs() as logs:
        bench.write("a.txt", "C", "b a d")
        await bench.settle()
        bench.write("a.txt", "D", "b a d")
        assert await bench.settled() == {"a.txt": "ABCD"}
    (line,) = [line for line in logs if line["log_level"] == "warning"]
    assert line["problem"].endswith("at its start")
    assert bench.status.errors == 1
    before = bench.status.last_success
    bench.write("a.txt", "D")
    assert await bench.settled() == {"a.txt": "D"}
    assert bench.status.last_success > before


@pytest.mark.parametrize("line", ["reference_id,nothing", '"'])
async def test_a_bad_file_without_calls_is_no_problem_any_more_once_it_is_removed(
    bench: Bench, line: str
) -> None:
    path = bench.write("a.csv", line)
    await bench.configure("*.csv")
    await bench.settle()
    assert bench.status.problem
    before = bench.status.last_success
    path.unlink()
    await bench.settle()
    assert bench.status.problem == ""
    assert bench.status.last_success > before


@pytest.mark.parametrize("pattern", ["calls/a.txt", "calls/*.txt"])
async def test_a_folder_that_is_gone_takes_no_call_along(bench: Bench, pattern: str) -> None:
    path = bench.write("calls/a.txt", "A")
    await bench.configure(pattern)
    await bench.settle()
    aside = path.parent.rename(bench.folder / "aside")
    for _ in range(3):
        assert await bench.settled() == {"calls/a.txt": "A"}
    assert bench.status.errors == 1
    # Its problem ends when it is back as it was.
    aside.rename(path.parent)
    await bench.settle()
    assert bench.status.problem == ""
    aside = path.parent.rename(aside)
    # Not even by a restart meanwhile.
    await bench.restart(pattern)
    assert bench.named == {"calls/a.txt": "A"}
    aside.rename(path.parent)
    bench.write("calls/a.txt", "B")
    assert await bench.settled() == {"calls/a.txt": "B"}


async def test_a_file_named_without_a_wildcard_is_missed(bench: Bench) -> None:
    path = bench.write("a[1].txt", "A")
    await bench.configure("a[[]1].txt")
    path.unlink()
    with capture_logs() as logs:
        for _ in range(3):
            assert await bench.settled() == {"a[1].txt": "A"}
    (line,) = [line for line in logs if line["log_level"] == "warning"]
    assert (line["item"], line["problem"]) == (str(path), "cannot be read: no such file")


async def test_what_was_removed_while_the_exporter_was_down_is_let_go(bench: Bench) -> None:
    bench.write("a.txt", "A")
    bench.write("b.txt", "B")
    await bench.configure("*.txt")
    (bench.folder / "a.txt").unlink()
    await bench.restart("*.txt")
    assert bench.named == {"a.txt": "A", "b.txt": "B"}  # it may be back in a moment
    assert await bench.settled() == {"b.txt": "B"}
    # As is what the configuration does not look for any more.
    await bench.configure()
    assert bench.named == {}
    assert not bench.status.shown


async def test_a_file_that_is_written_all_the_time(bench: Bench) -> None:
    path = bench.write("a.txt", "A")
    await bench.configure("a.txt")
    with path.open("a") as file:
        for number in range(12):
            file.write(f"\n{'BCDEFGHIJKLM'[number]}")
            file.flush()
            await bench.files.check()
    assert bench.named["a.txt"] == "ABCDEFGHIJKL"
    await bench.settle()
    assert bench.named["a.txt"] == "ABCDEFGHIJKLM"
    path.write_text("A\n")
    await bench.settle()
    assert bench.named["a.txt"] == "A"


async def test_a_ledger_that_fails_is_tried_again_and_loses_no_file(bench: Bench) -> None:
    gone = bench.write("z.txt", "Z")
    await bench.configure("*.txt")
    bench.sink.broken = True
    for name in "abc":
        bench.write(f"{name}.txt", name.upper())
    gone.unlink()
    with capture_logs() as logs:
        for _ in range(3):
            await bench.settle()
    assert [line["problem"] for line in logs] == ["the disk is full"]
    bench.sink.broken = False
    assert await bench.settled() == {"a.txt": "A", "b.txt": "B", "c.txt": "C"}


async def test_a_reload_that_changes_nothing_reads_nothing(bench: Bench) -> None:
    bench.write("a.txt", *"ABC")
    await bench.configure("*.txt")
    await bench.settle()
    before = bench.sink.added
    # Even while the file is written anew.
    (bench.folder / "a.txt").write_text("A\n")
    await bench.configure("*.txt")
    assert (bench.named, bench.sink.added) == ({"a.txt": "ABC"}, before)
    await bench.configure("*.txt", "*.csv")
    assert bench.named == {"a.txt": "ABC"}
    assert await bench.settled() == {"a.txt": "A"}


async def test_a_folder_that_cannot_be_listed_keeps_its_calls(bench: Bench) -> None:
    user = os.geteuid()
    # Not under `tmp_path`, which other users may not enter.
    with tempfile.TemporaryDirectory() as folder:
        bench.folder = Path(folder)
        bench.folder.chmod(0o755)
        calls = bench.write("calls/a.txt", "A").parent
        await bench.configure("calls/**/*.txt")
        await bench.settle()
        calls.chmod(0)
        if user == 0:  # who may list every folder
            os.seteuid(65534)
        try:
            for _ in range(3):
                await bench.settle()
        finally:
            os.seteuid(user)
            calls.chmod(0o700)
        assert bench.named == {"calls/a.txt": "A"}
        calls.rename(calls.with_name("aside"))
        for _ in range(3):
            assert await bench.settled() == {"calls/a.txt": "A"}


async def test_calls_beyond_the_limit_are_refused(bench: Bench) -> None:
    bench.write("a.txt", *"ABC")
    bench.sink.room = 2
    with capture_logs() as logs:
        await bench.configure("a.txt")
        assert await bench.settled() == {"a.txt": "AB"}
    assert [line["problem"] for line in logs if "problem" in line] == [
        "some of its calls exceed `watch.max_calls` (account main)"
    ]
    # Others in their place find the room that they leave.
    bench.write("a.txt", "D", "E")
    assert await bench.settled() == {"a.txt": "DE"}
    bench.write("a.txt", "D", "E", "F")
    assert await bench.settled() == {"a.txt": "DE"}
    # And those that found none, the room that others leave.
    bench.sink.room = 3
    assert await bench.settled() == {"a.txt": "DE"}
    await bench.restart("a.txt", retry_interval=0)
    assert bench.named == {"a.txt": "DEF"}
    bench.write("a.txt", "D", "E", "F", "G")
    await bench.settle()
    bench.sink.room = 4
    assert await bench.settled() == {"a.txt": "DEFG"}


async def test_what_is_no_file_is_told_and_holds_up_nothing(bench: Bench) -> None:
    for name, line in zip(("a", "b", "c", os.fsdecode(b"\xff")), "abcd", strict=True):
        bench.write(f"{name}.txt", line)
    os.mkfifo(bench.folder / "d.txt")
    (bench.folder / "e.txt").symlink_to("/dev/zero")
    (bench.folder / "folder.txt").mkdir()
    with capture_logs() as logs:
        await bench.configure("*.txt")
        for _ in range(3):
            assert await bench.settled() == {"a.txt": "a", "b.txt": "b", "c.txt": "c"}
    told = {Path(line["item"]).name for line in logs if line["log_level"] == "warning"}
    assert told == {"d.txt", "e.txt", "*.txt"}
    assert bench.status.errors == 3
    assert "finds 1 files with unprintable names" in bench.status.problem
    bench.sink.named.clear()
    await bench.restart("**/*.txt", find=partial(find_files, limit=2), limit=2)
    assert bench.named == {"a.txt": "a", "b.txt": "b"}
    assert "finds over 2 files" in bench.status.problem


def test_checking_reads_every_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("A\nB\n")
    patterns = [f"{tmp_path}/*.txt"]
    assert check_files(patterns, ["main"], []) == 2
    (tmp_path / "b.txt").write_text("b a d\n")
    with pytest.raises(ConfigError) as error:
        check_files([*patterns, f"{tmp_path}/c.csv"], ["main"], [])
    assert [problem.file for problem in error.value.problems] == [
        f"{tmp_path}/b.txt",
        f"{tmp_path}/c.csv",
    ]


class Hang:
    """What blocks the thread that comes to a path, until it is told to go on."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.reached, self.free = threading.Event(), threading.Event()

    def pass_by(self, path: str) -> None:
        if path == self.path:
            self.reached.set()
            assert self.free.wait(120)

    def find(self, pattern: str) -> Found:
        self.pass_by(pattern)
        return find_files(pattern)

    def read(self, path: str, *arguments: Any, **more: Any) -> Iterator[CallConfig]:
        calls = read_calls(path, *arguments, **more)
        yield next(calls)
        self.pass_by(path)
        yield from calls


async def looked(bench: Bench, condition: Callable[[], bool]) -> None:
    """Look again and again until the condition holds."""
    async with asyncio.timeout(60):
        while not condition():
            await bench.files.check()
            await asyncio.sleep(0.01)


async def test_a_pattern_whose_file_system_does_not_answer(bench: Bench) -> None:
    for name in ("a/1.txt", "b/1.txt"):
        bench.write(name, name[0].upper())
    hang = Hang(f"{bench.folder}/a/*.txt")
    hang.free.set()
    await bench.restart("a/*.txt", "b/*.txt", find=hang.find, timeout=1)
    assert bench.named == {"a/1.txt": "A", "b/1.txt": "B"}
    hang.free.clear()
    (bench.folder / "a" / "1.txt").unlink()
    bench.write("b/1.txt", "C")
    with capture_logs() as logs:
        # The others are taken up, and of its own nothing is let go.
        await looked(bench, lambda: bench.named["b/1.txt"] == "C")
        for name in "DEF":
            bench.write(f"b/{name}.txt", name)
            await looked(bench, lambda: f"b/{name}.txt" in bench.named)  # noqa: B023 - at once
        # As after a reload, that waits no longer either.
        await bench.configure("a/*.txt", "b/*.txt", "c/*.txt")
        await bench.configure("a/*.txt", "b/*.txt")
    assert bench.named["a/1.txt"] == "A"
    told = [line["problem"] for line in logs if line["log_level"] == "warning"]
    assert set(told) == {"cannot be searched: no answer within 1 s"}
    hang.free.set()
    await looked(bench, lambda: "a/1.txt" not in bench.named)
    assert not bench.status.problem


async def test_a_file_whose_file_system_does_not_answer(bench: Bench) -> None:
    bench.write("a.txt", "A", *(f"{n}" for n in range(1500)))
    for name in "bc":
        bench.write(f"{name}.txt", name.upper())
    hang = Hang(f"{bench.folder}/a.txt")
    begun = Counter[str]()

    def read(path: str, *arguments: Any, **more: Any) -> Iterator[CallConfig]:
        begun[path] += 1
        return hang.read(path, *arguments, **more)

    with capture_logs() as logs:
        await bench.restart("*.txt", read=read, timeout=1)
        await looked(bench, lambda: bench.named == {"b.txt": "B", "c.txt": "C"})
        bench.write("b.txt", "D")
        await looked(bench, lambda: bench.named == {"b.txt": "D", "c.txt": "C"})
    (line,) = [line for line in logs if line["log_level"] == "warning"]
    assert (line["item"], line["problem"]) == (hang.path, "cannot be read: no answer within 1 s")
    assert bench.status.errors == 1
    assert hang.reached.is_set()
    hang.free.set()
    await looked(bench, lambda: "a.txt" in bench.named and not bench.status.problem)
    assert len(bench.sink.named[f"file:{hang.path}"]) == 1501
    # Reading continues where it was: a batch may take that long each time.
    assert begun[hang.path] == 1


async def test_a_search_that_is_slow_is_used_once_it_has_ended(bench: Bench) -> None:
    bench.write("a.txt", "A")
    hang = Hang(f"{bench.folder}/*.txt")
    searches = 0

    def find(pattern: str) -> Found:
        nonlocal searches
        searches += 1
        return hang.find(pattern)

    await bench.restart("*.txt", find=find, timeout=1)
    for _ in range(3):
        await bench.files.check()
    hang.free.set()
    await looked(bench, lambda: not bench.status.problem)
    assert searches == 1
    assert await bench.settled() == {"a.txt": "A"}


async def test_a_file_that_is_cut_off_while_it_is_read_lets_go_of_nothing(bench: Bench) -> None:
    path = bench.write("a.txt", "A", "B", "C")

    def read(path: str, *arguments: Any, **more: Any) -> Iterator[CallConfig]:
        if cut:
            Path(path).write_text(cut.pop())  # after it was found
        yield from read_calls(path, *arguments, **more)

    cut = [path.read_text()]
    await bench.restart("a.txt", read=read)
    assert await bench.settled() == {"a.txt": "ABC"}
    bench.write("a.txt", "A", "B", "C", "D")
    cut.append("A\n")
    assert await bench.settled() == {"a.txt": "ABC"}
    assert await bench.settled() == {"a.txt": "A"}


async def test_memory_is_that_of_the_calls_that_files_add(bench: Bench) -> None:
    class Rows(Sink):
        async def add(
            self, source: str | None, calls: Iterable[NewCall]
        ) -> tuple[set[int], Counter[str]]:
            ids = {int(call.reference_id) for call in calls}
            return ids, Counter()

        async def keep_only(self, source: str, rows: set[int]) -> None:
            assert len(rows) == different

    for different in (10, 10_000):
        bench.sink = Rows()
        bench.files = FilesSource(bench.sink)
        bench.write("a.txt", *(f"{n % different:036d}" for n in range(10_000)))
        gc.collect()
        tracemalloc.start()
        await bench.configure("a.txt")
        await bench.settle()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < 100 * different + 2_000_000
