from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tests import subprocesses
from tests.databases import Server, postgresql

# What their assertions compare is to be shown as that of tests is.
pytest.register_assert_rewrite("tests.faults.scene")

# How fast examples are made and run is for benchmarks: the machine may be busy.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


# Most of the time that these take is waiting: they start first.
LONG = ("faults", "e2e", "docs", "counting", "replicas", "benchmarks")
# Tests of a file share servers and scenes, and stay on one worker; but for these.
SPREAD = ("tests/e2e/", "tests/docs/", "tests/benchmarks/", "tests/monitoring/")
TOGETHER = ("tests/e2e/test_dashboard_queries.py",)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        folders = {item: item.path.relative_to(Path(__file__).parent).parts[0] for item in items}
        items.sort(key=lambda item: (*LONG, folders[item]).index(folders[item]))


class Scheduler(LoadScopeScheduling):  # type: ignore[misc] # which has no types
    """Hands the tests of a file, or single ones, to the next worker that has nothing to do."""

    def _split_scope(self, nodeid: str) -> str:
        alone = nodeid.startswith(SPREAD) and not nodeid.startswith(TOGETHER)
        return nodeid if alone else nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduler:
    config.option.loadscopereorder = False
    return Scheduler(config, log)


def pytest_sessionstart() -> None:
    subprocesses.adopt_orphans()
    # A shell has what it runs in the background ignore these, and all programs that that starts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
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


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A server of PostgreSQL for tests that make databases of their own in it."""
    with postgresql() as server:
        yield server


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
