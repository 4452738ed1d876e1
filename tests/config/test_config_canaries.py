from __future__ import annotations

from pathlib import Path

import pytest

from exporter.canaries.schedule import Cron, Every, schedule_of
from tests.config.loading import FindProblems, Load

HEAD = "accounts: [{name: main, api_key: k, secret_key: s}]\ncanaries:\n"
GOOD = {
    "name": "hourly",
    "every": "1h",
    "phone": "'0912345678'",
    "recording": "'7'",
    "max_per_day": "24",
}


def text(**changed: str | None) -> str:
    keys = {**GOOD, **changed}
    lines = [f"    {key}: {value}\n" for key, value in keys.items() if value is not None]
    return HEAD + "  -\n" + "".join(lines)


def test_a_canary(load: Load) -> None:
    (canary,) = load(text()).canaries
    assert schedule_of(canary) == Every(3600)
    assert canary.phone.reveal() == "0912345678"
    assert (canary.expect, canary.expect_key, canary.within) == ("answered", None, 300)
    assert canary.account == "main"
    assert "0912345678" not in f"{canary!r} {canary} {canary.model_dump_json()}"


def test_a_schedule_of_cron(load: Load) -> None:
    more = {"every": None, "cron": "30 8-18/2 * * 1-5", "timezone": "Asia/Ho_Chi_Minh"}
    (canary,) = load(text(**more)).canaries
    assert schedule_of(canary) == Cron("30 8-18/2 * * 1-5", canary.zone)
    assert canary.zone.key == "Asia/Ho_Chi_Minh"


@pytest.mark.parametrize(
    "expression",
    ["30 8-18/2 * * 1-5", "0 8 * * *", "*/10 * * * *", "0 0 29 2 *", "0 9 * * mon#1"],
)
def test_expressions_of_cron(load: Load, expression: str) -> None:
    assert load(text(every=None, cron=f"'{expression}'")).canaries[0].cron == expression


@pytest.mark.parametrize(
    "expression",
    [
        *("*/5 9 * * *", "0,5 9 1 1 *", "0,55 0,23 * * *", "* * * * *", "0 0 30 2 *", "0 0 * *"),
        *("0 0 0 * * *", "@hourly", "61 * * * *", "", "a b c d e", "0 " * 200),
    ],
)
def test_expressions_of_cron_that_are_refused(problems: FindProblems, expression: str) -> None:
    (problem,) = problems(text(every=None, cron=f"'{expression}'"))
    assert problem.startswith("8: canaries[0].cron: expected five fields")


@pytest.mark.parametrize("phone", ["0912345678", "84912345678", "+84912345678", "02812345678"])
def test_phones(load: Load, tmp_path: Path, phone: str) -> None:
    assert load(text(phone=f"'{phone}'")).canaries[0].phone.reveal() == phone
    (tmp_path / "phone").write_text(f"{phone}\n")
    assert load(text(phone=None, phone_file="phone")).canaries[0].phone.reveal() == phone


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"every": "9m59s"}, "5: canaries[0].every: expected a duration such as"),
        ({"every": None}, "4: canaries[0]: expected either `every` or `cron`, but both"),
        ({"cron": "0 8 * * *"}, "4: canaries[0]: expected either `every` or `cron`, not both"),
        ({"timezone": "Saigon"}, "9: canaries[0].timezone: expected the name of a time zone"),
        ({"timezone": "../UTC"}, "9: canaries[0].timezone: expected the name of a time zone"),
        ({"phone": "'113'"}, "6: canaries[0].phone: expected a phone number"),
        ({"phone": "'+1 555 0100'"}, "6: canaries[0].phone: expected a phone number"),
        ({"phone": "912345678"}, "6: canaries[0].phone: expected a phone number"),
        ({"phone": None}, "4: canaries[0].phone: missing; expected this key or `phone_file`"),
        ({"recording": None}, "4: canaries[0]: expected either `recording` or `template`"),
        ({"template": "'1'"}, "4: canaries[0]: expected either `recording` or `template`, not"),
        ({"recording": "7"}, "7: canaries[0].recording: expected an id of 1 to 64"),
        ({"variables": "[a]"}, "4: canaries[0]: `variables` requires `template`"),
        (
            {"recording": None, "template": "'1'", "variables": "['a||b']"},
            "9: canaries[0].variables[0]: expected a text of 1 to 200 characters",
        ),
        ({"expect": "busy"}, "9: canaries[0].expect: expected `answered` or `finished`"),
        ({"expect_key": "'12'"}, "9: canaries[0].expect_key: expected a key"),
        (
            {"expect": "finished", "expect_key": "'1'"},
            "4: canaries[0]: `expect_key` requires `expect: answered`",
        ),
        ({"max_per_day": None}, "4: canaries[0].max_per_day: missing required key"),
        ({"account": "other"}, "9: canaries[0].account: expected the name of one of"),
        ({"nmae": "x"}, "9: canaries[0].nmae: unknown key"),
    ],
)
def test_problems(problems: FindProblems, changed: dict[str, str | None], expected: str) -> None:
    (problem,) = problems(text(**changed))
    assert problem.startswith(expected)
    assert GOOD["phone"][1:-1] not in problem


def test_names_and_accounts(problems: FindProblems) -> None:
    two = text().replace(
        "accounts: [", "accounts: [{name: b, api_key: k, secret_key: s}, "
    ) + text().removeprefix(HEAD)
    missing = "missing required key; it is optional only if there is one account"
    assert problems(two) == [
        f"4: canaries[0].account: {missing}",
        "10: canaries[1].name: expected a unique name; an earlier item has the same",
        f"10: canaries[1].account: {missing}",
    ]
