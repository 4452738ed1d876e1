from __future__ import annotations

from pathlib import Path

import pytest

from tests.config.loading import FindProblems

HEAD = "accounts: [{name: main, api_key: k, secret_key: s}, {name: b, api_key: k, secret_key: s}]\n"
AGAIN = "expected a unique token; an earlier item has the same"
EMPTY = "expected a key, but the value is empty"
NO_ITEM = "expected a mapping of keys to values"
NO_ACCOUNT = "expected the name of one of the accounts"
NO_URL = "expected a URL such as `postgresql://USER:PASSWORD@HOST/DATABASE`"


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        (
            ["{name: x, token: s3cr3t}", "{name: y, token: other}", "{name: z, token: s3cr3t}"],
            [f"5: watch.api.tokens[2].token: {AGAIN}"],
        ),
        (
            ["{name: x, token_file: f}", "{name: y, token: s3cr3t}", "{name: z, token_file: f}"],
            [
                f"4: watch.api.tokens[1].token: {AGAIN}",
                f"5: watch.api.tokens[2].token_file: {AGAIN}",
            ],
        ),
        (
            # Those that are wrong are told as wrong, not as the same.
            ["{name: x, token: ''}", "{name: y, token: ''}"],
            [f"{n + 3}: watch.api.tokens[{n}].token: {EMPTY}" for n in range(2)],
        ),
        (
            [
                *("x", "{name: y, token: t, accounts: [main, nobody]}"),
                *("{name: z, token: s3cr3t}", "{name: zz, token: s3cr3t}"),
            ],
            [
                f"3: watch.api.tokens[0]: {NO_ITEM}",
                f"4: watch.api.tokens[1].accounts[1]: {NO_ACCOUNT}",
                f"6: watch.api.tokens[3].token: {AGAIN}",
            ],
        ),
    ],
)
def test_tokens(
    problems: FindProblems, tmp_path: Path, items: list[str], expected: list[str]
) -> None:
    (tmp_path / "f").write_text("s3cr3t\n")
    listed = ",\n ".join(items)
    assert problems(f"{HEAD}watch: {{api: {{tokens: [\n {listed}]}}}}\n") == expected


def test_problems_of_queries_stand_where_they_are(problems: FindProblems) -> None:
    queries = [
        "x",
        "{name: a, url: 'sqlite:///s3cr3t.db', query: q, account: nobody}",
        "{name: b, url: 's3cr3t', query: q, account: main}",
    ]
    listed = ",\n ".join(queries)
    assert problems(f"{HEAD}watch: {{sql: [\n {listed}]}}\n") == [
        f"3: watch.sql[0]: {NO_ITEM}",
        f"4: watch.sql[1].account: {NO_ACCOUNT}",
        f"5: watch.sql[2].url: {NO_URL}",
    ]
