"""The items of a JSON list, read as a stream."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterator, Sequence
from typing import Final, NoReturn, TextIO

from exporter.config.document import MAX_ITEM_NODES, DocumentError, Value, YamlMapping
from exporter.config.problems import Problems

MAX_ITEM: Final = 1 << 20
"""Characters of an item."""

_CHUNK: Final = 1 << 16
# Characters of the longest thing that may be cut off without being a string: an escape in one.
_ESCAPE: Final = 12
_BLANK: Final = re.compile(r"[ \t\r\n]*")


def json_items(file: TextIO, problems: Problems) -> Iterator[tuple[int, Value]]:
    """Yield the items of the list that a file of JSON is, each with its line.

    No more than an item is held at a time. A file that is empty has no items.

    Args:
        file: JSON.
        problems: takes keys that are there twice, whose first value counts.

    Raises:
        DocumentError: the rest is not JSON, not a list, or an item is too long.
    """
    reader = _Reader(file)
    if not (first := reader.next_character()):
        return
    if first != "[":
        raise DocumentError(reader.line, [], "expected a list of calls, as in `watch.calls`")
    reader.skip()
    index = 0
    if reader.next_character() == "]":
        reader.skip()
    else:
        while True:
            reader.next_character()
            line = reader.line
            value, twice = reader.value(index)
            for name in twice:
                problems.add(line, (index, name), "duplicate key")
            yield line, value
            index += 1
            if (end := reader.next_character()) not in ("]", ","):
                reader.fail(index, "expected `,` or `]`")
            reader.skip()
            if end == "]":
                break
    if reader.next_character():
        reader.fail(index, "expected nothing after the list")


class _Reader:
    """Reads JSON values off a file.

    Attributes:
        line: where it stands.
    """

    def __init__(self, file: TextIO) -> None:
        self.line = 1
        self._file = file
        self._text = ""
        self._at = 0
        self._twice: list[str] = []
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._mapping,
            # Of any length: Python refuses to read whole numbers of thousands of digits.
            parse_int=float,
            parse_constant=_refuse,
        )

    def next_character(self) -> str:
        """Return what comes after blanks, without taking it; empty at the end of the file."""
        while True:
            end = _BLANK.match(self._text, self._at).end()  # type: ignore[union-attr]
            self._take(end)
            if end < len(self._text) or not self._fill():
                return self._text[end : end + 1]

    def skip(self) -> None:
        """Take one character."""
        self._at += 1

    def value(self, index: int) -> tuple[Value, list[str]]:
        """Take a value; returns it, and the keys that it has twice."""
        while True:
            self._twice = []
            value: Value = None
            error: json.JSONDecodeError | None = None
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except RecursionError:
                self.fail(index, "is nested too deeply")
            except json.JSONDecodeError as caught:
                error, end = caught, len(self._text)
                if caught.pos < end - _ESCAPE and not caught.msg.startswith("Unterminated"):
                    self._refuse(index, caught)
            except ValueError as caught:
                self.fail(index, str(caught))
            if end < len(self._text):
                break
            # It may go on.
            if len(self._text) - self._at > MAX_ITEM:
                self.fail(index, f"is longer than {MAX_ITEM} characters")
            if not self._fill():
                if error is None:
                    break
                self._refuse(index, error)
        text = self._text[self._at : end]
        _set_lines(value, self.line, text if "\n" in text else "")
        self._take(end)
        return value, self._twice

    def fail(self, index: int, message: str) -> NoReturn:
        """Raise what is wrong with the item where the reader stands."""
        raise DocumentError(self.line, [index], message)

    def _refuse(self, index: int, error: json.JSONDecodeError) -> NoReturn:
        self._take(error.pos)
        # Its words hold nothing of the file.
        self.fail(index, f"is not valid JSON: {error.msg.strip()}")

    def _mapping(self, pairs: Sequence[tuple[str, Value]]) -> YamlMapping:
        if len(pairs) > MAX_ITEM_NODES:
            raise ValueError(f"holds more than {MAX_ITEM_NODES} keys")
        mapping = YamlMapping()
        for key, value in pairs:
            if key in mapping:
                self._twice.append(key)
            mapping.setdefault(key, value)
        return mapping

    def _fill(self) -> bool:
        """Read on; returns whether there was anything."""
        if more := self._file.read(max(_CHUNK, len(self._text) - self._at)):
            self._text = self._text[self._at :] + more
            self._at = 0
        return bool(more)

    def _take(self, end: int) -> None:
        self.line += self._text.count("\n", self._at, end)
        self._at = end


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"is not valid JSON: {name} is no value of it")


def _set_lines(value: Value, line: int, text: str, at: int = 0) -> int:
    """Give mappings the lines of their keys.

    Args:
        value: what was read.
        line: where `text` begins.
        text: what it was read of.
        at: where in it the value is.

    Returns:
        Where the last key that was found ends.
    """
    if isinstance(value, YamlMapping):
        lines = []
        for key, inner in value.items():
            if found := re.compile(f"{re.escape(json.dumps(key))}[ \\t\\r\\n]*:").search(text, at):
                at = found.start()
            lines.append(line + text.count("\n", 0, at))
            at = _set_lines(inner, line, text, found.end() if found else at)
        value.lines = array("I", lines)
    return at
