from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, settings

from tests import subprocesses

# What their assertions compare is to be shown as that of tests is.
pytest.register_assert_rewrite(
    *(f"tests.faults.{name}" for name in ("scene", "machine", "commits", "scrapers"))
)

# How fast examples are made and run is for benchmarks: the machine may be busy.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


# Most of the time that these take is waiting: they start first, and each test by itself.
LONG = ("faults", "e2e", "docs", "counting", "replicas", "benchmarks")
SPREAD = ("e2e", "docs", "benchmarks")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tell pytest-xdist what it may spread over its workers, and in which order.

    Tests of a file share servers and scenes, and stay on one worker.
    """
    folders = {item: item.path.relative_to(Path(__file__).parent).parts[0] for item in items}
    for item, folder in folders.items():
        if folder not in SPREAD and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: (*LONG, folders[item]).index(folders[item]))


def pytest_sessionstart() -> None:
    subprocesses.adopt_orphans()
    # Tests say how wide a terminal is; pytest-xdist would tell their programs something else.
    os.environ.pop("COLUMNS", None)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish() -> None:
    """Kill what a worker of pytest-xdist has left that crashed."""
    subprocesses.kill_descendants(60)


@pytest.fixture(scope="session", autouse=True)
def no_process_left_behind() -> Iterator[None]:
    yield
    left = subprocesses.kill_descendants(60)
    assert not left, left


@pytest.fixture(autouse=True)
def processes_end_with_their_test() -> Iterator[None]:
    with subprocesses.ended_with_test():
        yield


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Undo what a command that runs in this process does to the log: others look at theirs."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    hooks = sys.excepthook, sys.unraisablehook, threading.excepthook
    yield
    if structlog.is_configured():
        root.handlers[:] = handlers
        root.setLevel(level)
        structlog.reset_defaults()
        sys.excepthook, sys.unraisablehook, threading.excepthook = hooks
