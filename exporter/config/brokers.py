"""What it takes to speak to an MQTT broker, looked at before anybody does."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

MAX_AUTHORITIES: Final = 1 << 20
"""Bytes that a file of certificates may have."""


def client_problem() -> str | None:
    """Return what is missing to speak MQTT; None if nothing is."""
    if find_spec("aiomqtt") is None:
        return "the MQTT client is not installed: `pip install 'esms-exporter[home-assistant]'`"
    return None
