"""External programs that tests need."""

from __future__ import annotations

import os
import shutil

import pytest

FORBID_SKIP = os.environ.get("ESMS_EXPORTER_TESTS_FORBID_SKIP") == "1"


def program(name: str, debian_package: str) -> str:
    """Return the path of an external program, or skip the test and say what to install."""
    if path := shutil.which(name):
        return path
    message = f"needs `{name}`: install it, for example with `apt-get install {debian_package}`"
    if FORBID_SKIP:
        pytest.fail(message)
    pytest.skip(message)
