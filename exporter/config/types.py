"""The types of the values: what each takes, and the words for it.

Whatever is wrong with a value, its one message says what was expected.
"""

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
# Nine digits of years are far beyond every bound, and keep the arithmetic exact.
_UNITS: Final = "".join(f"([0-9]{{1,9}}{unit})?" for unit in _MILLISECONDS)
DURATION_WORDS: Final = "a duration such as `15s`, `1m30s` or `3d`"

DURATION_PATTERN: Final = f"^(0|(?=[0-9]){_UNITS})$"
"""A duration as of prometheus/common's model.ParseDuration, every unit at most once, from large to
small; a regular expression of JSON Schema (ECMA-262), too."""


def parse_duration(text: str) -> float:
    """Return the seconds of a duration as Prometheus writes it, such as `1m30s`.

    A year has 365 days; a bare `0` needs no unit. See "Float literals and time durations" in
    Prometheus' querying basics.

    Raises:
        ValueError: `text` is not a duration. The message does not repeat it.
    """
    if not re.fullmatch(DURATION_PATTERN, text):
        raise ValueError(f"expected {DURATION_WORDS}")
    numbers = re.findall("([0-9]+)([a-z]+)", text)
    return sum(int(number) * _MILLISECONDS[unit] for number, unit in numbers) / 1000


def format_duration(seconds: float) -> str:
    """Write `seconds`, 0 or more, in the fewest units of a day or less; rounds to milliseconds.

    Years and weeks are left out: `30d` says more than `4w2d`.
    """
    rest = round(seconds * 1000)
    parts = []
    for unit in ("d", "h", "m", "s", "ms"):
        number, rest = divmod(rest, _MILLISECONDS[unit])
        if number:
            parts.append(f"{number}{unit}")
    return "".join(parts) or "0s"


class _Message:
    """Replaces every message about a value."""

    def __init__(self, words: str) -> None:
        self._words = words

    def __get_pydantic_core_schema__(
        self,
        source: Any,  # Any: pydantic passes whatever was annotated
        handler: GetCoreSchemaHandler,
    ) -> CoreSchema:
        return core_schema.custom_error_schema(
            handler(source), "expected", custom_error_message=f"expected {self._words}"
        )


class Expected(GroupedMetadata):
    """What a value has to be: its one message, whichever of the constraints it fails.

    Args:
        words: for people.
        constraints: for pydantic.
        keeps_messages: those of the constraints themselves, which say more.
    """

    def __init__(self, words: str, *constraints: object, keeps_messages: bool = False) -> None:
        self.words = words
        self._parts = constraints if keeps_messages else (*constraints, _Message(words))

    def __iter__(self) -> Iterator[object]:
        """Yield what pydantic makes of it."""
        return iter(self._parts)


def _scalar(value: object) -> object:
    """Read `rate_limit: ${RATE}` as the number that it would be without the variable."""
    return resolve(value) if isinstance(value, Unresolved) else value


def amount(words: str, maximum: float) -> Expected:
    """Take a number above 0."""
    return Expected(
        words, Strict(), Gt(0), Le(maximum), AllowInfNan(False), BeforeValidator(_scalar)
    )


def count(minimum: int, maximum: int) -> Expected:
    """Take a whole number."""
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
    """Take a text that matches a pattern of Rust, and that `check` lets pass."""
    lengths = StringConstraints(strict=True, min_length=min_length, max_length=max_length)
    return Expected(words, lengths, StringConstraints(pattern=pattern), AfterValidator(check))


def _seconds(value: object, info: ValidationInfo) -> object:
    if isinstance(value, str):
        return parse_duration(value)
    # Code gives seconds. In a file, 15 is no duration: seconds or minutes? Only 0 needs no unit.
    if info.context is not None and (value != 0 or isinstance(value, bool | float)):
        raise ValueError
    return value


def duration(minimum: str, maximum: str) -> Expected:
    """Take a duration, as seconds."""
    return Expected(
        f"{DURATION_WORDS}, from {minimum} to {maximum}",
        *(Strict(), Ge(parse_duration(minimum)), Le(parse_duration(maximum)), AllowInfNan(False)),
        BeforeValidator(_seconds),
        WithJsonSchema({"type": "string", "format": "duration", "pattern": DURATION_PATTERN}),
    )


def secret(words: str, pattern: str, *, keeps_blanks: bool = False) -> Expected:
    """Take the text of a secret that matches a pattern of Python, without ever repeating it.

    With `keeps_blanks`, one of somebody else's that may begin or end with blanks; the last line
    break of a file is not part of it.
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
        raise invalid(f"expected {words}" if text else "expected a key, and it is empty")

    return Expected(words, BeforeValidator(read), keeps_messages=True)


SecretKey = Annotated[
    Secret,
    secret("a key: printable ASCII characters without blanks, 1024 at most", "[!-~]{1,1024}"),
]
# Blanks and letters of any language may stand in addresses.
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
        "text of up to 4096 characters, taken as it is",
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
    # Blanks and controls are looked for first: urlsplit drops some. Reading the port checks it.
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
KnownLabel = Annotated[str, AfterValidator(known_label)]
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
