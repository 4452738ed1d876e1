"""From a document to a model, or to every problem with the line that it stands on."""

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
    """What validators know while a file is loaded; there is none for models made by code.

    Attributes:
        folder: what paths are relative to.
        problems: receives problems that pydantic does not carry.
        files: reads the files that are named.
        accounts: the names of the accounts; None where they cannot be read, to check none.
        labels: the names in `watch.labels`; None where they cannot be read.
        authorities: those that certificates of servers are verified against.
        seen: what has to be unique, each with its kind.
    """

    folder: Path
    problems: Problems
    files: NamedFiles = field(default_factory=NamedFiles)
    accounts: Collection[str] | None = None
    labels: Collection[str] | None = None
    authorities: Authorities | None = None
    seen: set[tuple[object, str, object]] = field(default_factory=set)


def invalid(message: str) -> PydanticCustomError:
    """Return the error that a validator raises."""
    return PydanticCustomError("expected", "{message}", {"message": message})


def invalid_at(key: str, message: str) -> ValidationError:
    """Return the error that the validator of a model raises for one of its keys."""
    error = InitErrorDetails(type=invalid(message), loc=(key,), input=None)
    return ValidationError.from_exception_data("config", [error])


def check_unique(value: object, info: ValidationInfo, kind: str, owner: object = None) -> None:
    """Check that a file has no other value of a kind, such as the name of an account."""
    if isinstance(info.context, LoadContext):
        if (owner, kind, value) in info.context.seen:
            raise invalid(f"expected a unique {kind}; an earlier item has the same")
        info.context.seen.add((owner, kind, value))


class Section(BaseModel):
    """A mapping of the file. Its attributes' docstrings are the reference of its keys.

    Attributes:
        secrets: keys whose values a file may hold instead, which `KEY_file` names.
        null_is_default: `key:` without a value leaves any key at its default.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True
    )
    secrets: ClassVar[tuple[str, ...]] = ()
    null_is_default: ClassVar[bool] = False

    @model_validator(mode="before")
    @classmethod
    def _prepare(cls, data: Any, info: ValidationInfo) -> Any:  # Any: whatever is validated
        """Read the files of secrets, and let pydantic carry the problems that it does not know."""
        context = info.context
        if not isinstance(data, YamlMapping) or not isinstance(context, LoadContext):
            return data
        found: dict[str, object] = dict(data)
        known = {*cls.model_fields, *(f"{key}_file" for key in cls.secrets)}
        mark_unknown_keys(found, known, context.problems)
        for key, about in cls.model_fields.items():
            value = found.get(key, data)
            if key in cls.secrets:
                _read_secret(found, key, required=about.is_required(), context=context)
            elif value is None and (
                # A section or a list, whose content may be commented out.
                cls.null_is_default or isinstance(about.default, BaseModel | tuple)
            ):
                del found[key]
            elif isinstance(value, YamlSequence):
                for limit in about.metadata:
                    # One too many is enough to be a problem.
                    if isinstance(limit, MaxLen) and len(value) > limit.max_length:
                        found[key] = value[: limit.max_length + 1]
        return found

    @field_validator("name", "token", check_fields=False)
    @classmethod
    def _is_unique(cls, value: object, info: ValidationInfo) -> object:
        check_unique(value, info, str(info.field_name), cls)
        return value


def mark_unknown_keys(found: dict[str, object], known: Collection[str], problems: Problems) -> None:
    """Put the problem of each unknown key in place of its value."""
    unknown = [key for key in found if key not in known]
    for number, key in enumerate(unknown, problems.total):
        # A file may have a million of them, and looking for the nearest known key is slow.
        if number < MAX_PROBLEMS:
            found[key] = InvalidValue(unknown_key(key, known))
        else:
            del found[key]
            problems.add_hidden()


def _read_secret(
    found: dict[str, object], key: str, *, required: bool, context: LoadContext
) -> None:
    """Put the content of the file that holds a secret in place of the file's path."""
    file_key = f"{key}_file"
    if file_key not in found:
        if key not in found and required:
            found[key] = InvalidValue(f"missing; expected it or `{file_key}`")
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
                found[key] = context.files.read(file, MAX_SECRET_FILE, secret=True)
            except FileProblemError as error:
                found[key] = InvalidValue(str(error))
        elif isinstance(path, InvalidValue):
            found[key] = path
        else:
            found[key] = InvalidValue("expected the path of a file")


def validate(model: type[M], document: YamlMapping, context: LoadContext) -> M | None:
    """Return the model that a document makes, or None after adding why not to the problems."""
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
    """Add what is wrong with a document, or with a part of one, that `path` and `line` lead to."""
    for number, detail in enumerate(error.errors(include_url=False)):
        if not (message := _message(detail)):
            continue
        if number < 4 * MAX_PROBLEMS:
            inner = _path_in(document, detail["loc"])
            problems.add(line_of(document, inner, line), (*path, *inner), message)
        else:
            problems.add_hidden()  # finding its line is slow in a large mapping


def _message(detail: ErrorDetails) -> str:
    """Return what is wrong in our words; empty where it was reported already."""
    value = detail["input"]
    if isinstance(value, InvalidValue):
        return value.message
    if detail["type"] == "too_short" and value:
        return ""  # items that are wrong leave a list too short
    if detail["type"] == "literal_error":
        return f"expected {detail['ctx']['expected']}".replace("'", "`")
    return _MESSAGES.get(detail["type"], detail["msg"]).format_map(detail.get("ctx", {}))


def _path_in(document: Value, location: tuple[int | str, ...]) -> list[str | int]:
    """Return where in the document a location of pydantic's is."""
    value, path = document, list[str | int]()
    for part in location:
        key = part
        if isinstance(value, YamlMapping) and isinstance(part, str):
            if part not in value and f"{part}_file" in value:
                key = f"{part}_file"
            value = value.get(part)
        elif isinstance(value, YamlSequence) and isinstance(part, int):
            value = value[part]
        if key != "[key]":  # pydantic's mark behind a key that is wrong
            path.append(key)
    return path
