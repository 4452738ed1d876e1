"""The section `watch`: the calls to watch, their labels and their sources."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    SkipValidation,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from exporter.config.databases import SqlConfig
from exporter.config.document import Value, YamlMapping, YamlSequence, locate
from exporter.config.validation import (
    MAX_LABEL_VALUE,
    Expected,
    KindName,
    KnownAccounts,
    KnownLabel,
    LoadContext,
    Name,
    OwnAccount,
    SecretKey,
    Section,
    add_problems,
    check_unique,
    count,
    invalid,
    mark_unknown_keys,
    text,
)
from exporter.ids import ReferenceId, ReferenceKey, reference_id, reference_key

MAX_LABELS: Final = 5
MAX_PATTERNS: Final = 100
MAX_TOKENS: Final = 1000
MAX_QUERIES: Final = 100

# Labels of the exporter's series, of targets in Prometheus and Kubernetes, and of alerts. They
# would rename, hide or overwrite a user label of the same name.
RESERVED_LABELS: Final = frozenset(
    {"account", "result", "status", "key", "state", "outcome", "code", "operation", "source"}
    | {"canary", "kind", "stage"}
    | {"le", "quantile", "job", "instance"}
    | {"cluster", "namespace", "service", "pod", "container", "endpoint", "node"}
    | {"alertname", "severity", "window"}
)

# Lone surrogates cannot be encoded. The others would break lines in logs and `/metrics`.
_UNPRINTABLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# Label sets that calls share, to save memory.
_MAX_SHARED: Final = 10_000
_NO_LABELS: Final[Mapping[str, str]] = MappingProxyType({})


def _reference_id(value: object) -> ReferenceId:
    if isinstance(value, bool | int | float):
        raise invalid("expected text; an id that looks like a number needs quotes")
    if not isinstance(value, str):
        raise invalid("expected an id")
    # Copy the id, which outlives the document: otherwise, the document's memory is not returned to
    # the system.
    copy = str(value.encode("utf-8", "surrogatepass"), "utf-8", "surrogatepass")
    try:
        return reference_id(copy)
    except ValueError as error:
        raise invalid(str(error)) from None


def _label_text(value: str) -> str:
    if len(value) > MAX_LABEL_VALUE or _UNPRINTABLE.search(value):
        raise invalid(f"expected at most {MAX_LABEL_VALUE} characters, and no control characters")
    return value


def _shared(labels: dict[str, str], info: ValidationInfo[LoadContext]) -> Mapping[str, str]:
    known = info.context.label_sets
    if len(known) >= _MAX_SHARED:
        known.clear()
    return known.setdefault(tuple(sorted(labels.items())), MappingProxyType(labels))


LabelText = Annotated[
    str,
    Field(strict=True, json_schema_extra={"maxLength": MAX_LABEL_VALUE}),
    Expected("text; write it in quotes"),
    AfterValidator(_label_text),
]


@dataclass(frozen=True, slots=True)
class CallConfig:
    """A call to watch; calls with equal labels share one mapping."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    reference_id: Annotated[SkipValidation[ReferenceId], BeforeValidator(_reference_id)]
    """The ReferenceId that the provider returned for the call."""

    account: OwnAccount = ""
    """The name of the account that placed the call. Optional if there is one account."""

    labels: Annotated[Mapping[KnownLabel, LabelText], AfterValidator(_shared)] = field(
        default_factory=lambda: _NO_LABELS
    )
    """Labels of the call; the names are those in `watch.labels`."""

    kind: KindName | None = None
    """`message` for a message (Voice OTP, SMS, Zalo and Viber), `call` for a call. Default: the
    `default_kind` of the account."""


def _item(value: object, info: ValidationInfo[LoadContext]) -> object:
    """Return an item of a list of calls as a mapping."""
    if isinstance(value, YamlMapping):
        found: dict[str, object] = dict(value)
        if found.get("labels", value) is None:
            del found["labels"]
        mark_unknown_keys(found, CallConfig.__slots__, info.context.problems)
        return found
    if value is None or isinstance(value, list):
        raise invalid("expected an id, or a mapping with the key `reference_id`")
    return {"reference_id": _reference_id(value)}


_CALL: TypeAdapter[CallConfig] = TypeAdapter(Annotated[CallConfig, BeforeValidator(_item)])


def validate_calls(
    items: Iterable[tuple[int, Value]],
    context: LoadContext,
    path: tuple[str | int, ...] = (),
    *,
    unique: bool = False,
) -> Iterator[CallConfig]:
    """Yield the valid calls of a list: `watch.calls`, a file of calls, or the rows of a query.

    `items` are pairs of a line and a value, `path` leads to the list in the file. With `unique`,
    refuse a call that occurs twice.
    """
    # By account: the line of the first occurrence of each id.
    seen = defaultdict[str, dict[ReferenceKey, int]](dict)
    for index, (line, item) in enumerate(items):
        here = (*path, index)
        try:
            call = _CALL.validate_python(item, context=context)
        except ValidationError as error:
            add_problems(error, item, context.problems, here, line)
            continue
        if unique:
            lines, key = seen[call.account], reference_key(call.reference_id)
            if key in lines:
                own = () if isinstance(item, str) else ("reference_id",)
                message = f"duplicate call; the first is on line {lines[key]}"
                context.problems.add(locate(item, own, line)[1], (*here, *own), message)
            lines.setdefault(key, line)
        yield call


def _calls(value: object, info: ValidationInfo) -> tuple[CallConfig, ...]:
    if isinstance(value, YamlSequence) and isinstance(info.context, LoadContext):
        items = zip(value.lines, value, strict=True)
        return tuple(validate_calls(items, info.context, ("watch", "calls"), unique=True))
    if not isinstance(value, tuple):
        raise invalid("expected a list")
    return value


def _label_name(value: str) -> str:
    if value.startswith("__") or value in RESERVED_LABELS:
        raise ValueError
    return value


def _relative_to_folder(pattern: str, info: ValidationInfo) -> str:
    if not isinstance(info.context, LoadContext):
        return pattern
    return os.path.join(glob.escape(os.path.abspath(info.context.folder)), pattern)  # noqa: PTH100, PTH118 - a pattern


LabelName = Annotated[
    str,
    text(
        "a lower-case label name that does not start with `__` and is not used by the exporter, by"
        " targets (such as `pod` or `service`) or by alerts (such as `severity`)",
        r"^[a-z_][a-z0-9_]{0,63}$",
        check=_label_name,
    ),
    AfterValidator(lambda name, info: check_unique(name, info, "label")),
]
FilePattern = Annotated[
    str,
    text(
        "a path or pattern that ends in .yaml, .yml, .json, .txt or .csv",
        r"^[^\x00-\x1f]+\.(yaml|yml|json|txt|csv)$",
        max_length=1024,
    ),
    AfterValidator(_relative_to_folder),
]


class TokenConfig(Section):
    """A token of the HTTP API."""

    name: Name
    """The name of the program that uses the token, for the log. Unique."""

    token: SecretKey
    """The token. Unique. Either this or `token_file`."""

    accounts: KnownAccounts | None = None
    """The token can add and read calls of these accounts only. Default: all accounts."""


class ApiConfig(Section):
    """The HTTP API."""

    tokens: Annotated[tuple[TokenConfig, ...], Field(max_length=MAX_TOKENS)] = ()
    """The tokens of the programs that use the API. Without tokens, the API is off."""


class CallbackConfig(Section):
    """How the provider's callbacks are handled, for accounts with a `callback_token`."""

    trust: Literal["verify", "accept"] = "verify"
    """`verify` polls the call at once to confirm its result. `accept` uses the result in the
    callback."""

    unknown: Literal["watch", "ignore"] = "watch"
    """What to do with a callback for an unknown call: `watch` adds the call, `ignore` drops the
    callback."""


class WatchConfig(Section):
    """Which calls are watched, and the names of their labels."""

    labels: Annotated[tuple[LabelName, ...], Field(max_length=MAX_LABELS)] = ()
    """The names of the labels of calls."""

    max_label_values: Annotated[int, count(1, 10_000)] = 100
    """Maximum number of distinct values per label and account. Beyond that, the least recently used
    value is counted as `other`."""

    max_label_sets: Annotated[int, count(1, 100_000)] = 1_000
    """Maximum number of label sets per account. Beyond that, the least recently used set is counted
    under `other` for every label."""

    max_calls: Annotated[int, count(1, 10_000_000)] = 1_000_000
    """Maximum number of open calls per account, from all sources."""

    calls: Annotated[
        SkipValidation[tuple[CallConfig, ...]],
        BeforeValidator(_calls, json_schema_input_type=list[str | CallConfig]),
    ] = ()
    """Calls to watch: ids, or mappings with the key `reference_id`."""

    files: Annotated[tuple[FilePattern, ...], Field(max_length=MAX_PATTERNS)] = ()
    """Files with calls to watch: paths or glob patterns, relative to the configuration."""

    api: ApiConfig = ApiConfig()
    """The HTTP API, through which programs add calls."""

    callback: CallbackConfig = CallbackConfig()
    """How the provider's callbacks are handled, for accounts with a `callback_token`."""

    sql: Annotated[tuple[SqlConfig, ...], Field(max_length=MAX_QUERIES)] = ()
    """SQL queries on your databases that return calls to watch."""

    @field_validator("calls")
    @classmethod
    def _not_too_many(cls, calls: tuple[CallConfig, ...], info: ValidationInfo) -> Any:
        limit = info.data.get("max_calls", len(calls))
        for account, number in Counter(call.account for call in calls).items():
            if number > limit:
                raise invalid(f"expected at most `max_calls`, {limit}, of account {account}")
        return calls
