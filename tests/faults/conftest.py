"""Connections that end with the event loop of their test."""

from __future__ import annotations

import gc
import sys
from collections.abc import Generator

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Generator[None]:
    """Collect what the closed loop leaves behind, in silence.

    A server of asyncio cannot end connections whose TLS handshake goes on. They would be reported
    in the test that comes next.
    """
    yield
    hook = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        gc.collect()
    finally:
        sys.unraisablehook = hook
