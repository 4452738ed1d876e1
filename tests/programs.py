"""External programs that tests need."""

from __future__ import annotations

import os
import shutil
import sys
from typing import Final, NoReturn

import pytest

FORBID_SKIP = os.environ.get("ESMS_EXPORTER_TESTS_FORBID_SKIP") == "1"


def program(name: str, install: str) -> str:
    """Return the path of an external program, or skip the test and say how to install it."""
    beside_python = os.path.dirname(sys.executable)  # noqa: PTH120 - a text to be joined
    path = shutil.which(name, path=os.pathsep.join((beside_python, os.environ["PATH"])))
    return path or unavailable(f"needs `{name}`: {install}")


PROMETHEUS: Final = {
    "2": "apt-get install prometheus",
    "3": "go install github.com/prometheus/prometheus/cmd/{0}@v0.316.0, and name it {0}3",
}
"""How to install a program of Prometheus, by its major version; Debian's is 2.42."""

every_prometheus = pytest.mark.parametrize("version", PROMETHEUS)


def of_prometheus(name: str, version: str) -> str:
    """Return the path of `prometheus` or `promtool` of a major version; see `program`."""
    suffix = "" if version == "2" else version
    return program(f"{name}{suffix}", PROMETHEUS[version].format(name))


def unavailable(needs: str) -> NoReturn:
    """Skip the test, and say what it needs; where skipping is forbidden, fail."""
    if FORBID_SKIP:
        pytest.fail(needs)
    pytest.skip(needs)
