"""A stand-in for the provider's API, for the demo, tests and benchmarks.

It knows nothing of the exporter: it is somebody else's service.
"""

from exporter.simulator.accounts import Account, AccountState
from exporter.simulator.faults import Fault, FaultKind, Faults
from exporter.simulator.life import Call, Plan, SendStatus
from exporter.simulator.mix import Mix
from exporter.simulator.provider import UnknownIds
from exporter.simulator.server import Simulator

__all__ = [
    "Account",
    "AccountState",
    "Call",
    "Fault",
    "FaultKind",
    "Faults",
    "Mix",
    "Plan",
    "SendStatus",
    "Simulator",
    "UnknownIds",
]
