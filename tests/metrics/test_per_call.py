from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

from exporter.calls import CallState, Result, Status, WatchedCall, reference_id, reference_key
from exporter.ledger.records import Ended
from exporter.metrics import per_call
from exporter.metrics.per_call import RECENT, CallStates, Candidates

NOW = 1_760_000_000.0
QUEUED = CallState.QUEUED

Shown = dict[tuple[str, str], str]
"""The states of calls, by account and ReferenceId."""


def watched(*names: str, at: float = 0.0) -> dict[int, WatchedCall]:
    """Return calls that were watched a second after each other."""
    return {
        row: WatchedCall(row, reference_id(name), at + row, QUEUED)
        for row, name in enumerate(names)
    }


def ended(
    name: str, at: float = NOW, result: Result = Result.SUCCESS, account: str = "main"
) -> Ended:
    return Ended(account, name, result, Status.NONE, at - 60, at)


def states(limit: int, *finished: Ended) -> CallStates:
    made = CallStates()
    made.configure(limit)
    for call in finished:
        made.add(call)
    return made


def read(candidates: Candidates | None) -> tuple[Shown, float]:
    """Return what both parsers find, and how many calls are left out."""
    assert candidates
    text = b"".join(candidates.render(openmetrics=False)).decode()
    both = b"".join(candidates.render(openmetrics=True)).decode() + "# EOF\n"
    families = openmetrics_families(both)  # type: ignore[no-untyped-call]
    found = _read(text_string_to_metric_families(text))
    assert found == _read(families)
    return found


def _read(families: Iterable[object]) -> tuple[Shown, float]:
    shown: Shown = {}
    omitted = -1.0
    for family in families:
        for sample in family.samples:  # type: ignore[attr-defined]
            if sample.name == "esms_call_state_omitted_calls":
                omitted = sample.value
                continue
            key = sample.labels["account"], sample.labels["reference_id"]
            assert (sample.name, sample.value, key in shown) == ("esms_call_state", 1, False)
            shown[key] = sample.labels["state"]
    return shown, omitted


def test_calls_are_shown_with_their_states() -> None:
    calls = watched("a", "b")
    calls[1].state = CallState.UNKNOWN
    finished = [ended(result, result=result) for result in Result]
    found = states(9, *finished).candidates({"main": calls, "other": watched("a")}, NOW)
    assert read(found) == (
        {
            ("main", "a"): "queued",
            ("main", "b"): "unknown",
            ("other", "a"): "queued",
            ("main", "success"): "finished_success",
            ("main", "failure"): "finished_failure",
            ("main", "unknown"): "finished_unknown",
        },
        0,
    )


@given(
    st.lists(
        st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1),
        unique_by=reference_key,
    )
)
def test_any_reference_id_is_read_as_it_was_written(names: list[str]) -> None:
    shown, _ = read(states(100).candidates({"main": watched(*names)}, NOW))
    assert [name for _, name in shown] == names[::-1]
    shown, _ = read(states(100, *map(ended, names)).candidates({"main": {}}, NOW))
    assert [name for _, name in shown] == names


def test_of_more_calls_the_newest_of_all_accounts_are_shown() -> None:
    old, new = watched("a", "b", "c", at=NOW - 90), watched("a", "b", at=NOW - 30)
    wanted = states(4, ended("x"), ended("y")).candidates({"main": old, "other": new}, NOW)
    shown, omitted = read(wanted)
    # Those that have finished were watched a minute ago.
    assert set(shown) == {("other", "a"), ("other", "b"), ("main", "x"), ("main", "y")}
    assert omitted == 3


def test_of_calls_that_came_together_there_are_as_many_as_there_is_room_for() -> None:
    together = {row: WatchedCall(row, reference_id(f"c{row}"), NOW) for row in range(10)}
    later = watched("later", at=NOW + 1)
    shown, omitted = read(states(4).candidates({"a": together, "b": later}, NOW))
    assert (len(shown), omitted, ("b", "later") in shown) == (4, 7, True)


def test_a_call_that_has_finished_is_shown_for_a_while() -> None:
    finished = [ended("old", NOW - RECENT - 1), ended("new", NOW - RECENT + 1)]
    made = states(9, *finished)
    assert read(made.candidates({"main": {}}, NOW))[0] == {("main", "new"): "finished_success"}
    assert read(made.candidates({"main": {}}, NOW + 2))[0] == {}
    # That of an account that is gone is not.
    made = states(9, ended("a", account="gone"))
    assert read(made.candidates({"main": {}}, NOW))[0] == {}


def test_a_call_that_finishes_again_is_there_once() -> None:
    made = states(2, ended("a"), ended("b"), ended("a", NOW + 1, Result.FAILURE), ended("c"))
    assert read(made.candidates({"main": {}}, NOW))[0] == {
        ("main", "a"): "finished_failure",
        ("main", "c"): "finished_success",
    }


def test_nothing_is_kept_where_nothing_is_wanted() -> None:
    made = states(0, ended("a"))
    assert made.candidates({"main": watched("b")}, NOW) is None
    made.configure(9)
    assert read(made.candidates({"main": {}}, NOW))[0] == {}
    made.add(ended("a"))
    made.add(ended("b"))
    made.configure(1)
    assert read(made.candidates({"main": {}}, NOW))[0] == {("main", "b"): "finished_success"}
    made.configure(0)
    made.configure(9)
    assert read(made.candidates({"main": {}}, NOW))[0] == {}


def test_many_calls_come_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(per_call, "_CHUNK", 3)
    found = states(100).candidates({"main": watched(*(f"c{n}" for n in range(10)))}, NOW)
    assert found
    assert max(piece.count(b"reference_id=") for piece in found.render(openmetrics=False)) == 3
    assert len(read(found)[0]) == 10
