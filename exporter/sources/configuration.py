"""The watch source of the configuration file: reading it, and whether it is to be read again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, Generic, TypeVar

import structlog

from exporter.config import NamedFiles
from exporter.sources.changes import Watched

SOURCE: Final = "config"
"""The source's name in metrics."""

T = TypeVar("T")

_log = structlog.get_logger(__name__)


class ConfigFile(Generic[T]):
    """A configuration file and the other files that it names. Blocking.

    Args:
        path: the file.
        read: makes a configuration of it, and takes down the other files; raises `ConfigError`.
    """

    def __init__(self, path: Path, read: Callable[[Path, NamedFiles], T]) -> None:
        self._path = path
        self._read = read
        self._files = [str(path)]
        self._watched = Watched()
        self._exposed: set[Path] = set()

    def load(self) -> T:
        """Read it.

        Raises:
            ConfigError: with every problem.
        """
        # Before it is read: what is written from now on is a change.
        for change in self._watched.look(self._files, wait=False):
            self._watched.read(change)
        others = NamedFiles(before=lambda path: self._watched.note(str(path)))
        named = set(self._files)  # where it is wrong, it may not name what it takes to be right
        try:
            loaded = self._read(self._path, others)
            named = {str(self._path)}
            return loaded
        finally:
            self._files = [*named.union(map(str, others.paths))]
            for path in sorted(others.exposed - self._exposed):
                _log.warning(
                    "file of a secret can be read by anybody on the machine", file=str(path)
                )
            self._exposed = others.exposed

    def changed(self) -> bool:
        """Tell whether a file has changed since it was last read, and lies still."""
        return any(change.settled for change in self._watched.look(self._files))
