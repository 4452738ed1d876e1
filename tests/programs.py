"""External programs that tests need."""

from __future__ import annotations

import os
import shutil
import sys

import pytest

FORBID_SKIP = os.environ.get("ESMS_EXPORTER_TESTS_FORBID_SKIP") == "1"


def program(name: str, install: str) -> str:
    """Return the path of an external program, or skip the test and say how to install it."""
    beside_python = os.path.dirname(sys.executable)  # noqa: PTH120 - a text to be joined
    if path := shutil.which(name, path=os.pathsep.join((beside_python, os.environ["PATH"]))):
        return path
    message = f"needs `{name}`: {install}"
    if FORBID_SKIP:
        pytest.fail(message)
    pytest.skip(message)
