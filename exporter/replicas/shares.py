"""How many calls each exporter should hold. Pure."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Final

from exporter.ledger.sharing import Member

_UNEVEN: Final = 0.1
"""By how much more than its share an exporter may hold before it gives calls up."""

_FEW: Final = 10
"""Calls that are not worth being handed on."""


def peers_of(accounts: Iterable[str]) -> str:
    """Return what is the same for those alone that poll the same accounts."""
    return hashlib.sha256("\n".join(sorted(accounts)).encode()).hexdigest()


def share(members: Iterable[Member], replica: int, peers: str, held: int) -> float:
    """Return how many calls each would hold if all held as many.

    Args:
        members: all exporters, as they last said.
        replica: the number of this one.
        peers: see `peers_of`; others cannot take its calls over.
        held: how many calls it holds now.
    """
    others = [
        member.held
        for member in members
        if member.alive and member.peers == peers and member.id != replica
    ]
    return (sum(others) + held) / (len(others) + 1)


def excess(held: int, fair: float) -> int:
    """Return how many calls to give up, of `held`, where a `fair` share is that."""
    over = held - math.ceil(fair)
    return over if over > max(_FEW, _UNEVEN * fair) else 0


def leads(members: Sequence[Member], replica: int, peers: str) -> bool:
    """Tell whether a replica is the oldest of those alive that poll the same accounts.

    Two may be that for as long as one is cut off from the ledger, or has just joined.
    """
    alive = [member.id for member in members if member.alive and member.peers == peers]
    return replica == min(alive, default=replica)
