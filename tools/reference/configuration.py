"""The reference of the configuration, from its models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from annotated_types import MaxLen, MinLen
from pydantic import TypeAdapter
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from exporter.config import CallConfig, Config
from exporter.config.validation import (
    DURATION_WORDS,
    MAX_LABEL_VALUE,
    Expected,
    Section,
    format_duration,
)
from exporter.secrets import Secret
from tools.reference.markdown import NOTE, code, table

_HEAD: Final = ("key", "value", "default", "meaning")
_INTRODUCTION: Final = """# Configuration

This page is a reference for people who write a configuration. It lists every key of the file in
`--config.file`, with its values and its default. [config.example.yaml](../config.example.yaml) is
an example to start from, and `esms-exporter schema` prints a JSON Schema for editors.

- **Format.** The file is YAML. Unknown keys, wrong types, duplicate names, missing variables and
  unreadable files are errors. All errors are reported at once, with their lines.
  `esms-exporter check --config.file=config.yaml` reports them without running the exporter.
- **Environment variables.** `${NAME}` is replaced by the value of the variable, `${NAME:-default}`
  has a default, and `$$` is a plain `$`. Between `{ }` or `[ ]`, such a value needs quotes.
- **Durations** have the format of Prometheus: `100ms`, `15s`, `1m30s`, `6h`, `3d`.
- **Paths** are relative to the configuration file. The path in `ledger.url` is relative to the
  working directory.
- **Reload.** The configuration and the files that it names are read again within 2 s of a change,
  at SIGHUP and at `POST /-/reload`. An invalid configuration changes nothing. Only `ledger.url`
  needs a restart.
"""


@dataclass(frozen=True, slots=True)
class _ValueType:
    """The type of a key's value.

    Attributes:
        kind: the type, without `Annotated` and `None`.
        metadata: the metadata of `Annotated`.
        item: the type of the items of a list.
    """

    kind: Any  # Any: an annotation of a model
    metadata: tuple[object, ...]
    item: _ValueType | None = None

    @property
    def model(self) -> type[Section] | None:
        """The model, also of the items of a list; None for other types."""
        kind = self.item.kind if self.item else self.kind
        return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def page() -> str:
    """Return the whole page."""
    return "".join(
        (
            NOTE.format(source="exporter/config/"),
            _INTRODUCTION,
            *_sections("", Config),
        )
    )


def _sections(path: str, model: type[Section]) -> Iterator[str]:
    """Yield the section of a model, then those of the models in it."""
    yield _section(path, _said(model.__doc__, path), _rows(path, model))
    for name, field in model.model_fields.items():
        takes, below = _takes(field.annotation, field.metadata), _below(path, name)
        if takes.item and takes.item.kind is CallConfig:
            yield _section(below, "A call to watch: its id alone, or these keys.", _call_rows())
        elif takes.model:
            yield from _sections(below, takes.model)


def _section(path: str, words: str, rows: Iterator[tuple[str, str, str, str]]) -> str:
    title = code(path) if path else "Top level"
    return f"\n## {title}\n\n{words}\n\n{table(_HEAD, rows)}"


def _rows(path: str, model: type[Section]) -> Iterator[tuple[str, str, str, str]]:
    for name, field in model.model_fields.items():
        takes, below = _takes(field.annotation, field.metadata), _below(path, name)
        in_file = name in model.file_keys
        default = _default(field, takes)
        if field.is_required():
            default = f"required, or `{name}_file`" if in_file else "required"
        yield code(name), _in_words(takes, below), default, _said(field.description, below)
        if in_file:
            about = f"A file that contains the value of `{name}`; read again when it changes."
            yield code(f"{name}_file"), "the path of a file", "none", about


def _call_rows() -> Iterator[tuple[str, str, str, str]]:
    schema = TypeAdapter(CallConfig).json_schema()
    takes = {
        "reference_id": "1 to 128 ASCII letters, digits and signs such as `-`; no blanks, quotes,"
        " commas or semicolons; case and dashes do not matter",
        "account": "the name of one of the accounts",
        "kind": "`call` or `message`",
        "labels": f"a mapping of names to text of up to {MAX_LABEL_VALUE} characters",
    }
    for name, about in schema["properties"].items():
        default = "required" if name in schema["required"] else "none"
        yield code(name), takes[name], default, about["description"]


def _takes(annotation: Any, metadata: Iterable[object]) -> _ValueType:  # Any: see above
    """Split an annotation into its parts."""
    found = tuple(metadata)
    while True:
        origin, arguments = get_origin(annotation), get_args(annotation)
        if origin is Annotated:
            annotation, *more = arguments
            for item in more:
                found += tuple(item.metadata) if isinstance(item, FieldInfo) else (item,)
        elif origin in {Union, UnionType} and NoneType in arguments:
            (annotation,) = (one for one in arguments if one is not NoneType)
        else:
            break
    item = _takes(arguments[0], ()) if origin is tuple else None
    return _ValueType(annotation, found, item)


def _in_words(takes: _ValueType, path: str) -> str:
    if takes.item:
        what = _link(path) if takes.model or takes.item.kind is CallConfig else ""
        return f"{_length(takes)}: {what or 'each ' + _in_words(takes.item, path)}"
    if takes.model:
        return _link(path)
    arguments = get_args(takes.kind)
    if get_origin(takes.kind) is Literal:
        return f"{', '.join(map(code, arguments[:-1]))} or {code(arguments[-1])}"
    if get_origin(takes.kind) is dict:
        name, value = (_in_words(_takes(argument, ()), path) for argument in arguments)
        return f"a mapping of {name} to {value}"
    return _words(takes, path)


def _words(takes: _ValueType, path: str) -> str:
    for item in reversed(takes.metadata):
        if isinstance(item, Expected):
            return item.words.replace(DURATION_WORDS + ",", "a duration")
    raise LookupError(f"nothing says what {path} takes")


def _length(takes: _ValueType) -> str:
    shortest = next((item.min_length for item in takes.metadata if isinstance(item, MinLen)), 0)
    longest = next((item.max_length for item in takes.metadata if isinstance(item, MaxLen)), None)
    if longest is None:
        return "a list"
    return f"a list of {shortest} to {longest}" if shortest else f"a list of up to {longest}"


def _link(path: str) -> str:
    return f"[{path}](#{path.replace('.', '')})"


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _default(field: FieldInfo, takes: _ValueType) -> str:
    value = field.default
    if takes.model and not takes.item:
        return ""  # its keys have their own defaults
    if value in (None, (), "", PydanticUndefined):
        return "none"
    if isinstance(value, Secret):
        value = value.reveal()  # a default is not confidential
    return code(
        format_duration(value)
        if any(
            isinstance(item, Expected) and item.words.startswith(DURATION_WORDS)
            for item in takes.metadata
        )
        else f"{value:g}"
        if isinstance(value, float)
        else str(value).lower()
        if isinstance(value, bool)
        else str(value)
    )


def _said(words: str | None, path: str) -> str:
    if not words:
        raise LookupError(f"nothing says what {path} is")
    return words.strip()
