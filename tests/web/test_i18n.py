from __future__ import annotations

import re
from importlib.resources import files
from string import Formatter

import pytest

from exporter.calls import CallState, Result, Status
from exporter.esms.codes import Outcome
from exporter.web.status_page import LANGUAGES, Language, choose_language
from tests.web.sample import NOW, VIETNAM

WORDS = {code: Language(code) for code in LANGUAGES}


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name is not None}


def test_every_catalogue_is_complete() -> None:
    english = WORDS["en"]
    folder = files("exporter.web") / "messages"
    assert {path.name for path in folder.iterdir()} == {f"{code}.yaml" for code in LANGUAGES}
    for code, words in WORDS.items():
        messages = words.messages
        assert messages.keys() == english.messages.keys()
        for key, text in messages.items():
            assert isinstance(text, str), (code, key)
            assert text.strip() == text != "", (code, key)
            # A number may be told in another order, or a month without its name, but not left out.
            assert placeholders(text) == placeholders(english.messages[key]), (code, key)
        assert len(messages["months"].split()) == 12


def test_nothing_is_said_that_is_not_in_the_catalogue() -> None:
    english = WORDS["en"]
    templates = files("exporter.web") / "templates"
    text = "".join(path.read_text() for path in templates.iterdir() if path.name.endswith(".html"))
    said = set(re.findall(r"""\bt\("([a-z_]+)"[,)]""", text))
    said |= set(re.findall(r"""\{\{ counts\(t\("\w+"\), "([a-z_]+)",""", text))
    kinds: list[tuple[str, type[CallState | Result | Status | Outcome]]] = [
        ("state", CallState), ("result", Result), ("status", Status), ("pause", Outcome),
    ]  # fmt: skip
    said |= {f"{kind}_{value.value}" for kind, values in kinds for value in values}
    assert said <= english.messages.keys()
    made = (
        "attention_", "chart_", "duration_", "source_", "language", "months", "thousands",
        "decimal", "percent", "date",
    )  # fmt: skip
    assert [key for key in english.messages.keys() - said if not key.startswith(made)] == []


@pytest.mark.parametrize(
    ("accept", "code"),
    [
        ("", "en"),
        ("vi", "vi"),
        ("vi-VN,vi;q=0.9,en;q=0.8", "vi"),
        ("en-US,en;q=0.9,vi;q=0.8", "en"),
        ("fr, vi;q=0.1", "vi"),
        ("fr, de", "en"),
        ("en;q=0.3, VI ; q=0.7", "vi"),
        ("vi;q=0", "en"),
        ("vi;q=nan", "en"),
        ("vi;q=7", "en"),
        ("vi;q=x, en;q=0.1", "en"),
        ("video", "en"),
    ],
)
def test_the_language_that_a_reader_likes_best(accept: str, code: str) -> None:
    assert choose_language(accept) == code


@pytest.mark.parametrize(
    ("kind", "value", "en", "vi"),
    [
        ("number", 0, "0", "0"),
        ("number", 1234567, "1,234,567", "1.234.567"),
        ("percent", 0.0, "0%", "0%"),
        ("percent", 0.9751, "97.5%", "97,5%"),
        ("percent", 0.5, "50%", "50%"),
        ("percent", 0.99999, "99.9%", "99,9%"),  # something has failed
        ("percent", 0.00001, "0.1%", "0,1%"),  # something has not
        ("percent", 1.0, "100%", "100%"),
        ("duration", -1, "0 s", "0 giây"),
        ("duration", 59.4, "59 s", "59 giây"),
        ("duration", 59.6, "1 min 0 s", "1 phút 0 giây"),
        ("duration", 3725, "1 h 2 min", "1 giờ 2 phút"),
        ("duration", 90_000, "1 d 1 h", "1 ngày 1 giờ"),
        ("duration", 2000 * 86_400, "2,000 d 0 h", "2.000 ngày 0 giờ"),
        ("time", NOW - 15, "14:32:05 +07", "14:32:05 +07"),
        ("time", NOW - 86_400, "13 Mar, 14:32:20 +07", "13/3, 14:32:20 +07"),
        # Yesterday here is today in UTC.
        ("time", NOW - 15 * 3600, "13 Mar, 23:32:20 +07", "13/3, 23:32:20 +07"),
    ],
)
def test_how_values_are_written(kind: str, value: float, en: str, vi: str) -> None:
    more = (NOW, VIETNAM) if kind == "time" else ()
    assert [getattr(words, kind)(value, *more) for words in WORDS.values()] == [en, vi]
