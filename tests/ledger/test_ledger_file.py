"""The ledger's file is taken away while it is open."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from exporter.calls import ReferenceId
from exporter.errors import LedgerBusyError, LedgerError
from exporter.ledger.engine import open_database
from exporter.ledger.records import NewCall
from exporter.ledger.store import Store


def opened(path: Path) -> Store:
    return Store(open_database(f"sqlite:///{path}"))


def watch(store: Store, name: str) -> None:
    store.watch(None, [NewCall("main", ReferenceId(name), {})], 1.0)


def watched(store: Store) -> list[str]:
    return [stored.call.reference_id for stored in store.unfinished("main")]


def delete_all(path: Path) -> None:
    for file in path.parent.glob("ledger.db*"):
        file.unlink()


def move_away(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))


def delete_beside_a_broken_copy(path: Path) -> None:
    path.unlink()
    path.with_name("ledger.db.copy").write_bytes(b"half of it")


@pytest.mark.parametrize("take", [Path.unlink, delete_all, move_away, delete_beside_a_broken_copy])
def test_a_file_that_was_taken_away_is_written_anew(
    path: Path, take: Callable[[Path], None]
) -> None:
    store = opened(path)
    watch(store, "before")
    take(path)
    watch(store, "after")
    assert watched(store) == ["before", "after"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(LedgerBusyError):
        opened(path)
    store.close()
    again = opened(path)
    assert watched(again) == ["before", "after"]
    again.close()


def test_a_file_in_its_place_is_not_written_over(path: Path) -> None:
    store = opened(path)
    watch(store, "before")
    backup = path.with_name("backup.db")
    shutil.copy(path, backup)
    content = backup.read_bytes()
    backup.rename(path)
    with pytest.raises(LedgerError, match="another file was put in its place"):
        watch(store, "after")
    assert path.read_bytes() == content
    store.close()


def test_a_folder_that_is_gone_and_comes_back(path: Path) -> None:
    store = opened(path)
    watch(store, "before")
    away = path.parent.with_name("away")
    path.parent.rename(away)
    with pytest.raises(LedgerError, match="make sure its folder exists"):
        watch(store, "meanwhile")
    path.parent.write_text("a file now")
    with pytest.raises(LedgerError, match=r"cannot be seen any more \(Not a directory\)"):
        watch(store, "meanwhile")
    path.parent.unlink()
    away.rename(path.parent)
    watch(store, "after")
    assert watched(store) == ["before", "after"]
    store.close()


def test_no_room_for_another_copy(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(path)
    watch(store, "before")
    path.unlink()

    def fsync(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(os, "fsync", fsync)
        with pytest.raises(LedgerError, match="No space left on device"):
            watch(store, "meanwhile")
    assert not path.exists()
    watch(store, "after")
    assert watched(store) == ["before", "after"]
    store.close()


def test_a_lock_that_was_deleted_is_taken_again(path: Path) -> None:
    store = opened(path)
    lock = path.with_name(path.name + ".lock")
    lock.unlink()
    store.snapshot()  # whatever comes next
    with pytest.raises(LedgerBusyError):
        open_database(f"sqlite:///{path}")
    # Where somebody else was faster, nothing is written any more.
    lock.unlink()
    other = open_database(f"sqlite:///{path}")
    with pytest.raises(LedgerBusyError):
        store.snapshot()
    other.close()
    store.snapshot()
    store.close()
