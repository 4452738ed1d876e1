"""A simulated eSMS API for the demo, tests and benchmarks.

It does not import the rest of the exporter, because it replaces another company's service.
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
