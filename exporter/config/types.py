"""The types of configuration values, each with the one error message that says what is expected."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from annotated_types import Ge, GroupedMetadata, Gt, Le
from pydantic import (
    AfterValidator,
    AllowInfNan,
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    Strict,
    StringConstraints,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic_core import CoreSchema, core_schema

from exporter.config.document import Unresolved, resolve
from exporter.config.validation import invalid
from exporter.secrets import Secret

MAX_ACCOUNTS: Final = 1000
MAX_LABEL_VALUE: Final = 128

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


def parse_duration(text: str) -> float:
    """Return the seconds of a duration in Prometheus format, such as `1m30s`.

    A year has 365 days; `0` needs no unit. See "Float literals and time durations" in Prometheus'
    querying basics.

    Raises:
        ValueError: `text` is not a duration. The message does not contain it.
    """
    if not re.fullmatch(DURATION_PATTERN, text):
        raise ValueError(f"expected {DURATION_WORDS}")
    numbers = re.findall("([0-9]+)([a-z]+)", text)
    return sum(int(number) * _MILLISECONDS[unit] for number, unit in numbers) / 1000


def format_duration(seconds: float) -> str:
    """Return `seconds` as a duration, rounded to milliseconds.

    The largest unit is the day: `30d` is easier to read than `4w2d`.
    """
    rest = round(seconds * 1000)
    parts = []
    for unit in ("d", "h", "m", "s", "ms"):
        number, rest = divmod(rest, _MILLISECONDS[unit])
        if number:
            parts.append(f"{number}{unit}")
    return "".join(parts) or "0s"


class _Message:
    """Replaces all error messages of a value by one."""

    def __init__(self, words: str) -> None:
        self._words = words

    def __get_pydantic_core_schema__(
        self,
        source: Any,  # Any: as pydantic declares it
        handler: GetCoreSchemaHandler,
    ) -> CoreSchema:
        return core_schema.custom_error_schema(
            handler(source), "expected", custom_error_message=f"expected {self._words}"
        )


class Expected(GroupedMetadata):
    """Constraints of a value, with one error message for all of them.

    Args:
        words: what is expected, for messages and the documentation.
        constraints: for pydantic.
        keeps_messages: keep the messages of the constraints, which are more precise.
    """

    def __init__(self, words: str, *constraints: object, keeps_messages: bool = False) -> None:
        self.words = words
        self._parts = constraints if keeps_messages else (*constraints, _Message(words))

    def __iter__(self) -> Iterator[object]:
        """Yield the annotations for pydantic."""
        return iter(self._parts)


def _scalar(value: object) -> object:
    """Convert the text of an unquoted `${NAME}` to a number or boolean if it looks like one."""
    return resolve(value) if isinstance(value, Unresolved) else value


def amount(words: str, maximum: float) -> Expected:
    """Accept a number above 0."""
    return Expected(
        words, Strict(), Gt(0), Le(maximum), AllowInfNan(False), BeforeValidator(_scalar)
    )


def count(minimum: int, maximum: int) -> Expected:
    """Accept a whole number."""
    words = f"a whole number from {minimum} to {maximum}"
    return Expected(words, Strict(), Ge(minimum), Le(maximum), BeforeValidator(_scalar))


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
        WithJsonSchema({"type": "string", "format": "duration", "pattern": DURATION_PATTERN}),
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


SecretKey = Annotated[
    Secret,
    secret("a key: up to 1024 printable ASCII characters without spaces", "[!-~]{1,1024}"),
]
# Addresses may contain spaces and non-ASCII letters.
SecretAddress = Annotated[
    Secret,
    secret(
        "an address of up to 4096 characters, without control characters",
        "[^\x00-\x1f\x7f\ud800-\udfff]{1,4096}",
    ),
]
Password = Annotated[
    Secret,
    secret(
        "text of up to 4096 characters, used unchanged",
        "[^\ud800-\udfff]{1,4096}",
        keeps_blanks=True,
    ),
]


def _known_account(name: str, info: ValidationInfo) -> str:
    if info.context and info.context.accounts is not None and name not in info.context.accounts:
        raise invalid("expected the name of one of the accounts")
    return name


def known_label(name: str, info: ValidationInfo) -> str:
    """Check that a name is in `watch.labels`."""
    if info.context and info.context.labels is not None and name not in info.context.labels:
        raise invalid("expected one of the names in `watch.labels`")
    return name


def _base_url(value: str) -> str:
    # Check for whitespace and control characters first, because urlsplit removes some. Reading
    # `port` validates it.
    if not re.fullmatch("[!-~]+", value) or re.search("[?#]", value):
        raise ValueError
    url = urlsplit(value)
    is_http = url.scheme in {"http", "https"}
    if not is_http or not url.hostname or url.port == 0 or "@" in url.netloc:
        raise ValueError
    return value.rstrip("/")


Name = Annotated[
    str, text("a name of 1 to 64 letters, digits, `_`, `.` or `-`", r"^[A-Za-z0-9_.-]{1,64}$")
]
KnownAccount = Annotated[Name, AfterValidator(_known_account)]
KnownAccounts = Annotated[tuple[KnownAccount, ...], Field(min_length=1, max_length=MAX_ACCOUNTS)]
KnownLabel = Annotated[
    str, Expected("names in `watch.labels`", keeps_messages=True), AfterValidator(known_label)
]
LabelValue = Annotated[str, Field(strict=True, max_length=MAX_LABEL_VALUE)]
BaseUrl = Annotated[
    str,
    text(
        "a URL `http://HOST...` or `https://HOST...` without user, query and fragment",
        check=_base_url,
    ),
    Field(json_schema_extra={"format": "uri", "pattern": "^https?://[^?#@]+$"}),
]
Switch = Annotated[bool, Strict(), BeforeValidator(_scalar), Expected("`true` or `false`")]
