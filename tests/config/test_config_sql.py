from __future__ import annotations

from urllib.parse import quote, unquote

import pytest
from sqlalchemy import make_url

from exporter.errors import ConfigError
from tests.config.loading import FindProblems, Load

HEAD = "accounts: [{name: main, api_key: k, secret_key: s}]\nwatch:\n  sql:\n    - name: orders\n"
URL = "      url: sqlite:////nowhere/x.db\n"
PARAMETER = "6: watch.sql[0].query: expected no parameter except `:since`; write `\\:` for a colon"


def block(query: str) -> str:
    select = "SELECT id AS reference_id FROM calls"
    return f"{HEAD}{URL}      query: |\n        {select}\n        {query}\n"


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
            "6: watch.sql[0].query: expected `CAST(:since AS TYPE)` instead of `:since::TYPE`",
        ),
        (HEAD + URL + "      query: ''\n", "6: watch.sql[0].query: expected a query of 1 to 10000"),
        (HEAD + URL, "4: watch.sql[0].query: missing required key"),
        (HEAD + "      query: SELECT 1\n", "4: watch.sql[0].url: "),
        (
            block("") + "      account: nobody\n",
            "9: watch.sql[0].account: expected the name of one of the accounts",
        ),
        *(
            (block("").replace("sqlite:////nowhere/x.db", url), f"5: watch.sql[0].url: {expected}")
            for url, expected in [
                ("nonsense", "expected a URL such as"),
                ("nonsense://u:p@h", "expected a URL such as"),
                ("postgresql://u:p@h:port/db", "expected a URL such as"),
                ("oracle://u:p@127.0.0.1/db", "the driver of this database is not installed: `"),
                ("'sqlite://'", "expected the path of a file"),
                ("'sqlite:///:memory:'", "expected the path of a file"),
                ("'sqlite+pysqlite:////data/'", "expected the path of a file"),
            ]
        ),
    ],
)
def test_one_mistake_is_one_problem(problems: FindProblems, text: str, expected: str) -> None:
    (found,) = problems(text)
    assert found.startswith(expected)


LEDGER = "accounts: [{name: main, api_key: k, secret_key: s}]\nledger:\n  url: ${URL}\n"
SQL = block("").replace("sqlite:////nowhere/x.db", "${URL}")


@pytest.mark.parametrize("text", [LEDGER, SQL])
@pytest.mark.parametrize("reserved", [*"@/?#[]%", "@@", "@/", "/@", "?x=@"])
def test_passwords_are_percent_encoded(load: Load, text: str, reserved: str) -> None:
    address = "postgresql://esms:{}@db.invalid:5432/esms"
    password = f"f1rst{reserved}s3cond"
    with pytest.raises(ConfigError) as caught:
        load(text, {"URL": address.format(password)})
    (problem,) = caught.value.problems
    assert "percent-encode it" in problem.message
    assert not any(part in str(caught.value) for part in ("f1rst", "s3cond", "invalid"))
    for good in (quote(password, safe=""), "f1rst!$&'()*+,;=:-._~s3cond"):
        config = load(text, {"URL": address.format(good)})
        url = config.watch.sql[0].url if config.watch.sql else config.ledger.url
        assert make_url(url.reveal()).password == unquote(good)


@pytest.mark.parametrize(
    "address", ["es/ms:s3cond@db.invalid/esms", "us@er:s3cond@db.invalid/esms", "s3c/ond@h/d"]
)
def test_users_are_percent_encoded(load: Load, address: str) -> None:
    with pytest.raises(ConfigError, match="percent-encode it") as caught:
        load(LEDGER, {"URL": f"postgresql://{address}"})
    assert "s3c" not in str(caught.value)
