from __future__ import annotations

from collections.abc import Callable

import pytest

from exporter.config import Config

Load = Callable[..., Config]
Tell = Callable[..., list[str]]

HEAD = "accounts: [{name: main, api_key: k, secret_key: s}]\nwatch:\n  sql:\n    - name: orders\n"
URL = "      url: sqlite:////nowhere/x.db\n"
PARAMETER = "6: watch.sql[0].query: expected no parameter but `:since`; write `\\:` for a colon"


def block(query: str) -> str:
    return (
        HEAD
        + URL
        + f"      query: |\n        SELECT id AS reference_id FROM calls\n        {query}\n"
    )


@pytest.mark.parametrize(
    "query",
    [
        "LIMIT 5",
        "WHERE at >= :since",
        "WHERE at >= CAST(:since AS timestamptz) AND id::text <> ''",
        "WHERE at <> '10:30' AND name <> ' \\:x' AND slice[1:2] <> '::'",
    ],
)
def test_queries(load: Load, query: str) -> None:
    (found,) = load(block(query)).watch.sql
    assert found.query == f"SELECT id AS reference_id FROM calls\n{query}\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (block("WHERE at >= :sicne"), PARAMETER),
        (block("WHERE at >= :since AND at < :until"), PARAMETER),
        (block("WHERE name <> ' :x'"), PARAMETER),
        (block("-- from :noon on"), PARAMETER),
        (
            block("WHERE at >= :since::timestamptz"),
            "6: watch.sql[0].query: expected `CAST(:since AS TYPE)` in place of `:since::TYPE`",
        ),
        (HEAD + URL + "      query: ''\n", "6: watch.sql[0].query: expected a query of 1 to 10000"),
        (HEAD + URL, "4: watch.sql[0].query: missing required key"),
        (HEAD + "      query: SELECT 1\n", "4: watch.sql[0].url: "),
        (
            block("").replace("sqlite:////nowhere/x.db", "nonsense"),
            "5: watch.sql[0].url: expected a URL such as",
        ),
        (
            block("") + "      account: nobody\n",
            "9: watch.sql[0].account: expected the name of one of the accounts",
        ),
    ],
)
def test_one_mistake_is_one_problem(problems: Tell, text: str, expected: str) -> None:
    found = problems(text)
    assert len(found) == 1, found
    assert found[0].startswith(expected)
