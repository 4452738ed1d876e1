"""The reference of log events, from the calls of loggers in the code."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import exporter
from exporter.logs import LEVELS
from tools.reference.events import MEANINGS
from tools.reference.markdown import NOTE, code, table

_PACKAGE: Final = Path(exporter.__file__).parent
_INTRODUCTION: Final = """# Log events

This page is the reference of the log, for operators. Find an event by its name: the table says what
it means, what to do, and which fields the line has.

Each line on standard error is one event with its fields. `--log.level` selects the events by level,
`--log.format` selects logfmt or JSON. Every line also has `timestamp` (UTC) and `level`. The texts
in `problem`, `problems` and `message` may change. A lasting failure is logged once when it begins
and, in most cases, once when it ends. Keys, phone numbers and the URLs of requests are never
logged.
"""


@dataclass(frozen=True, slots=True)
class Event:
    """One call of a logger."""

    name: str
    level: str
    fields: tuple[str, ...]
    module: str


def page() -> str:
    """Return the whole page."""
    found = list(events())
    names = {event.name for event in found}
    if missing := names - MEANINGS.keys():
        raise LookupError(f"nothing says what the events {sorted(missing)} mean")
    if gone := MEANINGS.keys() - names:
        raise LookupError(f"nothing logs {sorted(gone)} any more")
    sections = (_section(level, found) for level in reversed(LEVELS))
    return "".join(
        (
            NOTE.format(source="exporter/ and tools/reference/events.py"),
            _INTRODUCTION,
            *sections,
        )
    )


def events() -> Iterator[Event]:
    """Yield every event of the package."""
    for path in sorted(_PACKAGE.rglob("*.py")):
        module = path.relative_to(_PACKAGE).with_suffix("").as_posix().replace("/", ".")
        yield from events_of(path.read_text(encoding="utf-8"), module)


def events_of(source: str, module: str) -> Iterator[Event]:
    """Yield the events of a module.

    Raises:
        LookupError: an event or a field is not written as a literal.
    """
    nodes = list(ast.walk(ast.parse(source)))
    assigned: dict[str, list[ast.expr]] = {}
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            assigned.setdefault(node.targets[0].id, []).append(node.value)
    for node in nodes:
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        logger, level = node.func.value, node.func.attr
        if isinstance(logger, ast.Name):
            logger = assigned.get(logger.id, [logger])[0]
        if level not in {*LEVELS, "log"} or not _is_logger(logger):
            continue
        match node.args[-1]:
            case ast.Constant(value=str(name)):
                # The level of `log` is that of a library, which is at least warning.
                level = "warning" if level == "log" else level
                yield Event(name, level, tuple(_fields(node, assigned)), module)
            case _:
                raise LookupError(f"{module}:{node.lineno}: the event is not a literal")


def _is_logger(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "structlog.get_logger"


def _fields(call: ast.Call, assigned: dict[str, list[ast.expr]]) -> Iterator[str]:
    for keyword in call.keywords:
        if keyword.arg is not None:
            yield keyword.arg
            continue
        # `**fields`, where `fields` is assigned once in the module, by literals.
        values = assigned.get(ast.unparse(keyword.value), [])
        if len(values) != 1:
            raise LookupError(f"line {call.lineno}: the fields are not literals")
        for node in ast.walk(values[0]):
            if isinstance(node, ast.Dict):
                yield from (ast.literal_eval(key) for key in node.keys if key)


def _section(level: str, found: list[Event]) -> str:
    by_name = defaultdict[str, list[Event]](list)
    for event in found:
        if event.level == level:
            by_name[event.name].append(event)
    rows = (
        (
            code(name),
            MEANINGS[name],
            _codes(field for event in same for field in event.fields),
            _codes(event.module for event in same),
        )
        for name, same in sorted(by_name.items(), key=lambda item: item[0].lower())
    )
    head = ("event", "meaning, and what to do", "fields", "module")
    return f"\n## {level.capitalize()}\n\n{table(head, rows)}"


def _codes(names: Iterable[str]) -> str:
    return " ".join(map(code, dict.fromkeys(names)))
