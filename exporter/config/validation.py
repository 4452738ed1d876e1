"""Validate a document into a model, and report all problems with their lines."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

from annotated_types import MaxLen
from pydantic import (
    BaseModel,
    ConfigDict,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from exporter.config.document import (
    MAX_PROBLEMS,
    InvalidValue,
    Problems,
    Value,
    YamlMapping,
    YamlSequence,
    line_of,
    unknown_key,
)
from exporter.config.files import Authorities, FileProblemError, NamedFiles

MAX_SECRET_FILE: Final = 64 << 10
MAX_TEXT_FILE: Final = 1 << 20

M = TypeVar("M", bound=BaseModel)

_MAPPING: Final = "expected a mapping of keys to values"
_MESSAGES: Final = {
    "missing": "missing required key",
    "extra_forbidden": "unknown key",
    "model_type": _MAPPING,
    "dict_type": _MAPPING,
    "tuple_type": "expected a list",
    "list_type": "expected a list",
    "too_short": "expected at least {min_length} item",
    "too_long": "expected at most {max_length} items",
}


@dataclass(frozen=True, slots=True)
class LoadContext:
    """Context of validators while a file is loaded. Models made by code have no context.

    Attributes:
        folder: the base of relative paths.
        problems: receives problems that pydantic cannot report.
        files: reads the named files.
        accounts: the names of the accounts; None skips the check, if they could not be read.
        labels: the names in `watch.labels`; None likewise.
        authorities: certificate authorities to verify servers against.
        seen: values that have to be unique, with their owner and kind.
        broker_authorities: those of each `ca_file` that was read, by its path.
    """

    folder: Path
    problems: Problems
    files: NamedFiles = field(default_factory=NamedFiles)
    accounts: Collection[str] | None = None
    labels: Collection[str] | None = None
    authorities: Authorities | None = None
    seen: set[tuple[object, str, object]] = field(default_factory=set)
    broker_authorities: dict[str, Authorities] = field(default_factory=dict)


def invalid(message: str) -> PydanticCustomError:
    """Return the error for a validator of a value to raise."""
    return PydanticCustomError("expected", "{message}", {"message": message})


def invalid_at(key: str, message: str) -> ValidationError:
    """Return the error about a key for a validator of a model to raise."""
    error = InitErrorDetails(type=invalid(message), loc=(key,), input=None)
    return ValidationError.from_exception_data("config", [error])


def check_unique(value: object, info: ValidationInfo, kind: str, owner: object = None) -> None:
    """Check that a value, such as the name of an account, occurs once in the file."""
    if isinstance(info.context, LoadContext):
        if (owner, kind, value) in info.context.seen:
            raise invalid(f"expected a unique {kind}; an earlier item has the same")
        info.context.seen.add((owner, kind, value))


class Section(BaseModel):
    """A mapping in the file. The docstrings of its attributes document the keys.

    Attributes:
        secrets: keys whose value can be read from a file, named by `KEY_file`. A text is no secret.
        null_is_default: for all keys, `key:` without a value means the default.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True
    )
    secrets: ClassVar[tuple[str, ...]] = ()
    null_is_default: ClassVar[bool] = False

    @model_validator(mode="before")
    @classmethod
    def _prepare(cls, data: Any, info: ValidationInfo) -> Any:  # Any: as pydantic declares it
        """Read the files of keys, and mark problems that pydantic does not detect."""
        context = info.context
        if not isinstance(data, YamlMapping) or not isinstance(context, LoadContext):
            return data
        found: dict[str, object] = dict(data)
        known = {*cls.model_fields, *(f"{key}_file" for key in cls.secrets)}
        mark_unknown_keys(found, known, context.problems)
        for key, about in cls.model_fields.items():
            value = found.get(key, data)
            if key in cls.secrets:
                _read_file(found, key, about, context)
            elif value is None and (
                # The content of a section or list may be commented out.
                cls.null_is_default or isinstance(about.default, BaseModel | tuple)
            ):
                del found[key]
            elif isinstance(value, YamlSequence):
                for limit in about.metadata:
                    # Validate only one item too many: enough for the error.
                    if isinstance(limit, MaxLen) and len(value) > limit.max_length:
                        found[key] = value[: limit.max_length + 1]
        return found

    @field_validator("name", "token", check_fields=False)
    @classmethod
    def _is_unique(cls, value: object, info: ValidationInfo) -> object:
        check_unique(value, info, str(info.field_name), cls)
        return value


def mark_unknown_keys(found: dict[str, object], known: Collection[str], problems: Problems) -> None:
    """Replace the value of each unknown key by its problem."""
    unknown = [key for key in found if key not in known]
    for number, key in enumerate(unknown, problems.total):
        # A file may have a million of them, and finding similar keys is slow.
        if number < MAX_PROBLEMS:
            found[key] = InvalidValue(unknown_key(key, known))
        else:
            del found[key]
            problems.add_hidden()


def _read_file(found: dict[str, object], key: str, about: FieldInfo, context: LoadContext) -> None:
    """Replace `KEY_file` by `KEY` with the content of the file."""
    file_key = f"{key}_file"
    if file_key not in found:
        if key not in found and about.is_required():
            found[key] = InvalidValue(f"missing; expected this key or `{file_key}`")
        elif found.get(key, "") is None:
            found[key] = ""
    elif key in found:
        found[key] = InvalidValue()
        found[file_key] = InvalidValue(f"expected either `{key}` or `{file_key}`, not both")
    else:
        path = found.pop(file_key)
        if isinstance(path, str) and path:
            try:
                file = context.folder / path
                secret = about.annotation is not str
                limit = MAX_SECRET_FILE if secret else MAX_TEXT_FILE
                found[key] = context.files.read(file, limit, secret=secret)
            except FileProblemError as error:
                found[key] = InvalidValue(str(error))
        elif isinstance(path, InvalidValue):
            found[key] = path
        else:
            found[key] = InvalidValue("expected the path of a file")


def validate(model: type[M], document: YamlMapping, context: LoadContext) -> M | None:
    """Return the model of a document; if it is invalid, add the problems and return None."""
    try:
        return model.model_validate(document, context=context)
    except ValidationError as error:
        add_problems(error, document, context.problems)
        return None


def add_problems(
    error: ValidationError,
    document: Value,
    problems: Problems,
    path: tuple[str | int, ...] = (),
    line: int = 1,
) -> None:
    """Add the errors of a document, or of the part of one at `path` and `line`."""
    for number, detail in enumerate(error.errors(include_url=False)):
        if not (message := _message(detail)):
            continue
        if number < 4 * MAX_PROBLEMS:
            inner = _path_in(document, detail["loc"])
            problems.add(line_of(document, inner, line), (*path, *inner), message)
        else:
            problems.add_hidden()  # finding its line is slow in a large mapping


def _message(detail: ErrorDetails) -> str:
    """Return the message of an error; empty if the problem is already reported."""
    value = detail["input"]
    if isinstance(value, InvalidValue):
        return value.message
    if detail["type"] == "too_short" and value:
        return ""  # because invalid items were left out
    if detail["type"] == "literal_error":
        return f"expected {detail['ctx']['expected']}".replace("'", "`")
    return _MESSAGES.get(detail["type"], detail["msg"]).format_map(detail.get("ctx", {}))


def _path_in(document: Value, location: tuple[int | str, ...]) -> list[str | int]:
    """Convert a location of pydantic to a path in the document."""
    value, path = document, list[str | int]()
    for part in location:
        key = part
        if isinstance(value, YamlMapping) and isinstance(part, str):
            if part not in value and f"{part}_file" in value:
                key = f"{part}_file"
            value = value.get(part)
        elif isinstance(value, YamlSequence) and isinstance(part, int):
            value = value[part]
        if key != "[key]":  # pydantic adds this after an invalid key
            path.append(key)
    return path
