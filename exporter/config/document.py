"""Parse YAML into plain values with line numbers, and collect the problems of a file.

Values are composed from PyYAML's events. Its node trees take ten times the memory. Its loaders lose
the lines, accept duplicate keys and follow YAML 1.1, where `no` is false, `010` is 8 and `1:30` is
90, which would silently change names, ids and labels.
"""

from __future__ import annotations

import re
from array import array
from bisect import insort
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Final, NoReturn, TextIO, Union, final

import yaml

from exporter.config.files import FileProblemError, read_text
from exporter.errors import ConfigError, Problem

MAX_PROBLEMS: Final = 100
"""Maximum number of problems to list; the rest is counted."""

MAX_DEPTH: Final = 50
MAX_NODES: Final = 10_000_000
"""Maximum number of values in a document, including those of aliases. A million calls with all
labels have nine million."""

MAX_ITEM_NODES: Final = 100
"""Maximum number of values in an item of a streamed list."""

MAX_ANCHORS: Final = 1_000
"""Maximum number of anchors in a streamed list; their values stay in memory."""

# Shorter strings are shared: calls repeat accounts and labels. Ids are longer.
_MAX_SHARED_LENGTH: Final = 32
_MAX_SHARED: Final = 10_000

_STRING_TAGS: Final = frozenset({None, "tag:yaml.org,2002:str", "!"})

Scalar = str | int | float | bool | None

# The core schema of YAML 1.2.
_WORDS: Final[dict[str, bool | None]] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
# Longer numbers become floats, because int() refuses very long ones.
_INTEGER: Final = re.compile(r"[-+]?[0-9]{1,18}", re.ASCII)
_FLOAT: Final = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)"
    r"|\.(?:nan|NaN|NAN)",
    re.ASCII,
)
_NUMBER_STARTS: Final = frozenset("+-.0123456789")

_REFERENCE: Final = r"\$\{([A-Za-z_][A-Za-z0-9_]{0,254})(?::-([^}]*))?\}"
_TOKEN: Final = re.compile(rf"\$\$|{_REFERENCE}|\$\{{", re.ASCII)
_WHOLE_REFERENCE: Final = re.compile(_REFERENCE, re.ASCII)

# A credential pasted in place of a key must not be shown. Valid keys fit this pattern, credentials
# are longer or have more digits.
_SHOWN_KEY: Final = re.compile(r"[A-Za-z_-]{1,40}[0-9]{0,3}", re.ASCII)


@final
@dataclass(frozen=True, slots=True)
class InvalidValue:
    """Replaces an invalid value; `message` is empty if the problem is already reported."""

    message: str = ""


class Unresolved(str):
    """A scalar without quotes, such as the value of a single `${NAME}`.

    Keys of the type number or boolean convert it; for other keys it is text.
    """

    __slots__ = ()


class YamlMapping(dict[str, "Value"]):
    """A mapping; `lines` has the line of each key, in order; empty if all are on its own line."""

    __slots__ = ("lines",)

    def __init__(self, values: Mapping[str, Value] | Iterable[tuple[str, Value]] = ()) -> None:
        super().__init__(values)
        self.lines: Final = array("I")

    def line_of(self, key: str) -> int:
        """Return the line of an existing key, in linear time."""
        return self.lines[list(self).index(key)]


class YamlSequence(list["Value"]):
    """A sequence; `lines` has the line of each item."""

    __slots__ = ("lines",)

    def __init__(self, values: Iterable[Value] = ()) -> None:
        super().__init__(values)
        self.lines: Final = array("I")


Value = Union[Scalar, YamlMapping, YamlSequence, InvalidValue]  # noqa: UP007 - forward references


class Problems:
    """The problems of one file; the first `MAX_PROBLEMS` are kept."""

    def __init__(self, file: str) -> None:
        self.total = 0
        self._file = file
        self._first: list[Problem] = []

    def add(self, line: int, path: Iterable[str | int], message: str) -> None:
        """Add a problem; `path` has the keys and indices of the value."""
        self.total += 1
        problem = Problem(self._file, line, key_path(path), message)
        insort(self._first, problem, key=attrgetter("line"))
        del self._first[MAX_PROBLEMS:]

    def add_hidden(self, count: int = 1) -> None:
        """Count problems without listing them."""
        self.total += count

    def listed(self) -> tuple[Problem, ...]:
        """Return the problems in the order of the file, with a last one that counts the rest."""
        more = self.total - len(self._first)
        rest = [Problem(self._file, 0, "", f"and {more} more problems")] if more else []
        return (*self._first, *rest)

    def fail(self) -> NoReturn:
        raise ConfigError(self.listed())


@contextmanager
def collect_errors(problems: Problems) -> Iterator[None]:
    """Add a `FileProblemError` to the problems, and raise them all as a `ConfigError`."""
    try:
        yield
    except FileProblemError as error:
        problems.add(error.line, error.path, str(error))
        problems.fail()


def key_path(path: Iterable[str | int]) -> str:
    """Render keys and indices as `accounts[0].api_key`; keys that may be secrets become `?`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f"{'.' if text else ''}{part if _SHOWN_KEY.fullmatch(part) else '?'}"
    return text


def locate(
    document: Value, location: Iterable[str | int], line: int = 1
) -> tuple[list[str | int], int]:
    """Convert a location of pydantic in a document that begins on `line` to a path and its line.

    If the path does not exist, the line is that of its longest existing part.
    """
    value, path = document, list[str | int]()
    for part in location:
        key = part
        if isinstance(value, YamlMapping) and isinstance(part, str):
            file = f"{part}_file"
            key = file if file in value and part not in value else part
            if key in value and value.lines:
                line = value.line_of(key)
            value = value.get(key)
        elif isinstance(value, YamlSequence) and isinstance(part, int):
            line, value = value.lines[part], value[part]
        if key != "[key]":  # pydantic adds this after an invalid key
            path.append(key)
    return path, line


def resolve(text: str) -> Scalar:
    """Return the value of a plain scalar: null, a boolean, a number or text."""
    if text[:1] not in _NUMBER_STARTS:
        return _WORDS.get(text, text)
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        # YAML spells infinity `.inf` and not-a-number `.nan`.
        return float(text.replace(".", "") if text[-1] in "fFnN" else text)
    return text


def interpolate(text: str, environ: Mapping[str, str], *, plain: bool) -> str:
    """Replace `${NAME}` and `${NAME:-default}`; the values are not interpolated again.

    As in a shell, the default also replaces an empty variable. `$$` is a `$`; a `$` before any
    other character except `{` is kept. `plain` says that the value has no quotes.

    Raises:
        ValueError: a variable is not set, or a reference is malformed. The message has no values.
    """

    def replacement(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        name, default = match[1], match[2]
        if name is None or (default is not None and "${" in default):
            raise ValueError(
                "malformed `${`; expected `${NAME}` or `${NAME:-default}`, or `$$` for a `$`"
            )
        value = environ.get(name)
        if value is None and default is None:
            raise ValueError(
                f"the environment variable `{name}` is not set;"
                f" set it, or give a default: `${{{name}:-default}}`"
            )
        return value or default or ""

    result = _TOKEN.sub(replacement, text)
    return Unresolved(result) if plain and _WHOLE_REFERENCE.fullmatch(text) else result


def load_mapping(
    path: Path,
    limit: int,
    environ: Mapping[str, str] | None,
    problems: Problems,
    key: str,
    *,
    scalars_as_text: bool = False,
) -> YamlMapping:
    """Read the mapping in a YAML file of at most `limit` bytes; an empty file is an empty mapping.

    Without `environ`, keep every `$`. `problems` receives the problems, and is raised if the file
    is no mapping; `key` is an example for the message. With `scalars_as_text`, numbers and booleans
    are `Unresolved` text.
    """
    with collect_errors(problems):
        text = read_text(path, limit)
        document = _Composer(text, environ, problems, scalars_as_text=scalars_as_text).document()
    if document is not None and not isinstance(document, YamlMapping):
        if not isinstance(document, InvalidValue):
            problems.add(1, (), f"expected a mapping with the key `{key}`")
        problems.fail()
    return document or YamlMapping()


def parse_items(file: TextIO, problems: Problems) -> Iterator[tuple[int, Value]]:
    """Yield the items of a list in a YAML or JSON file, each with its line.

    The file is streamed: only one item and the values of anchors are in memory. Variables are not
    replaced. `problems` receives the problems of items; `FileProblemError` is raised if the rest
    of the file cannot be read.
    """
    return _Composer(file, None, problems).items()


class _Composer:
    """Composes values from YAML events."""

    def __init__(
        self,
        source: str | TextIO,
        environ: Mapping[str, str] | None,
        problems: Problems,
        *,
        scalars_as_text: bool = False,
    ) -> None:
        self._events = self._parse(source)
        self._environ = environ
        self._problems = problems
        self._scalars_as_text = scalars_as_text
        self._path: list[str | int] = []  # of the next value
        self._nodes = 0  # in the document, or in the item of a streamed list
        self._max_nodes, self._max_anchors = MAX_NODES, MAX_NODES
        self._anchors: dict[str, tuple[Value, int] | None] = {}  # None while it is composed
        self._shared: dict[str, str] = {}

    def _parse(self, source: str | TextIO) -> Iterator[yaml.Event]:
        """Yield the events; translate PyYAML's errors, without quoted text that may be a secret."""
        # PyYAML without libyaml has only the loader in Python.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        try:
            yield from yaml.parse(source, Loader=loader)
        except yaml.YAMLError as error:
            if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
                message = "is not YAML text: it contains characters that YAML forbids"
                raise FileProblemError(message) from None
            line = error.problem_mark.line + 1
            reason = re.sub(r"'[^']{4,}'|\"[^\"]{4,}\"", "...", error.problem or "cannot be read")
            lines = source.split("\n", line) if isinstance(source, str) else []
            hint = ""
            if line <= len(lines) and "${" in lines[line - 1]:
                hint = "; between `{}` or `[]`, `${NAME}` needs quotes"
            message = f"is not valid YAML: {reason}{hint}"
            raise FileProblemError(message, line, self._path) from None

    def document(self) -> Value:
        root: Value = None
        for event in self._roots():
            root = self._value(event)
        return root

    def items(self) -> Iterator[tuple[int, Value]]:
        """Compose the items of the only document, one by one."""
        for root in self._roots():
            if not isinstance(root, yaml.SequenceStartEvent):
                if not isinstance(root, yaml.ScalarEvent) or self._value(root) is not None:
                    raise FileProblemError("expected a list of calls, as in `watch.calls`", 1)
                continue
            self._open(root)
            self._max_nodes, self._max_anchors = MAX_ITEM_NODES, MAX_ANCHORS
            for event in self._until(yaml.SequenceEndEvent):
                self._nodes = 0
                yield _line(event), self._value(event)

    def _roots(self) -> Iterator[yaml.NodeEvent]:
        documents = 0
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self._error(event, "expected one document; a second one starts here")
            elif isinstance(event, yaml.NodeEvent):
                yield event

    def _error(self, event: yaml.Event, message: str) -> FileProblemError:
        return FileProblemError(message, _line(event), self._path)

    def _value(self, event: yaml.Event) -> Value:
        before = self._nodes
        value: Value
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        self._count(event, 1)
        if isinstance(event, yaml.ScalarEvent):
            value = self._scalar(event)
        else:
            assert isinstance(event, yaml.CollectionStartEvent)  # noqa: S101 - the others are ends
            self._open(event)
            is_mapping = isinstance(event, yaml.MappingStartEvent)
            value = self._mapping() if is_mapping else self._sequence()
        self._anchor(event, (value, self._nodes - before))
        return value

    def _open(self, event: yaml.CollectionStartEvent) -> None:
        if event.tag is not None:
            raise self._error(event, "tags (`!name`) are not supported")
        if len(self._path) >= MAX_DEPTH:
            raise self._error(event, f"is nested deeper than {MAX_DEPTH} levels")
        self._anchor(event, None)

    def _count(self, event: yaml.Event, nodes: int) -> None:
        self._nodes += nodes
        if self._nodes > self._max_nodes:
            message = f"has more than {self._max_nodes} values, including those of aliases"
            raise self._error(event, message)

    def _anchor(self, event: yaml.NodeEvent, anchored: tuple[Value, int] | None) -> None:
        if event.anchor is not None:
            self._anchors[event.anchor] = anchored
            if len(self._anchors) > self._max_anchors:
                raise self._error(event, f"has more than {self._max_anchors} anchors (`&name`)")

    def _alias(self, event: yaml.AliasEvent) -> Value:
        if event.anchor not in self._anchors:
            raise self._error(event, "the alias (`*name`) has no anchor (`&name`) before it")
        if (anchored := self._anchors[event.anchor]) is None:
            raise self._error(event, "the alias (`*name`) is inside the value of its anchor")
        value, nodes = anchored
        self._count(event, nodes)
        return value

    def _until(self, end: type[yaml.Event]) -> Iterator[yaml.Event]:
        """Yield the first event of each item or key up to an end; the path leads to it."""
        self._path.append(0)
        index = 0
        while not isinstance(event := next(self._events), end):
            yield event
            index += 1
            self._path[-1] = index
        self._path.pop()

    def _sequence(self) -> YamlSequence:
        sequence = YamlSequence()
        for event in self._until(yaml.SequenceEndEvent):
            sequence.lines.append(_line(event))
            sequence.append(self._value(event))
        return sequence

    def _mapping(self) -> YamlMapping:
        mapping = YamlMapping()
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise self._error(event, "expected text as the key")
            key, line = self._text(event), _line(event)
            self._anchor(event, (key, 1))
            self._path.append(key)
            problem = ""
            if key in mapping:
                problem = "duplicate key"
                if self._problems.total < MAX_PROBLEMS:  # finding the line is slow
                    problem += f"; the first is on line {mapping.line_of(key)}"
            elif key == "<<" and event.implicit[0] and event.tag is None:
                problem = "merge keys (`<<`) are not supported"
            if problem:
                self._problems.add(line, self._path, problem)
            value = self._value(next(self._events))
            if not problem:
                mapping[key] = value
                mapping.lines.append(line)
            self._path.pop()
        return mapping

    def _text(self, event: yaml.ScalarEvent) -> str:
        if event.tag not in _STRING_TAGS:
            raise self._error(event, "tags (`!name`) are not supported")
        text: str = event.value
        if len(self._shared) >= _MAX_SHARED:
            self._shared.clear()
        return text if len(text) > _MAX_SHARED_LENGTH else self._shared.setdefault(text, text)

    def _scalar(self, event: yaml.ScalarEvent) -> Value:
        text, plain = self._text(event), event.implicit[0] and event.tag is None
        if "$" in text and self._environ is not None:
            try:
                return interpolate(text, self._environ, plain=plain)
            except ValueError as error:
                self._problems.add(_line(event), self._path, str(error))
                return InvalidValue()
        value = resolve(text) if plain else text
        is_number = value is not None and not isinstance(value, str)
        return Unresolved(text) if is_number and self._scalars_as_text else value


def _line(event: yaml.Event) -> int:
    # Parsed events always have marks.
    return event.start_mark.line + 1 if event.start_mark is not None else 0
