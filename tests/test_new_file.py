"""Files that appear when they are complete."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import ExitStack
from pathlib import Path

import pytest

from exporter.errors import ExporterError
from exporter.new_file import new_file


def test_it_appears_complete_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with new_file(path) as file:
        file.write(b"content")
        assert not path.exists()
    assert path.read_bytes() == b"content"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(ExporterError, match="exists already"), new_file(path):
        pass
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "file.unfinished").write_text("what a killed command left")
    with pytest.raises(ZeroDivisionError), new_file(tmp_path / "file") as file:
        file.write(b"%d" % (1 // 0))
    full = pytest.raises(ExporterError, match=r"file: cannot be written \(File too large\)")
    with full, new_file(tmp_path / "file"):
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    missing = new_file(tmp_path / "missing" / "file")
    with pytest.raises(ExporterError, match=r"cannot be written \(No such file"), missing:
        pass
    assert not list(tmp_path.iterdir())


def test_a_link_that_takes_its_place_leads_nowhere(tmp_path: Path) -> None:
    """Another user may be able to write to the folder."""
    other, unfinished = tmp_path / "other", tmp_path / "file.unfinished"
    other.write_text("precious")
    life = ExitStack()
    file = life.enter_context(new_file(tmp_path / "file"))
    unfinished.unlink()
    unfinished.symlink_to(other)
    file.write(b"content")
    with pytest.raises(ExporterError, match="another command writes it"):
        life.close()
    assert other.read_text() == "precious"
    assert not (tmp_path / "file").exists()


def test_two_commands_that_write_the_same_file(tmp_path: Path) -> None:
    """The second one completes it, although the first one ends earlier."""
    path, first, second = tmp_path / "file", ExitStack(), ExitStack()
    first.enter_context(new_file(path)).write(b"first")
    with second:
        file = second.enter_context(new_file(path))
        file.write(b"sec")
        with pytest.raises(ExporterError, match="another command writes it"):
            first.close()
        assert not path.exists()
        file.write(b"ond")
    assert path.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [path]
