"""A machine whose clocks go as they are told."""

from __future__ import annotations

from exporter.ledger.clock import Moment


class Machine:
    """Stands where `machine_clocks` does.

    Args:
        wall: what its clock says (Unix time).
    """

    def __init__(self, wall: float) -> None:
        self.wall, self.steady, self.boot = wall, 100.0, "first"

    def __call__(self) -> Moment:
        return Moment(self.wall, self.steady, self.boot)

    def pass_time(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds

    def restart(self, after: float) -> None:
        self.wall += after
        self.steady, self.boot = 5.0, f"{self.boot} and next"
