"""The ledger's file is taken away while it is open."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from exporter.errors import LedgerBusyError, LedgerError
from exporter.ledger.store import Store
from tests import subprocesses
from tests.ledger.test_ledger_backup import opened, watch, watched
from tests.programs import unavailable


def delete_all(path: Path) -> None:
    for file in path.parent.glob("ledger.db*"):
        file.unlink()


def move_away(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))


@contextmanager
def in_use(path: Path) -> Iterator[Store]:
    """Open a ledger that holds a call; at the end, it takes another one and holds both."""
    store = opened(path)
    watch(store, "before")
    yield store
    watch(store, "after")
    assert watched(store) == ["before", "after"]
    store.database.close()


@pytest.mark.parametrize("take", [Path.unlink, delete_all, move_away])
def test_a_file_that_was_taken_away_is_written_anew(
    path: Path, take: Callable[[Path], None]
) -> None:
    with in_use(path) as store:
        take(path)
        assert watched(store) == ["before"]
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(LedgerBusyError):
            opened(path)
    again = opened(path)
    assert watched(again) == ["before", "after"]
    again.database.close()


def test_a_file_in_its_place_is_not_written_over(path: Path) -> None:
    """A copy of it, and one that another exporter made."""
    store = opened(path)
    backup = path.with_name("backup.db")
    shutil.copy(path, backup)
    content = backup.read_bytes()
    backup.rename(path)
    with pytest.raises(LedgerError, match="was replaced by another file"):
        watch(store, "after")
    assert path.read_bytes() == content
    path.unlink()
    other = opened(path)
    watch(other, "of the other")
    with pytest.raises(LedgerError, match="was replaced by another file"):
        watch(store, "after")
    assert watched(other) == ["of the other"]
    other.database.close()
    store.database.close()


def test_a_folder_that_is_gone_and_comes_back(path: Path) -> None:
    with in_use(path) as store:
        away = path.parent.with_name("away")
        path.parent.rename(away)
        with pytest.raises(LedgerError, match="make sure its folder exists"):
            watch(store, "meanwhile")
        path.parent.write_text("a file now")
        with pytest.raises(LedgerError, match=r"cannot be accessed any more \(Not a directory\)"):
            watch(store, "meanwhile")
        path.parent.unlink()
        away.rename(path.parent)


def test_a_file_that_cannot_be_written_anew(path: Path) -> None:
    with in_use(path) as store:
        path.unlink()
        in_the_way = path.with_name("ledger.db-journal")
        in_the_way.mkdir()
        with pytest.raises(LedgerError, match="cannot be"):
            watch(store, "meanwhile")
        assert not path.exists()
        in_the_way.rmdir()


def test_a_file_under_another_name(path: Path) -> None:
    """Its -wal lies beside one of the names alone."""
    link = path.with_name("link.db")
    with in_use(path):
        with pytest.raises(LedgerBusyError):
            opened(path.rename(link))
        link.rename(path)
        link.hardlink_to(path)
        for name in (path, link):
            with pytest.raises(LedgerError, match=r"has 2 names \(hard links\)"):
                opened(name)
    with pytest.raises(LedgerError, match=r"has 2 names \(hard links\)"):
        opened(path)
    link.unlink()
    opened(path).database.close()


def test_a_file_that_is_a_mount_of_its_own(path: Path, tmp_path: Path) -> None:
    opened(path).database.close()
    mounted = tmp_path / "elsewhere" / "with blanks.db"
    mounted.parent.mkdir()
    mounted.touch()
    if subprocesses.run("unshare", "--mount", "true").returncode:
        unavailable("needs a mount namespace: run it as root, outside of a container")
    open_it = (
        "import sys; from exporter.ledger.engine import open_database; "
        "open_database(f'sqlite:///{sys.argv[1]}').close()"
    )
    script = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
    inside = ["unshare", "--mount", "sh", "-c", script, "sh"]

    def open_mounted(what: Path, where: Path, file: Path) -> str:
        done = subprocesses.run(*inside, str(what), str(where), sys.executable, "-c", open_it, file)
        return done.stderr

    assert "is mounted as a single file" in open_mounted(path, mounted, mounted)
    # As a folder it is the same file, and in use or not.
    folder = tmp_path / "folder"
    folder.mkdir()
    assert open_mounted(path.parent, folder, folder / path.name) == ""
    store = opened(path)
    assert "LedgerBusyError" in open_mounted(path.parent, folder, folder / path.name)
    store.database.close()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_that_cannot_be_locked_is_not_said_to_be_in_use(
    path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    for name in ("fcntl", "flock", "lockf"):
        monkeypatch.setattr(fcntl, name, refuse)
    with pytest.raises(LedgerError, match=os.strerror(number)) as caught:
        opened(path)
    assert not isinstance(caught.value, LedgerBusyError)
