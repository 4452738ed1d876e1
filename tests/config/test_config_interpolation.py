from __future__ import annotations

import pytest

from exporter.config.document import InterpolationError, Unresolved, interpolate

ENVIRON = {"A": "one", "EMPTY": "", "NESTED": "${A} $$", "_b2": "two"}


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("${A}", "one"),
        ("x${A}y${_b2}z", "xoneytwoz"),
        ("${A:-default}", "one"),
        ("${NONE:-default}", "default"),
        ("${NONE:-}", ""),
        ("${EMPTY}", ""),
        ("${EMPTY:-default}", "default"),
        ("${NONE:-$$5 :-x}", "$$5 :-x"),
        ("$$", "$"),
        ("$${A}", "${A}"),
        ("$$${A}", "$one"),
        ("$A $ 5$", "$A $ 5$"),
        ("${NESTED}", "${A} $$"),
    ],
)
def test_references_are_replaced_once(text: str, result: str) -> None:
    assert interpolate(text, ENVIRON, plain=False) == result


@pytest.mark.parametrize(
    "text",
    [
        "${",
        "${A",
        "${}",
        "${1A}",
        "${A-B}",
        "${A:default}",
        "${A:-${A}}",
        "x ${ A }",
        "${A:?no}",
        "${" + "A" * 256 + "}",
        "${Å}",
    ],
)
def test_malformed_references_are_refused(text: str) -> None:
    with pytest.raises(InterpolationError, match=r"^malformed"):
        interpolate(text, ENVIRON, plain=True)


def test_a_variable_that_is_not_set_is_named() -> None:
    with pytest.raises(InterpolationError, match="variable `NONE` is not set"):
        interpolate("a${A}${NONE}", ENVIRON, plain=True)


@pytest.mark.parametrize(
    ("text", "plain", "kind"),
    [
        ("${A}", True, Unresolved),
        ("${NONE:-5}", True, Unresolved),
        ("${A}", False, str),
        ("${A}0", True, str),
        ("${A}${A}", True, str),
        ("$$", True, str),
    ],
)
def test_only_a_lone_reference_without_quotes_may_be_a_number(
    text: str, *, plain: bool, kind: type[str]
) -> None:
    assert type(interpolate(text, ENVIRON, plain=plain)) is kind
