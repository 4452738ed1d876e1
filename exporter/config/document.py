"""YAML to plain values, each with the line it stands on.

Built from PyYAML's events, because its trees of nodes take ten times the memory, and its loaders
forget the lines, accept duplicate keys and follow YAML 1.1.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, TextIO, Union, final

import yaml

from exporter.config.files import FileProblemError
from exporter.config.interpolation import InterpolationError, Unresolved, interpolate
from exporter.config.problems import Problems
from exporter.config.scalars import Scalar, resolve

MAX_DEPTH = 50
# A million calls with all their labels are nine million; what aliases repeat counts each time.
MAX_NODES = 10_000_000

# Of an item that is read as part of a stream, and of what all items may refer to: those are kept.
MAX_ITEM_NODES = 100
MAX_ANCHORS = 1_000

# Words of which there is one copy.
_MAX_WORDS = 10_000

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Bounds what the copies themselves may cost where all words differ; ids of calls are longer.
_SHORT = 33
_STRING_TAGS = frozenset({"tag:yaml.org,2002:str", "!"})


@final
class Broken:
    """Stands for a value whose problem was told already."""


BROKEN: Final = Broken()


class YamlMapping(dict[str, "Value"]):
    """A mapping; `lines` has the line of every key, in order."""

    __slots__ = ("lines",)
    lines: array[int]

    def keys_with_lines(self) -> Iterator[tuple[str, int]]:
        """Yield every key and the line it stands on."""
        return zip(self, self.lines, strict=True)

    def line_of(self, key: str) -> int:
        """Return the line of a key that is there; looks through all of them."""
        return self.lines[list(self).index(key)]


class YamlSequence(list["Value"]):
    """A sequence; `lines` has the line of every item."""

    __slots__ = ("lines",)
    lines: array[int]

    def with_lines(self) -> Iterator[tuple[int, Value]]:
        """Yield the line of every item, and the item."""
        return zip(self.lines, self, strict=True)


Value = Union[Scalar, YamlMapping, YamlSequence, Broken]  # noqa: UP007 - names what comes later


class DocumentError(Exception):
    """The file is no document that can be read further.

    Attributes:
        line: where, or 0.
        parts: the keys and indices that lead there.
        message: what is wrong.
    """

    def __init__(self, line: int, parts: list[str | int], message: str) -> None:
        super().__init__(message)
        self.line = line
        self.parts = parts
        self.message = message


@contextmanager
def told_to(problems: Problems) -> Iterator[None]:
    """Turn what keeps a file from being read at all into the last of its problems.

    Raises:
        ConfigError: with all of them.
    """
    try:
        yield
    except FileProblemError as error:
        problems.add(0, (), str(error))
        problems.fail()
    except DocumentError as error:
        problems.add(error.line, error.parts, error.message)
        problems.fail()


@dataclass(slots=True)
class _Open:
    """A mapping or sequence whose end has not come."""

    container: YamlMapping | YamlSequence
    start: int
    anchor: str | None
    nodes: int = 1
    key: str | None = None
    """The key whose value comes next; None in a sequence, or where a key comes next."""
    key_dropped: bool = False
    lines: dict[str, int] = field(default_factory=dict)
    """The lines of a mapping's keys, until it ends."""
    taken: int = 0
    """Items of a sequence that were taken out of it."""

    @property
    def awaits_key(self) -> bool:
        return self.key is None and type(self.container) is YamlMapping


def parse_document(
    text: str,
    environ: Mapping[str, str] | None,
    problems: Problems,
    *,
    scalars_as_text: bool = False,
) -> Value:
    """Return the single document of `text`, or None for none.

    Args:
        text: YAML.
        environ: the variables for `${NAME}`; None to leave every `$` as it is.
        problems: takes what is wrong.
        scalars_as_text: keep numbers and booleans as they are written, which a key that is not a
            string may resolve.

    Problems that let the rest be read are added to `problems`.

    Raises:
        DocumentError: the text is not YAML, or more than is accepted here.
    """
    builder = _Builder(environ, problems, scalars_as_text=scalars_as_text)
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            builder.take(event)
    except yaml.YAMLError as error:
        raise _syntax_error(error, text, builder.path()) from None
    return builder.root


def parse_items(file: TextIO, problems: Problems) -> Iterator[tuple[int, Value]]:
    """Yield the items of the list that a file of YAML or JSON is, each with its line.

    Read as a stream: no more than an item is held at a time, and what aliases may repeat.
    Variables are not replaced.

    Args:
        file: YAML.
        problems: takes what is wrong with items.

    Raises:
        DocumentError: the rest is not YAML, not a list, or more than is accepted here.
    """
    builder = _Builder(None, problems, MAX_ITEM_NODES, MAX_ANCHORS)
    try:
        for event in yaml.parse(file, Loader=_LOADER):
            builder.take(event)
            yield from builder.items()
    except yaml.YAMLError as error:
        raise _syntax_error(error, "", builder.path()) from None
    if not isinstance(builder.root, YamlSequence | None):
        raise DocumentError(1, [], "expected a list of calls, as in `watch.calls`")


def _syntax_error(error: yaml.YAMLError, text: str, parts: list[str | int]) -> DocumentError:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return DocumentError(0, [], "is not YAML text: it holds characters that YAML forbids")
    line = error.problem_mark.line + 1
    # PyYAML's own scanner repeats words of the file, which may be part of a key.
    reason = re.sub(r"'[^']{4,}'|\"[^\"]{4,}\"", "...", error.problem or "cannot be read")
    lines = text.split("\n", line)
    hint = ""
    if line <= len(lines) and "${" in lines[line - 1]:
        hint = "; between `{}` or `[]`, `${NAME}` needs quotes"
    return DocumentError(line, parts, f"is not valid YAML: {reason}{hint}")


def _line(event: yaml.Event) -> int:
    # Without marks only where somebody makes events by hand.
    return event.start_mark.line + 1 if event.start_mark is not None else 0


class _Builder:
    """Takes the events of a document one by one."""

    def __init__(
        self,
        environ: Mapping[str, str] | None,
        problems: Problems,
        item_nodes: int = MAX_NODES,
        anchors: int = MAX_NODES,
        *,
        scalars_as_text: bool = False,
    ) -> None:
        self._scalars_as_text = scalars_as_text
        self.root: Value = None
        self._item_nodes = item_nodes
        self._max_anchors = anchors
        self._nodes_before = 0  # those of the items that were taken
        self._environ = environ
        self._problems = problems
        self._stack: list[_Open] = []
        self._anchors: dict[str, tuple[Value, int] | None] = {}
        self._words: dict[str, str] = {}
        self._nodes = 0
        self._documents = 0

    def path(self) -> list[str | int]:
        """Return the keys and indices that lead to the current value."""
        return [
            frame.taken + len(frame.container) if frame.key is None else frame.key
            for frame in self._stack
            if not frame.awaits_key
        ]

    def take(self, event: yaml.Event) -> None:
        """Take the next event.

        Raises:
            DocumentError: it is not accepted.
        """
        match event:
            case yaml.ScalarEvent():
                self._scalar(event)
            case yaml.MappingStartEvent():
                self._start(event, YamlMapping())
            case yaml.SequenceStartEvent():
                self._start(event, YamlSequence())
            case yaml.CollectionEndEvent():
                self._end()
            case yaml.AliasEvent():
                self._alias(event)
            case yaml.DocumentStartEvent():
                self._documents += 1
                if self._documents > 1:
                    raise self._error(event, "expected one document, and here a second one starts")
            case _:
                pass  # the ends of document and stream, which tell nothing

    def items(self) -> Iterator[tuple[int, Value]]:
        """Take the items that are complete out of the list that the document is."""
        if len(self._stack) == 1:
            frame = self._stack[0]
            if not isinstance(frame.container, YamlSequence):
                raise DocumentError(1, [], "expected a list of calls, as in `watch.calls`")
            yield from frame.container.with_lines()
            frame.taken += len(frame.container)
            frame.container.clear()
            del frame.container.lines[:]
            self._nodes_before = self._nodes

    def _error(self, event: yaml.Event, message: str) -> DocumentError:
        return DocumentError(_line(event), self.path(), message)

    def _awaits_key(self) -> bool:
        return bool(self._stack) and self._stack[-1].awaits_key

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        text, line = event.value, _line(event)
        plain = event.implicit[0] and event.tag is None
        if event.tag is not None and event.tag not in _STRING_TAGS:
            raise self._error(event, "tags (`!name`) are not supported")
        value: Value
        if self._awaits_key():
            value = self._word(text)
            self._key(value, line, merge=plain and text == "<<")
        else:
            value = self._resolved(text, line, plain=plain)
            self._attach(value, line, 1)
        if event.anchor is not None:
            self._anchor(event, event.anchor, (value, 1))

    def _anchor(self, event: yaml.Event, name: str, anchored: tuple[Value, int] | None) -> None:
        self._anchors[name] = anchored
        if len(self._anchors) > self._max_anchors:
            raise self._error(event, f"holds more than {self._max_anchors} anchors (`&name`)")

    def _word(self, text: str) -> str:
        """Return the one copy of a word."""
        if len(self._words) >= _MAX_WORDS:
            self._words.clear()
        return self._words.setdefault(text, text)

    def _key(self, key: str, line: int, *, merge: bool) -> None:
        frame = self._stack[-1]
        frame.key = key
        first = frame.lines.get(key)
        if merge:
            self._problems.add(line, self.path(), "merge keys (`<<`) are not supported")
        elif first is not None:
            self._problems.add(line, self.path(), f"duplicate key; the first is on line {first}")
        else:
            frame.lines[key] = line
            return
        frame.key_dropped = True

    def _resolved(self, text: str, line: int, *, plain: bool) -> Value:
        if "$" in text and self._environ is not None:
            try:
                return interpolate(text, self._environ, plain=plain)
            except InterpolationError as error:
                self._problems.add(line, self.path(), str(error))
                return BROKEN
        value = resolve(text) if plain else text
        # Many calls share their accounts and labels: one copy of each short word is enough.
        if type(value) is str and len(value) < _SHORT:
            return self._word(value)
        written = value is None or isinstance(value, str) or not self._scalars_as_text
        return value if written else Unresolved(text)

    def _attach(self, value: Value, line: int, nodes: int) -> None:
        self._nodes += nodes
        for count, most in (
            (self._nodes, MAX_NODES),
            (self._nodes - self._nodes_before, self._item_nodes),
        ):
            if count > most:
                message = f"holds more than {most} values, with what aliases repeat"
                raise DocumentError(line, self.path(), message)
        if not self._stack:
            self.root = value
            return
        frame = self._stack[-1]
        frame.nodes += nodes
        container = frame.container
        if isinstance(container, YamlSequence):
            container.append(value)
            container.lines.append(line)
        else:
            if not frame.key_dropped:
                container[frame.key or ""] = value
            frame.key, frame.key_dropped = None, False

    def _start(
        self,
        event: yaml.MappingStartEvent | yaml.SequenceStartEvent,
        container: YamlMapping | YamlSequence,
    ) -> None:
        if self._awaits_key():
            raise self._error(event, "expected a key that is text")
        if event.tag is not None:
            raise self._error(event, "tags (`!name`) are not supported")
        if len(self._stack) >= MAX_DEPTH:
            raise self._error(event, f"is nested deeper than {MAX_DEPTH} levels")
        if event.anchor is not None:
            self._anchor(event, event.anchor, None)
        container.lines = array("I")
        self._stack.append(_Open(container, _line(event), event.anchor))

    def _end(self) -> None:
        frame = self._stack.pop()
        if isinstance(frame.container, YamlMapping):
            frame.container.lines = array("I", frame.lines.values())
        if frame.anchor is not None:
            self._anchors[frame.anchor] = (frame.container, frame.nodes)
        # Its values were counted one by one; only aliases count them again.
        self._attach(frame.container, frame.start, 1)
        if self._stack:
            self._stack[-1].nodes += frame.nodes - 1

    def _alias(self, event: yaml.AliasEvent) -> None:
        if self._awaits_key():
            raise self._error(event, "expected a key that is text")
        if event.anchor not in self._anchors:
            raise self._error(event, "the alias (`*name`) has no anchor (`&name`) before it")
        anchored = self._anchors[event.anchor]
        if anchored is None:
            raise self._error(event, "the alias (`*name`) stands inside of what it repeats")
        value, nodes = anchored
        self._attach(value, _line(event), nodes)
