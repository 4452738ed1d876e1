"""Ledgers in files that are backed up, copied and restored, in good ways and bad ones."""

from __future__ import annotations

import resource
import shutil
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from exporter.errors import ExporterError
from exporter.ids import ReferenceId
from exporter.ledger.engine import open_database
from exporter.ledger.sqlite import back_up
from exporter.ledger.store import Store
from exporter.ledger.types import NewCall
from tests import subprocesses

HEAD = "accounts: [{name: main, api_key: k, secret_key: s}]\n"


def opened(path: Path) -> Store:
    return Store(open_database(f"sqlite:///{path}"))


def watch(store: Store, name: str, labels: int = 0) -> None:
    """Take a call in; with many labels, the file grows."""
    many = {f"label{number}": "x" * 100 for number in range(labels)}
    store.watch(None, [NewCall("main", ReferenceId(name), many)], 1.0)


def watched(store: Store) -> list[str]:
    return [stored.call.reference_id for stored in store.unfinished("main")]


def backed_up(url: str, target: Path) -> str:
    """Run the command, in a process of its own; returns what it says."""
    config = target.with_suffix(".yaml")
    config.write_text(f"{HEAD}ledger: {{url: '{url}'}}\n")
    command = sys.executable, "-m", "exporter", "backup", f"--config.file={config}", str(target)
    done = subprocesses.run(*command)
    config.unlink()
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_ledger_is_backed_up_while_it_is_in_use(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "backup.db"
    store = opened(path)
    watch(store, "before")
    assert backed_up(f"sqlite:///{path}", target) == f"{target}: 1 calls\n"
    watch(store, "after")
    assert watched(store) == ["before", "after"]
    store.database.close()
    assert backed_up(f"sqlite:///{path}", tmp_path / "second.db").endswith(": 2 calls\n")
    # An exporter of another user could not use files that were left beside the ledger.
    assert [file.name for file in path.parent.glob(f"{path.name}*")] == [path.name]
    assert target.stat().st_mode & 0o777 == 0o600
    with capture_logs() as logs:
        restored = opened(target)
    assert logs == []
    assert watched(restored) == ["before"]
    restored.database.close()


def test_what_cannot_be_backed_up(path: Path, tmp_path: Path) -> None:
    target, url = tmp_path / "backup.db", f"sqlite:///{path}"

    def refused(url: str = url, target: Path = target) -> str:
        with pytest.raises(ExporterError) as caught:
            back_up(url, target)
        return str(caught.value)

    assert "No such file" in refused()
    path.touch()
    assert "holds no ledger" in refused()
    opened(path).database.close()
    assert "back it up with `pg_dump`" in refused("postgresql://h/d")
    assert "exists already" in refused(target=path)
    assert "cannot be written (No such file" in refused(target=tmp_path / "nowhere" / "backup.db")
    in_the_way = tmp_path / "backup.db-wal"
    in_the_way.touch()
    assert "backup.db-wal: exists already" in refused()
    in_the_way.unlink()
    link = tmp_path / "link.db"
    link.hardlink_to(path)
    assert "hard links" in refused()
    # Nothing is left behind, and nothing is made.
    assert sorted(tmp_path.iterdir()) == [path, link]


def test_a_backup_that_cannot_grow_names_its_file(tmp_path: Path) -> None:
    path, target = tmp_path / "ledger.db", tmp_path / "backup.db"
    store = opened(path)
    watch(store, "a", labels=4_000)
    store.database.close()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(ExporterError) as caught:
            back_up(f"sqlite:///{path}", target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(caught.value).startswith(f"{target}: cannot be written; check the disk (SQLITE_")
    assert list(tmp_path.iterdir()) == [path]


# What an operator puts in the ledger's place, and what is said of it at the start.

WITHOUT = "without its -wal: the newest"
FOREIGN = "is from another file"


def copied(path: Path, place: Path) -> None:
    shutil.copy(path, place)


def copied_with_its_wal(path: Path, place: Path) -> None:
    shutil.copy(path, place)
    shutil.copy(f"{path}-wal", f"{place}-wal")


def only_the_wal(path: Path, place: Path) -> None:
    shutil.copy(f"{path}-wal", f"{place}-wal")


def backup_beside_the_wal(path: Path, place: Path) -> None:
    backed_up(f"sqlite:///{path}", place)
    shutil.copy(f"{path}-wal", f"{place}-wal")


def stopped_copy_beside_the_wal(path: Path, place: Path) -> None:
    shutil.copy(path.with_name("stopped"), place)
    shutil.copy(f"{path}-wal", f"{place}-wal")


def killed_without_a_wal(_: Path, place: Path) -> None:
    """As on a file system that has no shared memory: SQLite keeps a journal instead."""
    opened(place).database.close()
    with closing(sqlite3.connect(place)) as killed:
        killed.execute("PRAGMA journal_mode = DELETE")
        killed.execute("PRAGMA user_version = 2")


@pytest.mark.parametrize(
    ("put", "said"),
    [
        (copied, WITHOUT),
        (killed_without_a_wal, None),
        (copied_with_its_wal, None),
        (only_the_wal, FOREIGN),
        (backup_beside_the_wal, FOREIGN),
        (stopped_copy_beside_the_wal, FOREIGN),
        (lambda _, place: place.touch(), None),
        (lambda *_: None, None),
    ],
)
def test_what_is_restored_badly_is_told(
    path: Path, tmp_path: Path, put: Callable[[Path, Path], None], said: str | None
) -> None:
    store = opened(path)
    store.database.close()
    shutil.copy(path, tmp_path / "stopped")
    store = opened(path)
    for number in range(5):
        watch(store, f"call-{number}", labels=20)
    place = tmp_path / "restored.db"
    put(path, place)
    with capture_logs() as logs:
        opened(place).database.close()
    found = [str(log["problem"]) for log in logs if log["log_level"] == "warning"]
    assert len(found) == (said is not None)
    assert said is None or said in found[0]
    # Told once: what an exporter closes is whole.
    with capture_logs() as logs:
        opened(place).database.close()
    assert logs == []
    store.database.close()


def test_a_reader_that_holds_the_wal_at_the_end_is_no_fault(path: Path, tmp_path: Path) -> None:
    """The file says nothing new then: its -wal alone does."""
    store = opened(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM calls")
        watch(store, "A")
        store.database.close()
        left = tmp_path / "left.db"
        copied_with_its_wal(path, left)
    with capture_logs() as logs:
        store = opened(left)
    assert logs == []
    assert watched(store) == ["A"]
    store.database.close()


def test_a_ledger_that_was_not_closed_is_as_it_should_be(path: Path) -> None:
    script = (
        "import os, sys; from tests.ledger.test_ledger_backup import *; "
        "watch(opened(Path(sys.argv[1])), 'A'); os._exit(1)"
    )
    for _ in range(2):
        assert subprocesses.run(sys.executable, "-c", script, path).returncode == 1
        with capture_logs() as logs:
            store = opened(path)
        assert logs == []
        assert watched(store) == ["A"]
        store.database.close()
