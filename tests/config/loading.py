"""The types of the fixtures of `conftest.py`."""

from __future__ import annotations

from collections.abc import Callable

from exporter.config import Config

Load = Callable[..., Config]
FindProblems = Callable[..., list[str]]
