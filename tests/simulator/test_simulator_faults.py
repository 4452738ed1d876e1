from __future__ import annotations

from exporter.simulator import Fault, FaultKind
from exporter.simulator.faults import Faults


def hits(
    faults: Faults, account: str = "main", operation: str = "GetSendStatus", call: str = ""
) -> list[str]:
    return [fault.kind for fault in faults.draw(account, operation, call) if fault is not None]


def test_a_fault_hits_its_account_operation_call_and_count() -> None:
    faults = Faults()
    assert hits(faults) == []
    faults.set("a", Fault(FaultKind.HANG, account="main", count=2))
    assert hits(faults, "other") == []
    assert [hits(faults) for _ in range(3)] == [["hang"], ["hang"], []]
    faults.set("b", Fault(FaultKind.EMPTY, operation="GetBalance_json"))
    faults.set("c", Fault(FaultKind.HTML, reference_id="ID"))
    assert hits(faults) == []
    assert hits(faults, operation="GetBalance_json") == ["empty"]
    assert hits(faults, call="ID") == ["html"]
    faults.clear("b")
    faults.clear("b")
    assert list(faults.active) == ["c"]
    faults.clear()
    assert hits(faults, call="ID") == []


def test_the_first_latency_and_the_first_other_fault_hit() -> None:
    faults = Faults()
    faults.set("bad", Fault(FaultKind.HTML))
    faults.set("worse", Fault(FaultKind.RESET, count=1))
    faults.set("late", Fault(FaultKind.LATENCY, seconds=0.1))
    faults.set("later", Fault(FaultKind.LATENCY, seconds=0.2, count=1))
    assert hits(faults) == ["latency", "html"]
    assert list(faults.active) == ["bad", "worse", "late", "later"]


def test_probability_comes_from_the_seed() -> None:
    def drawn(seed: int) -> list[bool]:
        faults = Faults(seed)
        faults.set("some", Fault(FaultKind.EMPTY, probability=0.3))
        return [bool(hits(faults)) for _ in range(500)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert 100 < sum(drawn(1)) < 200
