from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from exporter.config import Config, NamedFiles, load_config
from exporter.errors import ConfigError
from exporter.sources.configuration import ConfigFile


@pytest.fixture
def key(tmp_path: Path) -> Path:
    key = tmp_path / "key"
    key.write_text("old\n")
    key.chmod(0o600)
    return key


@pytest.fixture
def path(tmp_path: Path, key: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text("accounts:\n  - {name: main, api_key_file: key, secret_key: s}\n")
    return path


def load(path: Path, files: NamedFiles) -> Config:
    return load_config(path, {}, files)


def looks(file: ConfigFile[Config]) -> list[bool]:
    return [file.changed() for _ in range(3)]


def test_a_file_or_a_key_that_changes(path: Path, key: Path) -> None:
    file = ConfigFile(path, load)
    assert file.load().accounts[0].api_key.reveal() == "old"
    assert looks(file) == [False, False, False]
    key.write_text("new\n")
    assert looks(file) == [False, True, True]  # until it was read
    assert file.load().accounts[0].api_key.reveal() == "new"
    assert looks(file) == [False, False, False]
    path.write_text("accounts: 5\n")
    assert looks(file) == [False, True, True]
    with pytest.raises(ConfigError):
        file.load()
    # What is wrong is read again when it changes; a key cannot make it right.
    key.write_text("newer\n")
    assert looks(file) == [False, False, False]
    path.write_text("accounts: [{name: main, api_key_file: nowhere, secret_key: s}]\n")
    with pytest.raises(ConfigError):
        file.load()
    # Or when a file that it names changes.
    (path.parent / "nowhere").write_text("newest\n")
    assert looks(file) == [False, True, True]
    assert file.load().accounts[0].api_key.reveal() == "newest"


def renamed(path: Path) -> None:
    path.rename(path.with_suffix(".away"))


def made_a_folder(path: Path) -> None:
    renamed(path)
    path.mkdir()


def with_its_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_suffix(".away"))


@pytest.mark.parametrize("name", ["config.yaml", "key"])
@pytest.mark.parametrize("remove", [renamed, made_a_folder, with_its_folder])
def test_a_file_that_is_removed_and_comes_back(
    tmp_path: Path, name: str, remove: Callable[[Path], None]
) -> None:
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "key").write_text("old")
    path = folder / "config.yaml"
    path.write_text("accounts:\n  - {name: main, api_key_file: key, secret_key: s}\n")
    file = ConfigFile(path, load)
    file.load()
    remove(folder / name)
    assert looks(file) == [False, True, True]
    with pytest.raises(ConfigError, match=r"cannot be read: (No such file|Is a directory)"):
        file.load()
    assert looks(file) == [False, False, False]  # it is told once
    if (folder / name).is_dir():
        (folder / name).rmdir()
    for away in tmp_path.rglob("*.away"):
        away.rename(folder / name if away.is_file() else folder)
    # Also where it is the same file, with the times that it had.
    assert looks(file) == [False, True, True]
    assert file.load().accounts[0].api_key.reveal() == "old"
    assert looks(file) == [False, False, False]


def test_a_key_that_changes_while_it_is_read_for_the_first_time(path: Path, key: Path) -> None:
    def load_and_change(path: Path, files: NamedFiles) -> Config:
        config = load(path, files)
        key.write_text("changed meanwhile\n")
        return config

    file = ConfigFile(path, load_and_change)
    assert file.load().accounts[0].api_key.reveal() == "old"
    assert looks(file) == [False, True, True]


def test_a_key_that_anybody_can_read_is_told_once(path: Path, key: Path) -> None:
    file = ConfigFile(path, load)
    with capture_logs() as logs:
        file.load()
        assert logs == []
        key.chmod(0o640)
        file.load()
        assert logs == []
        key.chmod(0o644)
        file.load()
        file.load()
    assert [(line["log_level"], line["file"]) for line in logs] == [("warning", str(key))]
