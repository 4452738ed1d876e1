"""External programs that tests need."""

from __future__ import annotations

import os
import shutil
import sys
from typing import NoReturn

import pytest

FORBID_SKIP = os.environ.get("ESMS_EXPORTER_TESTS_FORBID_SKIP") == "1"


def program(name: str, install: str) -> str:
    """Return the path of an external program, or skip the test and say how to install it."""
    beside_python = os.path.dirname(sys.executable)  # noqa: PTH120 - a text to be joined
    path = shutil.which(name, path=os.pathsep.join((beside_python, os.environ["PATH"])))
    return path or unavailable(f"needs `{name}`: {install}")


def unavailable(needs: str) -> NoReturn:
    """Skip the test, and say what it needs; where skipping is forbidden, fail."""
    if FORBID_SKIP:
        pytest.fail(needs)
    pytest.skip(needs)
