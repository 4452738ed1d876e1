"""Sections of the configuration: their base class, the types of their values, and validation.

Each type has one error message, which says what is expected.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, TypeVar, get_args

from annotated_types import Ge, GroupedMetadata, Gt, Le, MaxLen
from pydantic import (
    AfterValidator,
    AllowInfNan,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Strict,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import (
    CoreSchema,
    ErrorDetails,
    InitErrorDetails,
    PydanticCustomError,
    core_schema,
)
from yarl import URL

from exporter.config.document import (
    MAX_PROBLEMS,
    InvalidValue,
    Problems,
    Unresolved,
    Value,
    YamlMapping,
    YamlSequence,
    locate,
    resolve,
)
from exporter.config.files import FileProblemError, NamedFiles, ascii_pem
from exporter.ids import Kind
from exporter.secrets import Secret

MAX_SECRET_FILE: Final = 64 << 10
MAX_TEXT_FILE: Final = 1 << 20
MAX_ACCOUNTS: Final = 1000
MAX_LABEL_VALUE: Final = 128

M = TypeVar("M", bound=BaseModel)
V = TypeVar("V")

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

_DAY: Final = 86_400_000
_MILLISECONDS: Final = {
    "y": 365 * _DAY,
    "w": 7 * _DAY,
    "d": _DAY,
    "h": 3_600_000,
    "m": 60_000,
    "s": 1_000,
    "ms": 1,
}
# Nine digits exceed every maximum, and keep the arithmetic exact.
_UNITS: Final = "".join(f"([0-9]{{1,9}}{unit})?" for unit in _MILLISECONDS)
DURATION_WORDS: Final = "a duration such as `15s`, `1m30s` or `3d`"

DURATION_PATTERN: Final = f"^(0|(?=[0-9]){_UNITS})$"
"""A duration as in `model.ParseDuration` of prometheus/common: each unit at most once, from large
to small. Also valid in JSON Schema (ECMA-262)."""

_DURATION: Final = {"type": "string", "pattern": DURATION_PATTERN}


# Validation of a document.


@dataclass(slots=True)
class LoadContext:
    """Context of validators while a file is loaded. Models made by code have no context."""

    folder: Path  # of relative paths
    problems: Problems
    files: NamedFiles = field(default_factory=NamedFiles)
    accounts: Collection[str] | None = None  # None skips the check: they could not be read
    labels: Collection[str] | None = None  # likewise
    account: str | None = None  # of calls without one; by default the only account
    tls: ssl.SSLContext | None = None
    seen: set[tuple[object, str, object]] = field(default_factory=set)  # owner, kind, value
    label_sets: dict[object, Mapping[str, str]] = field(default_factory=dict)  # shared by calls

    def __post_init__(self) -> None:
        if self.accounts is None or len(self.accounts) == 1:
            self.account = self.account or next(iter(self.accounts or ("",)))


def validate(model: type[M], document: YamlMapping, context: LoadContext) -> M:
    """Return the model of a document; raise all problems of the context as a `ConfigError`."""
    loaded = None
    try:
        loaded = model.model_validate(document, context=context)
    except ValidationError as error:
        add_problems(error, document, context.problems)
    if loaded is None or context.problems.total:
        context.problems.fail()
    return loaded


def add_problems(
    error: ValidationError,
    document: Value,
    problems: Problems,
    path: tuple[str | int, ...] = (),
    line: int = 1,
) -> None:
    """Add the errors of a document, or of the part of one at `path` and `line`."""
    details = error.errors(include_url=False)
    for detail in details[: 4 * MAX_PROBLEMS]:
        if message := _message(detail):
            inner, inner_line = locate(document, detail["loc"], line)
            problems.add(inner_line, (*path, *inner), message)
    # Finding their lines is slow in a large mapping.
    problems.add_hidden(len(details[4 * MAX_PROBLEMS :]))


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


def invalid(message: str) -> PydanticCustomError:
    """Return the error for a validator of a value to raise."""
    return PydanticCustomError("expected", "{message}", {"message": message})


def invalid_at(key: str, message: str) -> ValidationError:
    """Return the error about a key for a validator of a model to raise."""
    error = InitErrorDetails(type=invalid(message), loc=(key,), input=None)
    return ValidationError.from_exception_data("config", [error])


def check_unique(value: V, info: ValidationInfo, kind: str, owner: object = None) -> V:
    """Return a value, such as the name of an account, if it occurs once in the file."""
    if isinstance(info.context, LoadContext):
        if (owner, kind, value) in info.context.seen:
            raise invalid(f"expected a unique {kind}; an earlier item has the same")
        info.context.seen.add((owner, kind, value))
    return value


# Sections.


class Section(BaseModel):
    """A mapping in the file. The docstrings of its attributes document the keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True
    )
    # Keys whose value can be in a file, named by `KEY_file`: every secret, and some long texts.
    file_keys: ClassVar[Collection[str]] = ()
    null_is_default: ClassVar[bool] = False  # whether an empty value of any key is its default

    @classmethod
    def __pydantic_init_subclass__(cls, **_kwargs: object) -> None:
        """Add every secret to `file_keys`."""
        for key, about in cls.model_fields.items():
            kinds = about.annotation, *get_args(about.annotation)  # of `X | None` also X
            is_secret = any(getattr(kind, "__origin__", kind) is Secret for kind in kinds)
            if is_secret and key not in cls.file_keys:
                cls.file_keys = [*cls.file_keys, key]

    @model_validator(mode="before")
    @classmethod
    def _prepare(cls, data: Any, info: ValidationInfo) -> Any:  # Any: as pydantic declares it
        """Read the files of keys, and mark problems that pydantic does not detect."""
        context = info.context
        if not isinstance(data, YamlMapping) or not isinstance(context, LoadContext):
            return data
        found: dict[str, object] = dict(data)
        known = {*cls.model_fields, *(f"{key}_file" for key in cls.file_keys)}
        mark_unknown_keys(found, known, context.problems)
        for key, about in cls.model_fields.items():
            value = found.get(key, data)
            if key in cls.file_keys:
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
        return check_unique(value, info, str(info.field_name), cls)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Describe the keys as written in the file, before `${NAME}` is replaced."""
        found = handler(schema)
        model = handler.resolve_ref_schema(found)
        for key, about in list(model["properties"].items()):
            if about.get("default") is not None and _DURATION in about.get("anyOf", ()):
                about["default"] = format_duration(about["default"])
            if key in cls.file_keys:
                model["properties"][f"{key}_file"] = {
                    "title": f"{about['title']} File",
                    "description": f"A file that contains the value of `{key}`; the path is"
                    " relative to the configuration. Read again when it changes.",
                    "type": "string",
                    "minLength": 1,
                }
        if either := [key for key in cls.file_keys if key in model.get("required", ())]:
            model["required"] = [key for key in model["required"] if key not in either]
            model["allOf"] = [
                {"oneOf": [{"required": [key]}, {"required": [f"{key}_file"]}]} for key in either
            ]
        return found


def mark_unknown_keys(found: dict[str, object], known: Collection[str], problems: Problems) -> None:
    """Replace the value of each unknown key by its problem, with the most similar known key."""
    unknown = [key for key in found if key not in known]
    for number, key in enumerate(unknown, problems.total):
        # A file may have a million of them, and finding similar keys is slow.
        if number < MAX_PROBLEMS:
            nearest = get_close_matches(key[:64].lower(), known, 1)
            hint = f"; did you mean `{nearest[0]}`?" if nearest else ""
            found[key] = InvalidValue(f"unknown key{hint}")
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


# Types of values.


def parse_duration(text: str) -> float:
    """Return the seconds of a duration in Prometheus format; raise `ValueError` for other text.

    A year has 365 days; `0` needs no unit. See "Float literals and time durations" in Prometheus'
    querying basics.
    """
    if not re.fullmatch(DURATION_PATTERN, text):
        raise ValueError(f"expected {DURATION_WORDS}")
    numbers = re.findall("([0-9]+)([a-z]+)", text)
    return sum(int(number) * _MILLISECONDS[unit] for number, unit in numbers) / 1000


def format_duration(seconds: float) -> str:
    """Return `seconds` as a duration, rounded to milliseconds."""
    rest = round(seconds * 1000)
    parts = []
    for unit in ("d", "h", "m", "s", "ms"):  # `30d` is easier to read than `4w2d`
        number, rest = divmod(rest, _MILLISECONDS[unit])
        if number:
            parts.append(f"{number}{unit}")
    return "".join(parts) or "0s"


class Expected(GroupedMetadata):
    """Constraints of a value, with one error message for all of them.

    With `keeps_messages`, the constraints keep their own messages, and only the documentation uses
    `words`.
    """

    def __init__(self, words: str, *constraints: object, keeps_messages: bool = False) -> None:
        self.words = words
        self._parts = constraints if keeps_messages else (*constraints, self)

    def __iter__(self) -> Iterator[object]:
        return iter(self._parts)

    def __get_pydantic_core_schema__(
        self,
        source: Any,  # Any: as pydantic declares it
        handler: GetCoreSchemaHandler,
    ) -> CoreSchema:
        """Replace all error messages of the value by one."""
        return core_schema.custom_error_schema(
            handler(source), "expected", custom_error_message=f"expected {self.words}"
        )


def _scalar(value: object) -> object:
    """Convert the text of an unquoted `${NAME}` to a number or boolean if it looks like one."""
    return resolve(value) if isinstance(value, Unresolved) else value


def _or_variable(**schema: object) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [schema, {"type": "string", "pattern": r"^\$\{.+\}$"}]})


def amount(maximum: int, kind: str = "") -> Expected:
    """Accept a number above 0."""
    return Expected(
        f"{kind}a number above 0, at most {maximum}",
        *(Strict(), Gt(0), Le(maximum), AllowInfNan(False), BeforeValidator(_scalar)),
        _or_variable(exclusiveMinimum=0, maximum=maximum, type="number"),
    )


def count(minimum: int, maximum: int) -> Expected:
    return Expected(
        f"a whole number from {minimum} to {maximum}",
        *(Strict(), Ge(minimum), Le(maximum), BeforeValidator(_scalar)),
        _or_variable(maximum=maximum, minimum=minimum, type="integer"),
    )


def text(
    words: str,
    pattern: str | None = None,
    *,
    min_length: int | None = None,
    max_length: int | None = None,
    check: Callable[[str], str] = str,
) -> Expected:
    """Accept text that matches `pattern` (Rust syntax) and for which `check` does not raise."""
    lengths = StringConstraints(strict=True, min_length=min_length, max_length=max_length)
    return Expected(words, lengths, StringConstraints(pattern=pattern), AfterValidator(check))


def _seconds(value: object, info: ValidationInfo) -> object:
    if isinstance(value, str):
        return parse_duration(value)
    # Code passes seconds. A number in a file has no unit; only 0 needs none.
    if info.context is not None and (value != 0 or isinstance(value, bool | float)):
        raise ValueError
    return value


def duration(minimum: str, maximum: str) -> Expected:
    """Accept a duration; the value is in seconds."""
    return Expected(
        f"{DURATION_WORDS}, from {minimum} to {maximum}",
        *(Strict(), Ge(parse_duration(minimum)), Le(parse_duration(maximum)), AllowInfNan(False)),
        BeforeValidator(_seconds),
        _or_variable(**_DURATION),
    )


def secret(words: str, pattern: str, *, keeps_blanks: bool = False) -> Expected:
    """Accept a secret that matches `pattern` (Python syntax). Messages never contain it.

    `keeps_blanks` keeps surrounding whitespace, but not the final line break of a file.
    """

    def read(value: object) -> object:
        if isinstance(value, Secret):
            return value
        text = value if isinstance(value, str) else ""
        text = re.sub(r"\r?\n\Z", "", text) if keeps_blanks else text.strip()
        if re.fullmatch(pattern, text):
            return Secret(text)
        if isinstance(value, bool | int | float):
            raise invalid("expected text; a key that looks like a number needs quotes")
        raise invalid(f"expected {words}" if text else "expected a key, but the value is empty")

    return Expected(words, BeforeValidator(read), keeps_messages=True)


def check_url(value: str, *schemes: str, without: str, path: bool = True) -> URL:
    """Return a URL; raise `ValueError` for one without a host, or with characters of `without`."""
    url = URL(value)
    if url.scheme not in schemes or not url.host or url.explicit_port == 0:
        raise ValueError
    if re.search(f"[{without}]", value) or not (path or url.path in {"", "/"}):
        raise ValueError
    return url


def _base_url(value: str) -> str:
    check_url(value, "http", "https", without="?#@")
    return value.rstrip("/")


def _known(names: str, words: str) -> Expected:
    """Accept a name in the attribute `names` of the load context, or any name if that is None."""

    def check(name: str, info: ValidationInfo) -> str:
        known = getattr(info.context, names, None)
        if known is not None and name not in known:
            raise ValueError
        return name

    return Expected(words, Strict(), AfterValidator(check))


def _authorities(pem: str) -> str:
    try:
        ssl.create_default_context(cadata=ascii_pem(pem))
    except (ssl.SSLError, ValueError):
        raise invalid(
            "expected PEM certificates, between `BEGIN CERTIFICATE` and `END CERTIFICATE`"
        ) from None
    return pem


def _or_default_account(value: object, info: ValidationInfo) -> object:
    if value in (None, "") and isinstance(info.context, LoadContext):
        if info.context.account is None:
            raise invalid("missing required key; it is optional only if there is one account")
        return info.context.account
    return value


SecretKey = Annotated[
    Secret,
    secret("a key: up to 1024 printable ASCII characters without spaces", "[!-~]{1,1024}"),
]
# Addresses may contain spaces and non-ASCII letters.
ADDRESS_PATTERN: Final = r"[^\x00-\x1f\x7f\ud800-\udfff]{1,4096}"
SecretAddress = Annotated[
    Secret,
    secret("an address of up to 4096 characters, without control characters", ADDRESS_PATTERN),
]
Password = Annotated[
    Secret,
    secret(
        "text of up to 4096 characters, used unchanged",
        "[^\ud800-\udfff]{1,4096}",
        keeps_blanks=True,
    ),
]
Name = Annotated[
    str, text("a name of 1 to 64 letters, digits, `_`, `.` or `-`", r"^[A-Za-z0-9_.-]{1,64}$")
]
KnownAccount = Annotated[str, _known("accounts", "the name of one of the accounts")]
KnownAccounts = Annotated[tuple[KnownAccount, ...], Field(min_length=1, max_length=MAX_ACCOUNTS)]
OwnAccount = Annotated[
    KnownAccount, BeforeValidator(_or_default_account), Field(validate_default=True)
]
"""The account of a call; its default, an empty text, becomes the only account."""

KindName = Annotated[Kind, Expected("`call` or `message`")]

KnownLabel = Annotated[
    str,
    _known("labels", "one of the names in `watch.labels`"),
    Expected("names in `watch.labels`", keeps_messages=True),
]
LabelValue = Annotated[str, Field(strict=True, max_length=MAX_LABEL_VALUE)]
BaseUrl = Annotated[
    str,
    text(
        "a URL `http://HOST...` or `https://HOST...` without user, query and fragment",
        "^[!-~]+$",
        check=_base_url,
    ),
    Field(json_schema_extra={"format": "uri", "pattern": "^https?://[^?#@]+$"}),
]
Switch = Annotated[bool, Strict(), BeforeValidator(_scalar), Expected("`true` or `false`")]
Pem = Annotated[str, Expected("text in PEM")]
Authorities = Annotated[Pem, AfterValidator(_authorities)]
"""Certificate authorities; empty for those of the system."""
