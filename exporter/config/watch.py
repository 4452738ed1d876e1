"""The section `watch`: the calls to watch, their labels and their sources."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
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
    WithJsonSchema,
    field_validator,
)

from exporter.config.databases import SqlConfig
from exporter.config.document import Problems, Value, YamlMapping, YamlSequence, line_of
from exporter.config.types import (
    MAX_LABEL_VALUE,
    Expected,
    KnownAccounts,
    KnownLabel,
    Name,
    SecretKey,
    count,
    text,
)
from exporter.config.validation import (
    LoadContext,
    Section,
    add_problems,
    check_unique,
    invalid,
    mark_unknown_keys,
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
    | {"canary", "stage"}
    | {"le", "quantile", "job", "instance"}
    | {"cluster", "namespace", "service", "pod", "container", "endpoint", "node"}
    | {"alertname", "severity", "window"}
)

CALL_SCHEMA: Final = {
    "anyOf": [
        {"type": "string", "description": "The ReferenceId alone."},
        {
            "type": "object",
            "additionalProperties": False,
            "required": ["reference_id"],
            "properties": {
                "reference_id": {
                    "title": "Reference Id",
                    "description": "The ReferenceId that the provider returned for the call.",
                    "type": "string",
                },
                "account": {
                    "title": "Account",
                    "description": "The name of the account that placed the call."
                    " Optional if there is one account.",
                    "type": "string",
                },
                "labels": {
                    "title": "Labels",
                    "description": "Labels of the call; the names are those in `watch.labels`.",
                    "type": "object",
                    "additionalProperties": {"type": "string", "maxLength": MAX_LABEL_VALUE},
                },
            },
        },
    ]
}
"""The JSON Schema of one call."""

_KEYS: Final = frozenset({"reference_id", "account", "labels"})
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
    # A copy: ids outlive the document, and between its objects they would keep the allocator from
    # returning its memory.
    copy = str(value.encode("utf-8", "surrogatepass"), "utf-8", "surrogatepass")
    try:
        return reference_id(copy)
    except ValueError as error:
        raise invalid(str(error)) from None


def _label_text(value: str) -> str:
    if len(value) > MAX_LABEL_VALUE or _UNPRINTABLE.search(value):
        raise invalid(f"expected at most {MAX_LABEL_VALUE} characters, and no control characters")
    return value


LabelText = Annotated[
    str, Field(strict=True), Expected("text; write it in quotes"), AfterValidator(_label_text)
]
_LABELS = TypeAdapter(dict[KnownLabel, LabelText])


@dataclass(frozen=True, slots=True)
class _CallContext:
    """Context of the validators of a call; for names that are None, see `CallReader`."""

    problems: Problems
    accounts: Collection[str] | None
    labels: Collection[str] | None
    default_account: str | None
    # Shares equal label sets.
    label_sets: dict[tuple[tuple[str, str], ...], Mapping[str, str]] = field(default_factory=dict)


def _context(info: ValidationInfo) -> _CallContext:
    assert isinstance(info.context, _CallContext)  # noqa: S101 - `CallReader` passes it
    return info.context


def _account(value: object, info: ValidationInfo) -> object:
    accounts, default = _context(info).accounts, _context(info).default_account
    if value is None:
        if default is None:
            raise invalid("missing required key; it is optional only if there is one account")
        return default
    if not isinstance(value, str) or (accounts is not None and value not in accounts):
        raise invalid("expected the name of one of the accounts")
    return value


def _labels(value: object, info: ValidationInfo) -> Mapping[str, str]:
    labels = _LABELS.validate_python(value, context=info.context)
    known = _context(info).label_sets
    if len(known) >= _MAX_SHARED:
        known.clear()
    return known.setdefault(tuple(sorted(labels.items())), MappingProxyType(labels))


@dataclass(frozen=True, slots=True)
class CallConfig:
    """A call to watch.

    Attributes:
        reference_id: as written, without surrounding whitespace.
        labels: values by name; calls with equal labels share one mapping.
    """

    reference_id: Annotated[SkipValidation[ReferenceId], BeforeValidator(_reference_id)]
    account: Annotated[SkipValidation[str], BeforeValidator(_account)]
    labels: Annotated[SkipValidation[Mapping[str, str]], BeforeValidator(_labels)] = field(
        default_factory=lambda: _NO_LABELS
    )
    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")


def _item(value: object, info: ValidationInfo) -> object:
    """Return an item of a list of calls as a mapping."""
    if isinstance(value, YamlMapping):
        found: dict[str, object] = {"account": None, **value}
        if found.get("labels", value) is None:
            del found["labels"]
        mark_unknown_keys(found, _KEYS, _context(info).problems)
        return found
    if value is None or isinstance(value, list):
        raise invalid("expected an id, or a mapping with the key `reference_id`")
    return {"reference_id": _reference_id(value), "account": None}


_CALL: TypeAdapter[CallConfig] = TypeAdapter(Annotated[CallConfig, BeforeValidator(_item)])


class CallReader:
    """Reads a list of calls: `watch.calls`, a file of calls, or the rows of a query.

    Args:
        accounts: the names of the accounts; None skips the check, if they could not be read.
        labels: the names in `watch.labels`; None likewise.
        problems: receives the problems.
        path: keys and indices of the list in the file.
        repeats: accept duplicate calls.
        account: the account of calls without one; by default the only account.
    """

    def __init__(
        self,
        accounts: Collection[str] | None,
        labels: Collection[str] | None,
        problems: Problems,
        path: tuple[str | int, ...] = ("watch", "calls"),
        *,
        repeats: bool = False,
        account: str | None = None,
    ) -> None:
        only = next(iter(accounts)) if accounts and len(accounts) == 1 else None
        names = None if accounts is None else frozenset(accounts)
        self._context = _CallContext(
            problems, names, labels, account or ("" if names is None else only)
        )
        self._path = path
        self._repeats = repeats
        # By account: the line of the first occurrence of each id.
        self._seen: defaultdict[str, dict[ReferenceKey, int]] = defaultdict(dict)

    def read(self, items: Iterable[tuple[int, Value]]) -> Iterator[CallConfig]:
        """Yield the valid calls of `items`, which are pairs of a line and a value."""
        for index, (line, item) in enumerate(items):
            path = (*self._path, index)
            try:
                call = _CALL.validate_python(item, context=self._context)
            except ValidationError as error:
                add_problems(error, item, self._context.problems, path, line)
                continue
            if not self._repeats:
                key, seen = reference_key(call.reference_id), self._seen[call.account]
                if key in seen:
                    own = () if isinstance(item, str) else ("reference_id",)
                    message = f"duplicate call; the first is on line {seen[key]}"
                    self._context.problems.add(line_of(item, own, line), (*path, *own), message)
                seen.setdefault(key, line)
            yield call


def _calls(value: object, info: ValidationInfo) -> tuple[CallConfig, ...]:
    if isinstance(value, YamlSequence) and isinstance(info.context, LoadContext):
        labels = info.data.get("labels")
        reader = CallReader(info.context.accounts, labels, info.context.problems)
        return tuple(reader.read(zip(value.lines, value, strict=True)))
    if not isinstance(value, tuple):
        raise invalid("expected a list")
    return value


def _label_name(value: str) -> str:
    if value.startswith("__") or value in RESERVED_LABELS:
        raise ValueError
    return value


def _unique_label(value: str, info: ValidationInfo) -> str:
    check_unique(value, info, "label")
    return value


def _beside_file(pattern: str, info: ValidationInfo) -> str:
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
    AfterValidator(_unique_label),
]
FilePattern = Annotated[
    str,
    text(
        "a path or pattern that ends in .yaml, .yml, .json, .txt or .csv",
        r"^[^\x00-\x1f]+\.(yaml|yml|json|txt|csv)$",
        max_length=1024,
    ),
    AfterValidator(_beside_file),
]


class TokenConfig(Section):
    """A token of the HTTP API."""

    secrets = ("token",)

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
        BeforeValidator(_calls),
        WithJsonSchema({"type": "array", "items": CALL_SCHEMA}),
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
