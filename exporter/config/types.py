"""The types of the values: what each takes, and the words for it.

Whatever is wrong with a value, its one message says what was expected.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationInfo,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from exporter.config.document import InvalidValue, Unresolved, resolve
from exporter.config.validation import invalid
from exporter.secrets import Secret

MAX_ACCOUNTS: Final = 1000
MAX_LABEL_VALUE: Final = 128

# Durations as of prometheus/common's model.ParseDuration: every unit at most once, from large to
# small.
_MILLISECONDS: Final = {
    "y": 365 * 86_400_000,
    "w": 7 * 86_400_000,
    "d": 86_400_000,
    "h": 3_600_000,
    "m": 60_000,
    "s": 1_000,
    "ms": 1,
}
# Nine digits of years are far beyond every bound, and keep the arithmetic exact.
_UNITS: Final = "".join(rf"(?:([0-9]{{1,9}}){unit})?" for unit in _MILLISECONDS)
_DURATION: Final = re.compile(rf"(?!$)(?:{_UNITS}|0)", re.ASCII)
_EXPECTED_DURATION: Final = "expected a duration such as `15s`, `1m30s` or `3d`"

DURATION_PATTERN: Final = (
    r"^(0|(?=[0-9])" + "".join(f"([0-9]{{1,9}}{unit})?" for unit in _MILLISECONDS) + ")$"
)
"""A duration as a regular expression of JSON Schema (ECMA-262)."""


def parse_duration(text: str) -> float:
    """Return the seconds of a duration as Prometheus writes it, such as `1m30s`.

    Units are y (365 days), w, d, h, m, s and ms, in this order, each at most once; a bare `0`
    needs no unit. See "Float literals and time durations" in Prometheus' querying basics.

    Raises:
        ValueError: `text` is not a duration. The message does not repeat it.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(_EXPECTED_DURATION)
    numbers = zip(match.groups(), _MILLISECONDS.values(), strict=True)
    return sum(int(number) * unit for number, unit in numbers if number) / 1000


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


class _Annotation:
    """An annotation that wraps the schema of a value."""

    __slots__ = ()

    def wrap(self, schema: CoreSchema) -> CoreSchema:
        """Return the schema of the value, changed."""
        raise NotImplementedError

    def __get_pydantic_core_schema__(
        self,
        source: Any,  # Any: pydantic passes whatever was annotated
        handler: GetCoreSchemaHandler,
    ) -> CoreSchema:
        """Wrap what is annotated."""
        return self.wrap(handler(source))


@dataclass(frozen=True, slots=True)
class Expected(_Annotation):
    """Replaces every message about a value by what was expected."""

    words: str

    def wrap(self, schema: CoreSchema) -> CoreSchema:
        """Replace the message."""
        return _with_message(f"expected {self.words}", schema)


def _with_message(message: str, schema: CoreSchema) -> CoreSchema:
    return core_schema.custom_error_schema(
        schema, custom_error_type="expected", custom_error_message=message
    )


def scalar(value: object) -> object:
    """Read `rate_limit: ${RATE}` as the number that it would be without the variable."""
    return resolve(value) if isinstance(value, Unresolved) else value


def _seconds(value: object, info: ValidationInfo) -> object:
    if isinstance(value, str):
        return parse_duration(value)
    # Code gives seconds. In a file, 15 is no duration: seconds or minutes? Only 0 needs no unit.
    if info.context is not None and (value != 0 or isinstance(value, bool | float)):
        raise ValueError
    return value


@dataclass(frozen=True, slots=True)
class Count(_Annotation):
    """Takes whole numbers from `minimum` to `maximum`."""

    minimum: int
    maximum: int

    def wrap(self, _schema: CoreSchema) -> CoreSchema:
        """Take a number, or a variable that holds one."""
        number = core_schema.int_schema(strict=True, ge=self.minimum, le=self.maximum)
        return _with_message(
            f"expected a whole number from {self.minimum} to {self.maximum}",
            core_schema.no_info_before_validator_function(scalar, number),
        )


@dataclass(frozen=True, slots=True)
class Duration(_Annotation):
    """Takes durations from `minimum` to `maximum`, as seconds."""

    minimum: str
    maximum: str

    def wrap(self, _schema: CoreSchema) -> CoreSchema:
        """Take a duration from a file, or seconds from code."""
        minimum, maximum = parse_duration(self.minimum), parse_duration(self.maximum)
        seconds = core_schema.float_schema(strict=True, ge=minimum, le=maximum, allow_inf_nan=False)
        return _with_message(
            f"{_EXPECTED_DURATION}, from {self.minimum} to {self.maximum}",
            core_schema.with_info_before_validator_function(_seconds, seconds),
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Describe what a file says, not the seconds that it becomes."""
        return {"type": "string", "format": "duration", "pattern": DURATION_PATTERN}


@dataclass(frozen=True, slots=True)
class SecretText(_Annotation):
    """Takes the text of a secret, without ever repeating it.

    Attributes:
        words: what is expected.
        pattern: what it has to match.
        keeps_blanks: a secret of somebody else's may begin or end with blanks; the last line break
            of a file is not part of it.
    """

    words: str
    pattern: str
    keeps_blanks: bool = False

    def wrap(self, schema: CoreSchema) -> CoreSchema:
        """Make a secret of a text first."""
        return core_schema.no_info_before_validator_function(self._secret, schema)

    def _secret(self, value: object) -> object:
        if isinstance(value, Secret | InvalidValue):
            return value
        text = value if isinstance(value, str) else ""
        text = re.sub(r"\r?\n\Z", "", text) if self.keeps_blanks else text.strip()
        if re.fullmatch(self.pattern, text):
            return Secret(text)
        if isinstance(value, bool | int | float):
            raise invalid("expected text; a key that looks like a number needs quotes")
        raise invalid(f"expected {self.words}" if text else "expected a key, and it is empty")


SecretKey = Annotated[
    Secret,
    SecretText("a key: printable ASCII characters without blanks, 1024 at most", "[!-~]{1,1024}"),
]
# Blanks and letters of any language may stand in addresses.
SecretAddress = Annotated[
    Secret,
    SecretText(
        "an address of up to 4096 characters, without control characters",
        "[^\x00-\x1f\x7f\ud800-\udfff]{1,4096}",
    ),
]
Password = Annotated[
    Secret,
    SecretText(
        "text of up to 4096 characters, taken as it is",
        "[^\ud800-\udfff]{1,4096}",
        keeps_blanks=True,
    ),
]


def _known_account(name: str, info: ValidationInfo) -> str:
    if info.context and info.context.accounts is not None and name not in info.context.accounts:
        raise invalid("expected the name of one of the accounts")
    return name


def _known_label(name: str, info: ValidationInfo) -> str:
    if info.context and info.context.labels is not None and name not in info.context.labels:
        raise invalid("expected one of the names in `watch.labels`")
    return name


def _base_url(value: str) -> str:
    # Blanks and controls are looked for first: urlsplit drops some. Reading the port checks it.
    if not re.fullmatch("[!-~]+", value) or re.search("[?#]", value):
        raise ValueError
    url = urlsplit(value)
    if (
        url.scheme not in {"http", "https"}
        or not url.hostname
        or url.port == 0
        or "@" in url.netloc
    ):
        raise ValueError
    return value.rstrip("/")


Name = Annotated[
    str,
    Field(strict=True, pattern=r"^[A-Za-z0-9_.-]{1,64}$"),
    Expected("a name of 1 to 64 letters, digits, `_`, `.` or `-`"),
]
KnownAccount = Annotated[Name, AfterValidator(_known_account)]
KnownAccounts = Annotated[tuple[KnownAccount, ...], Field(min_length=1, max_length=MAX_ACCOUNTS)]
KnownLabel = Annotated[str, AfterValidator(_known_label)]
LabelValue = Annotated[str, Field(strict=True, max_length=MAX_LABEL_VALUE)]
BaseUrl = Annotated[
    str,
    Field(strict=True, json_schema_extra={"format": "uri", "pattern": "^https?://[^?#@]+$"}),
    AfterValidator(_base_url),
    Expected("a URL `http://HOST...` or `https://HOST...` without user, query and fragment"),
]
Switch = Annotated[bool, Field(strict=True), BeforeValidator(scalar), Expected("`true` or `false`")]
