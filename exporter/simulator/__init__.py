"""A stand-in for the provider's API, for the demo, tests and benchmarks.

It does not import the rest of the exporter: it takes the place of another company's service.
"""

from exporter.simulator.faults import Fault, FaultKind
from exporter.simulator.provider import Account, AccountState, Operation, Plan, Reply
from exporter.simulator.server import Simulator

__all__ = [
    "Account",
    "AccountState",
    "Fault",
    "FaultKind",
    "Operation",
    "Plan",
    "Reply",
    "Simulator",
]
