"""Ports on loopback for servers that cannot be told to choose one themselves."""

from __future__ import annotations

import random
import socket
from pathlib import Path
from typing import Final

_LOWEST: Final = 10_000
_RESERVATIONS: Final[list[socket.socket]] = []


def free_port() -> int:
    """Reserve a port, for as long as this process lives, and return it.

    The kernel gives the ports above `ip_local_port_range` to any connection, also between the
    moment when a test finds one free and the moment when a server binds it. Ports below are bound
    only on purpose. Test processes tell each other which ones they use by abstract Unix sockets:
    only one process can bind a name, and the kernel releases it with the process.
    """
    ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in random.sample(range(_LOWEST, ephemeral), ephemeral - _LOWEST):
        reservation = socket.socket(socket.AF_UNIX)
        try:
            reservation.bind(f"\0esms-exporter-test-port-{port}")
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            reservation.close()
        else:
            _RESERVATIONS.append(reservation)
            return port
    raise AssertionError("no port is free")
