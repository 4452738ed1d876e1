"""Which sets of labels have totals of their own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.ledger.label_limits import OTHER, CountedSets, LabelLimits, canonical
from exporter.ledger.types import Labels


def parsed(text: str) -> Labels:
    """Return labels that are written as `a1 b2`: a value for each name."""
    return {
        pair[0]: OTHER if pair[1:] == "*" else pair[1:] for pair in text.split() if len(pair) > 1
    }


@pytest.mark.parametrize(
    ("names", "max_values", "max_sets", "used", "folded"),
    [
        # Within the limits.
        ("a", 2, 9, ["a1", "a2", "", "a1"], {}),
        # The value that was used least recently makes room; that a call has none takes none.
        ("a", 2, 9, ["a1", "a2", "", "a3"], {"a1": "a*"}),
        ("a", 2, 9, ["a1", "a2", "a1", "a3"], {"a2": "a*"}),
        ("a", 2, 9, ["a1", "a2", "a3", "a1"], {"a2": "a*"}),
        ("a", 1, 9, ["a1", "a*", "a2", "a*"], {"a1": "a*"}),
        # In each set that has it, and with the other values kept.
        ("ab", 2, 9, ["a1 b1", "a1 b2", "a2 b1", "a3 b1"], {"a1 b1": "a* b1", "a1 b2": "a* b2"}),
        ("ab", 1, 9, ["a1 b1", "a2 b2"], {"a1 b1": "a* b*"}),
        ("ab", 1, 9, ["a1 b1", "a2"], {"a1 b1": "a* b1"}),
        # The set that was used least recently makes room, with all of its values.
        ("ab", 9, 2, ["a1 b1", "a1 b2", "", "a2 b1"], {"a1 b1": "a* b*"}),
        ("ab", 9, 2, ["a1 b1", "a1 b2", "a1 b1", "a2"], {"a1 b2": "a* b*"}),
        ("ab", 9, 1, ["a1", "b1", "a2 b2"], {"a1": "a* b*", "b1": "a* b*"}),
        # What was folded into takes room, too, and may have to make some.
        ("ab", 1, 1, ["a1 b1", "a2 b1", "a3 b1"], {"a1 b1": "a* b*", "a2 b1": "a* b*"}),
        # Labels that are not shown any more: first, what is shown alike.
        ("a", 9, 2, ["a1 x1", "a1 x2", "a2"], {"a1 x1": "a1", "a1 x2": "a1"}),
        ("a", 9, 1, ["x1", "x2", "a1"], {"x1": "", "x2": ""}),
        ("a", 1, 9, ["a1 x1", "a1", "a2"], {"a1 x1": "a* x1", "a1": "a*"}),
        ("", 1, 1, ["x1", "x2", ""], {"x1": "", "x2": ""}),
    ],
)
def test_what_makes_room(
    names: str, max_values: int, max_sets: int, used: list[str], folded: dict[str, str]
) -> None:
    sets = CountedSets(LabelLimits(tuple(names), max_values, max_sets))
    for one in used:
        sets.use(parsed(one))
    wanted = {canonical(parsed(one)) for one in used}
    assert {name: sets.counted_as(name) for name in sets.folded.keys() & wanted} == {
        canonical(parsed(one)): canonical(parsed(into)) for one, into in folded.items()
    }


_LABELS = st.dictionaries(st.sampled_from("abx"), st.sampled_from(["", "1", "2", "3", OTHER]))


@given(
    st.sampled_from([(), ("a",), ("a", "b")]),
    st.integers(1, 3),
    st.integers(1, 4),
    st.lists(_LABELS, max_size=30),
)
def test_there_are_limits_whatever_is_used(
    names: tuple[str, ...], max_values: int, max_sets: int, used: list[Labels]
) -> None:
    sets = CountedSets(LabelLimits(names, max_values, max_sets))

    def shown(name: str) -> tuple[str, ...]:
        return tuple(sets.known[name].get(label, "") for label in names)

    for labels in used:
        before = sets.known.keys() - sets.folded.keys()
        sets.use(labels)
        assert shown(sets.counted_as(canonical(labels))) == shown(canonical(labels))
        alive = {name for name in sets.known if name not in sets.folded}
        always = {canonical({}), canonical(dict.fromkeys(names, OTHER))}
        assert len(alive - always) <= max_sets
        for number in range(len(names)):
            assert len({shown(name)[number] for name in alive} - {"", OTHER}) <= max_values
        # A series grows, or all that is shown by it goes to another one.
        series = {shown(name) for name in alive}
        for name in before:
            if (now := shown(sets.counted_as(name))) != shown(name):
                assert OTHER in now
                assert shown(name) not in series
