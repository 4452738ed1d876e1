from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from exporter.config.document import (
    Problems,
    Unresolved,
    YamlMapping,
    YamlSequence,
    interpolate,
    load_mapping,
    locate,
    resolve,
)
from tests.config.loading import FindProblems

ACCOUNTS = "accounts: [{name: a, api_key: k, secret_key: s}]\n"


@pytest.fixture(params=[True, False], ids=["libyaml", "python"])
def loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test with the parser in C, and with the one for machines without it."""
    if not request.param:
        monkeypatch.delattr(yaml, "CSafeLoader", raising=False)


def parse(path: Path, text: str) -> object:
    problems = Problems("x")
    path.write_text(text)
    value = load_mapping(path, 1 << 20, {"NUMBER": "5"}, problems, "a")
    assert not problems.total
    return value


@pytest.mark.usefixtures("loader")
def test_every_key_and_item_has_its_line(tmp_path: Path) -> None:
    value = parse(tmp_path / "x", "a: 1\nb:\n  - x\n\n  - {c: 2,\n     d: 3}\n")
    assert isinstance(value, YamlMapping)
    assert value == {"a": 1, "b": ["x", {"c": 2, "d": 3}]}
    assert dict(zip(value, value.lines, strict=True)) == {"a": 1, "b": 2}
    assert locate(value, ["b", 1, "d", "x"]) == (["b", 1, "d", "x"], 6)
    items = value["b"]
    assert isinstance(items, YamlSequence)
    assert list(items.lines) == [3, 5]
    last = items[1]
    assert isinstance(last, YamlMapping)
    assert list(last.lines) == [5, 6]


@pytest.mark.usefixtures("loader")
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", {}),
        ("# nothing\n", {}),
        ("---\n...\n", {}),
        ("%YAML 1.1\n---\na: no\n", {"a": "no"}),
        ("a: 010", {"a": 10}),
        ("a: '010'", {"a": "010"}),
        ("a: !!str 010", {"a": "010"}),
        ("a: ! 010", {"a": "010"}),
        ("a: |\n  12\n", {"a": "12\n"}),
        ("no: x\n1: y\nnull: z", {"no": "x", "1": "y", "null": "z"}),
        ("a: ${NUMBER}", {"a": "5"}),
        ("a: &x [1]\nb: *x\nc: *x", {"a": [1], "b": [1], "c": [1]}),
        ("&k a: b\nc: *k", {"a": "b", "c": "a"}),
        ("a: [&x 1, *x, &x 2, *x]", {"a": [1, 1, 2, 2]}),
        ("'<<': 1", {"<<": 1}),
        ("a: '\u00e9\U0001f600'", {"a": "\u00e9\U0001f600"}),
    ],
)
def test_text_becomes_values(tmp_path: Path, text: str, value: object) -> None:
    assert parse(tmp_path / "x", text) == value


@pytest.mark.usefixtures("loader")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\na: 2\n", "2: a: duplicate key; the first is on line 1"),
        ("watch: {labels: [],\n labels: []}", "2: watch.labels: duplicate key; the first is on"),
        ("<<: {a: 1}\n", "1: ?: merge keys"),
        ("accounts:\n  - &a {x: 1}\n  - <<: *a\n", "3: accounts[1].?: merge keys"),
        ("a: !env X\n", "1: a: tags (`!name`) are not supported"),
        ("a: !!python/object:os.system {}\n", "1: a: tags"),
        ("a:\n  - !!set {x}\n", "2: a[0]: tags"),
        ("a: !!int '3'\n", "1: a: tags"),
        ("[1]: 2\n", "1: expected text as the key"),
        ("? {a: b}\n: 2\n", "1: expected text as the key"),
        ("a: &x b\n*x : 2\n", "2: expected text as the key"),
        ("a: *x\n", "1: a: the alias (`*name`) has no anchor"),
        ("a: &x\n  - *x\n", "2: a[0]: the alias (`*name`) is inside the value of its anchor"),
        ("&x a: &x {b: *x}\n", "1: a.b: the alias (`*name`) is inside"),
        ("a: 1\n---\nb: 1\n", "2: expected one document"),
        ("a: [" + "[" * 60 + "]" * 60 + "]", "1: a" + "[0]" * 49 + ": is nested deeper than 50"),
        ("[" * 100_000, "[0]" * 50 + ": is nested deeper than 50"),
        ("accounts: [\n", "2: accounts[0]: is not valid YAML"),
        ("a: 'x\n", "is not valid YAML: "),
        ("a: b: c\n", "1: is not valid YAML: mapping values are not allowed"),
        ("a:\n\t- x\n", "2: a: is not valid YAML: found character"),
        ("a: {b: ${X}}\n", "between `{}` or `[]`, `${NAME}` needs quotes"),
        ("a: x\0y\n", "is not YAML text"),
        ("a: x\x1by\n", "is not YAML text"),
        ("a: }\n", "1: a: is not valid YAML"),
    ],
)
def test_what_is_not_accepted_is_reported_with_its_place(
    problems: FindProblems, text: str, expected: str
) -> None:
    assert any(expected in problem for problem in problems(text)), problems(text)


@pytest.mark.usefixtures("loader")
@pytest.mark.parametrize(
    "text",
    [
        "api_key: *hunter2hunter2\n",
        "api_key: !hunter2!hunter2 x\n",
        "api_key: 'hunter2\n",
        'api_key: "\\hunter2"\n',
        "%hunter2 x\n%TAG hunter2\n---\n",
        "hunter2: [\n",
        "- @hunter2\n",
        "api_key: &hunter2 &hunter2 x\n",
        "{hunter2, hunter2}",
    ],
)
def test_words_of_a_broken_file_are_not_repeated(problems: FindProblems, text: str) -> None:
    # A key with a few digits may be shown; what looks more like a credential may not.
    found = problems(text.replace("hunter2", "hunter20267"))
    assert "hunter" not in "\n".join(found)


def test_aliases_that_explode_are_refused_at_once(problems: FindProblems) -> None:
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    for level in range(1, 30):
        text += f"a{level}: &a{level} [" + ", ".join([f"*a{level - 1}"] * 10) + "]\n"
    assert problems(text) == ["7: a6[7]: has more than 10000000 values, including those of aliases"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("", None), ("~", None), ("null", None), ("true", True), ("FALSE", False)),
        *(("12", 12), ("-3", -3), ("+3", 3), ("010", 10), ("0.5", 0.5), (".5", 0.5), ("1.", 1.0)),
        *(("1e3", 1000.0), ("-.inf", -math.inf), (".INF", math.inf), ("9" * 5000, math.inf)),
        ("1" * 19, 1111111111111111111.0),
    ],
)
def test_scalars_are_resolved_by_the_core_schema_of_yaml_1_2(text: str, value: object) -> None:
    resolved = resolve(text)
    assert resolved == value
    assert type(resolved) is type(value)


def test_not_a_number_is_a_number() -> None:
    assert math.isnan(resolve(".nan"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        *("yes", "no", "on", "off", "y", "N", "1:30", "190:20:30", "0x1F", "0o17", "1_000"),
        *("2026-01-02", "tRUE", "nULL", "1e", ".", "-", "=", "<<", "8eb2af6d-fb4c", "\u0661"),
    ],
)
def test_everything_else_is_text(text: str) -> None:
    assert resolve(text) == text


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
        *("${", "${A", "${}", "${1A}", "${A-B}", "${A:default}", "${A:-${A}}", "${A:?no}"),
        *("${\xc5}", "x ${ A }", "${" + "A" * 256 + "}"),
    ],
)
def test_malformed_references_are_refused(text: str) -> None:
    with pytest.raises(match=r"^malformed"):
        interpolate(text, ENVIRON, plain=True)


def test_a_variable_that_is_not_set_is_named() -> None:
    with pytest.raises(match="variable `NONE` is not set"):
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
