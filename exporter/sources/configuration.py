"""The watch source of the configuration file: reading it, and whether it is to be read again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from exporter.config import Config, load_config
from exporter.sources.changes import Watched


class ConfigFile:
    """The configuration file and the files of credentials that it names. Blocking.

    Args:
        path: the file.
        environ: the variables for `${NAME}`.
    """

    def __init__(self, path: Path, environ: Mapping[str, str] = os.environ) -> None:
        self._path = path
        self._environ = environ
        self._files = [str(path)]
        self._watched = Watched()

    def load(self) -> Config:
        """Read it.

        Raises:
            ConfigError: with every problem.
        """
        # Before it is read: what is written from now on is a change.
        for change in self._watched.look(self._files, wait=False):
            self._watched.read(change)
        secret_files: set[Path] = set()
        try:
            return load_config(self._path, self._environ, secret_files)
        finally:
            if secret_files:
                self._files = [str(self._path), *map(str, secret_files)]
            self._watched.note(self._files)

    def changed(self) -> bool:
        """Tell whether a file has changed since it was last read, and lies still."""
        return any(change.settled for change in self._watched.look(self._files))
