"""The types of the values: what each takes, and the words for it.

Whatever is wrong with a value, its one message says what was expected.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, get_args
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
)
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema
from yarl import URL

from exporter.config.calls import MAX_LABEL_VALUE
from exporter.config.databases import database_problem
from exporter.config.durations import JSON_PATTERN, parse_duration
from exporter.config.interpolation import Unresolved
from exporter.config.scalars import resolve
from exporter.secrets import Secret, decode_signing_key
from exporter.ssrf import is_forbidden, is_ip_address

# What the exporter itself puts on series, what Prometheus and Kubernetes put on targets, and what
# alerts put on theirs: there, a label of the user's would be renamed, added over or written over.
RESERVED_LABELS = frozenset(
    {"account", "result", "status", "key", "state", "outcome", "code", "operation", "source"}
    | {"canary", "stage"}
    | {"le", "quantile", "job", "instance"}
    | {"cluster", "namespace", "service", "pod", "container", "endpoint", "node"}
    | {"alertname", "severity", "window"}
)
LEDGER: Final = "sqlite:///esms-exporter.db"
"""The default of `ledger.url`."""

_LEDGER_URL: Final = "sqlite:///PATH or postgresql://USER:PASSWORD@HOST/DATABASE"
_NO_CONTROLS = re.compile("[!-~](?:[ -~]*[!-~])?")


@dataclass(frozen=True, slots=True)
class Words:
    """Replaces every message about a value."""

    expected: str

    def __get_pydantic_core_schema__(
        self,
        source: Any,  # Any: pydantic passes whatever was annotated
        handler: GetCoreSchemaHandler,
    ) -> CoreSchema:
        """Wrap the schema of the value."""
        return core_schema.custom_error_schema(
            handler(source),
            custom_error_type="expected",
            custom_error_message=f"expected {self.expected}",
        )


def _scalar(value: object) -> object:
    """Read `rate_limit: ${RATE}` as the number that it would be without the variable."""
    return resolve(value) if isinstance(value, Unresolved) else value


def _seconds(value: object) -> object:
    """Read a duration; seconds, which code gives, are left as they are."""
    return parse_duration(value) if isinstance(value, str) else value


@dataclass(frozen=True, slots=True)
class Count:
    """Takes whole numbers from `least` to `most`."""

    least: int
    most: int

    def __get_pydantic_core_schema__(
        self,
        source: Any,  # Any: pydantic passes whatever was annotated
        handler: GetCoreSchemaHandler,
    ) -> CoreSchema:
        """Take a number, or a variable that holds one."""
        return core_schema.custom_error_schema(
            core_schema.no_info_before_validator_function(
                _scalar, core_schema.int_schema(strict=True, ge=self.least, le=self.most)
            ),
            custom_error_type="expected",
            custom_error_message=f"expected a whole number from {self.least} to {self.most}",
        )


@dataclass(frozen=True, slots=True)
class Duration:
    """Takes durations from `least` to `most`, as seconds."""

    least: str
    most: str

    def __get_pydantic_core_schema__(
        self,
        source: Any,  # Any: pydantic passes whatever was annotated
        handler: GetCoreSchemaHandler,
    ) -> CoreSchema:
        """Take a duration from a file, or seconds from code."""
        least, most = parse_duration(self.least), parse_duration(self.most)
        return core_schema.custom_error_schema(
            core_schema.no_info_before_validator_function(
                _seconds,
                core_schema.float_schema(strict=True, ge=least, le=most, allow_inf_nan=False),
            ),
            custom_error_type="expected",
            custom_error_message="expected a duration such as `15s`, `1m30s` or `3d`,"
            f" from {self.least} to {self.most}",
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Describe what a file says, not the seconds that it becomes."""
        return {"type": "string", "format": "duration", "pattern": JSON_PATTERN}


def is_duration(field: FieldInfo) -> bool:
    """Tell whether a field of a model is a time."""
    choices = get_args(field.annotation)  # where it may be left out, as `... | None`
    within = [item for choice in choices for item in getattr(choice, "__metadata__", ())]
    return any(isinstance(item, Duration) for item in (*field.metadata, *within))


def _base_url(value: str) -> str:
    url = urlsplit(value)
    # Reading the port checks it. Blanks and controls are looked for first: urlsplit drops some.
    if (
        not _NO_CONTROLS.fullmatch(value)
        or " " in value
        or url.scheme not in {"http", "https"}
        or not url.hostname
        or url.port == 0
        or "@" in url.netloc
        or "?" in value
        or "#" in value
    ):
        raise ValueError
    return value.rstrip("/")


def _label_name(value: str) -> str:
    if value.startswith("__") or value in RESERVED_LABELS:
        raise ValueError
    return value


def _ledger_url(value: Secret) -> Secret:
    url = value.reveal()
    # SQLAlchemy would take what follows a question mark for options.
    if not re.fullmatch(r"sqlite:///[^\x00-\x1f\x7f?]+|postgresql://.+", url):
        problem: str | None = f"expected {_LEDGER_URL}"
    else:
        problem = database_problem(value)
    if problem:
        raise PydanticCustomError("expected", "{problem}", {"problem": problem})
    return value


Amount = Annotated[
    float,
    Field(strict=True, gt=0, le=1e15, allow_inf_nan=False),
    BeforeValidator(_scalar),
    Words("an amount in VND: a number above 0, at most 1000000000000000"),
]


def _target_url(value: Secret) -> Secret:
    url = urlsplit(value.reveal())
    if url.scheme not in {"http", "https"} or not url.hostname or url.port == 0 or url.fragment:
        raise ValueError
    # The client is stricter, and would find out where nobody expects it.
    if not URL(value.reveal()).host:
        raise ValueError
    # A name is looked at when it is connected to; here, what can be seen to fail.
    if is_ip_address(url.hostname) and is_forbidden(url.hostname):
        raise ValueError
    return value


def _signing_key(value: Secret) -> Secret:
    decode_signing_key(value)
    return value


def _proxy_url(value: Secret) -> Secret:
    text = value.reveal()
    url = URL(text)
    plain = bool(_NO_CONTROLS.fullmatch(text)) and url.scheme in {"http", "https"} and url.host
    if not plain or url.path not in {"", "/"} or re.search(r"[ ?#]", text) or text.count("@") > 1:
        raise ValueError
    if ":" in (url.user or ""):  # which no proxy could tell from the password's beginning
        raise ValueError
    return value


ProxyUrl = Annotated[
    Secret,
    Field(json_schema_extra={"pattern": "^https?://"}),
    AfterValidator(_proxy_url),
    Words("a URL `http://HOST:PORT`; user and password before the host percent-encoded"),
]
AccountName = Annotated[
    str,
    Field(strict=True, pattern=r"^[A-Za-z0-9_.-]{1,64}$"),
    Words("a name of 1 to 64 letters, digits, `_`, `.` or `-`"),
]
BaseUrl = Annotated[
    str,
    Field(strict=True, json_schema_extra={"format": "uri", "pattern": "^https?://[^?#@]+$"}),
    AfterValidator(_base_url),
    Words("a URL `http://HOST...` or `https://HOST...` without user, query and fragment"),
]
FilePattern = Annotated[
    str,
    Field(strict=True, min_length=1, max_length=1024, pattern=r"^[^\x00-\x1f]+$"),
    Field(pattern=r"\.(yaml|yml|json|txt|csv)$"),
    Words("a path or pattern that ends in .yaml, .yml, .json, .txt or .csv"),
]
LabelName = Annotated[
    str,
    Field(strict=True, pattern=r"^[a-z_][a-z0-9_]{0,63}$"),
    AfterValidator(_label_name),
    Words(
        "a lower-case label name that does not start with `__` and is not one of the exporter's,"
        " of a target's (such as `pod` or `service`) or of an alert's (such as `severity`)"
    ),
]
LabelValue = Annotated[str, Field(strict=True, max_length=MAX_LABEL_VALUE)]
LabelValues = Annotated[
    dict[str, LabelValue | Annotated[tuple[LabelValue, ...], Field(min_length=1)]],
    Words("a mapping of names in `watch.labels` to a text each, or to a list of texts"),
]
LedgerUrl = Annotated[
    Secret,
    Field(json_schema_extra={"pattern": "^(sqlite:///|postgresql://).+", "default": LEDGER}),
    Words(_LEDGER_URL),
    AfterValidator(_ledger_url),
]
ResultName = Annotated[
    Literal["success", "failure", "unknown"], Words("`success`, `failure` or `unknown`")
]
StatusName = Annotated[
    Literal[
        "answered",
        "no_answer",
        "busy",
        "failed",
        "rejected",
        "none",
        "other",
        "not_found",
        "expired",
    ],
    Words("a value of the label `status`"),
]
SigningKey = Annotated[
    Secret,
    Field(json_schema_extra={"pattern": "^whsec_"}),
    AfterValidator(_signing_key),
    Words("`whsec_` and 24 to 64 bytes in Base64"),
]
TargetUrl = Annotated[
    Secret,
    Field(json_schema_extra={"pattern": "^https?://[^#]+$"}),
    AfterValidator(_target_url),
    Words("`https://HOST...` or `http://HOST...`, and no link-local or metadata address"),
]
Rate = Annotated[
    float,
    Field(strict=True, gt=0, le=100_000, allow_inf_nan=False),
    BeforeValidator(_scalar),
    Words("a number above 0, at most 100000"),
]
Switch = Annotated[
    bool,
    Field(strict=True),
    BeforeValidator(_scalar),
    Words("`true` or `false`"),
]
