"""Rows as CSV, and as a table in a pipe and on a terminal."""

from __future__ import annotations

import csv
import io
import os
import pty
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.cli.output import csv_text, line, print_table


@dataclass
class Row:
    text: str
    number: float | None = None


def fields(text: str) -> list[str]:
    (row,) = csv.reader(io.StringIO(text, newline=""), strict=True)
    return row


@pytest.mark.parametrize(
    "text",
    [
        *("=1+1", '=HYPERLINK("http://x";"y")', "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1"),
        *("\uff1d1", "\uff0b1", "\uff0d1", "\uff20x", "'=1", "''-"),
    ],
)
def test_a_text_that_begins_like_a_formula_is_none(text: str) -> None:
    assert fields(line("csv", Row(text)))[0] == f"'{text}"


@pytest.mark.parametrize("text", ["a=1", "505139D7-54F8", "'a", "1-2", " =1", '{"a": "=1"}', "'"])
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert fields(line("csv", Row(text)))[0] == text


def test_numbers_stay_numbers() -> None:
    assert line("csv", Row("a", -1.5)) == "a,-1.5\n"


@given(st.text(st.sampled_from("'=+-@\t\r\n,\"a1\uff1d"), max_size=6))
def test_the_text_comes_back(text: str) -> None:
    (field, _) = fields(line("csv", Row(text)))
    assert csv_text(field) == text
    assert field[:1] not in set("=+-@\t\r\n\uff1d")


def test_a_table_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(
        ("id", "state", "key", "problem"), [("é\u4f8b", "", "", "[b]x"), ("b", "open", "", "")]
    )
    assert capsys.readouterr().out == "id   state  problem\né\u4f8b         [b]x\nb    open\n"
    many = [(str(number), "given_up", "a longer text") for number in range(100_000)]
    print_table(("id", "state", "problem"), many)
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(many)


def on_terminal(rows: Sequence[Sequence[str]]) -> str:
    """Return what a terminal gets of a table."""
    terminal, theirs = pty.openpty()

    def read() -> bytes:
        seen = b""
        with suppress(OSError):  # the other side is closed
            while True:
                seen += os.read(terminal, 65536)
        return seen

    with ThreadPoolExecutor() as reader:
        seen = reader.submit(read)
        with os.fdopen(theirs, "w", encoding="utf-8") as output, redirect_stdout(output):
            print_table(("id", "state", "problem"), rows)
        text = seen.result().decode()
    os.close(terminal)
    return text


def test_a_long_table_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    rows = [(str(number), "given_up", "refused") for number in range(100_000)]
    red = "\x1b[31mgiven_up\x1b[0m"
    assert on_terminal(rows).splitlines() == [
        "id     state     problem",
        *(f"{number:<7}{red}  refused" for number in range(100_000)),
    ]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in on_terminal(rows[:1])
