"""The section `watch`: the calls that it names, the labels they may carry, and their sources.

There may be a million calls, so they are read by hand: a pydantic model for each would take many
times the memory and time.
"""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SkipValidation,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)

from exporter.config.databases import SqlConfig
from exporter.config.document import (
    MAX_PROBLEMS,
    InvalidValue,
    Problems,
    Value,
    YamlMapping,
    YamlSequence,
    unknown_key,
)
from exporter.config.types import MAX_LABEL_VALUE, Count, Expected, KnownAccounts, Name, SecretKey
from exporter.config.validation import LoadContext, Section, check_unique, invalid
from exporter.ids import ReferenceId, ReferenceKey, reference_id, reference_key

MAX_LABELS: Final = 5
MAX_PATTERNS: Final = 100
MAX_TOKENS: Final = 1000
MAX_QUERIES: Final = 100

# What the exporter itself puts on series, what Prometheus and Kubernetes put on targets, and what
# alerts put on theirs: there, a label of the user's would be renamed, added over or written over.
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
                    "description": "The id that the provider gave the call.",
                    "type": "string",
                },
                "account": {
                    "title": "Account",
                    "description": "The name of the account that placed the call;"
                    " may be left out where there is one account.",
                    "type": "string",
                },
                "labels": {
                    "title": "Labels",
                    "description": "Values of some of the names in `watch.labels`.",
                    "type": "object",
                    "additionalProperties": {"type": "string", "maxLength": MAX_LABEL_VALUE},
                },
            },
        },
    ]
}
"""The JSON Schema of one call."""

_KEYS: Final = frozenset({"reference_id", "account", "labels"})
# Lone surrogates cannot be encoded; the others would break lines of logs and of the exposition.
_UNPRINTABLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# Sets of labels of which one copy is kept.
_MAX_SHARED: Final = 10_000
_NO_LABELS: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class CallConfig:
    """A call to watch.

    Attributes:
        reference_id: the provider's id, as written but trimmed.
        account: the name of the account that placed it.
        labels: values of some of the names in `watch.labels`; shared between equal calls.
    """

    reference_id: ReferenceId
    account: str
    labels: Mapping[str, str] = field(default_factory=lambda: _NO_LABELS)


class CallReader:
    """Reads a list of calls: that of `watch.calls`, of a file of calls, or the rows of a query.

    Args:
        accounts: the names of the accounts; None where they cannot be read, to check none.
        labels: the names in `watch.labels`; None where they cannot be read.
        problems: receives the problems.
        path: the keys that lead to the list.
        repeats: accept a call that is there twice.
        account: the account of calls that name none; by default the only one that there is.
    """

    def __init__(
        self,
        accounts: Sequence[str] | None,
        labels: Sequence[str] | None,
        problems: Problems,
        path: tuple[str | int, ...] = ("watch", "calls"),
        *,
        repeats: bool = False,
        account: str | None = None,
    ) -> None:
        self._accounts = None if accounts is None else frozenset(accounts)
        only = accounts[0] if accounts and len(accounts) == 1 else None
        self._default_account = account or only
        self._label_names = None if labels is None else frozenset(labels)
        self._problems = problems
        self._path = path
        self._repeats = repeats
        self._shared: dict[tuple[tuple[str, str], ...], Mapping[str, str]] = {}
        # By account: ids as they are compared, and the line where each was first.
        self._seen: dict[str, dict[ReferenceKey, int]] = {}
        # The call that is being read.
        self._index, self._line = 0, 0
        self._item: Value = None

    def read(self, items: Iterable[tuple[int, Value]]) -> Iterator[CallConfig]:
        """Yield the valid calls.

        Args:
            items: each with the line where it stands.
        """
        for self._index, (self._line, self._item) in enumerate(items):
            if (call := self._call(self._item)) is not None:
                yield call

    def _problem(self, message: str, *keys: str, line: int = 0) -> None:
        item = self._item
        if not line and keys and isinstance(item, YamlMapping) and keys[0] in item:
            line = item.line_of(keys[0])
        self._problems.add(line or self._line, (*self._path, self._index, *keys), message)

    def _call(self, item: Value) -> CallConfig | None:
        if isinstance(item, InvalidValue):
            return None
        keys: tuple[str, ...] = ()
        labels: Mapping[str, str] | None = _NO_LABELS
        if isinstance(item, YamlMapping):
            keys = ("reference_id",)
            if not item.keys() <= _KEYS:
                self._unknown_keys(item)
            reference = None
            if "reference_id" in item:
                reference = self._reference_id(item["reference_id"], "an id", *keys)
            else:
                self._problem("missing required key", *keys)
            account = self._account(item.get("account"))
            labels = self._labels(item.get("labels"))
        else:
            expected = "an id, or a mapping with the key `reference_id`"
            reference = self._reference_id(item, expected)
            account = self._account(None)
        if reference is None or account is None or labels is None:
            return None
        if not self._repeats:
            key, seen = reference_key(reference), self._seen.setdefault(account, {})
            if key in seen:
                self._problem(f"the same call again; the first is on line {seen[key]}", *keys)
            else:
                seen[key] = self._line
        return CallConfig(reference, account, labels)

    def _unknown_keys(self, item: YamlMapping) -> None:
        for key, line in zip(item, item.lines, strict=True):
            if key not in _KEYS:
                # Looking for the nearest is slow, and a file may have a million of them.
                suggest = self._problems.total < MAX_PROBLEMS
                message = unknown_key(key, _KEYS) if suggest else "unknown key"
                self._problem(message, key, line=line)

    def _reference_id(self, value: Value, expected: str, *keys: str) -> ReferenceId | None:
        if isinstance(value, str):
            # A copy, because the ids outlive the document: in between its objects they would keep
            # most of its memory from being given back.
            copy = str(value.encode("utf-8", "surrogatepass"), "utf-8", "surrogatepass")
            try:
                return reference_id(copy)
            except ValueError as error:
                self._problem(f"expected an id; the text {error}", *keys)
        elif isinstance(value, bool | int | float):
            self._problem("expected text; an id that looks like a number needs quotes", *keys)
        elif not isinstance(value, InvalidValue):
            self._problem(f"expected {expected}", *keys)
        return None

    def _account(self, value: Value) -> str | None:
        if self._accounts is None or isinstance(value, InvalidValue):
            return None
        if value is None:
            if self._default_account is None:
                self._problem(
                    "missing required key; it may be left out where there is one account", "account"
                )
            return self._default_account
        if isinstance(value, str) and value in self._accounts:
            return value
        self._problem("expected the name of one of the accounts", "account")
        return None

    def _labels(self, value: Value) -> Mapping[str, str] | None:
        if value is None:
            return _NO_LABELS
        if not isinstance(value, YamlMapping):
            if not isinstance(value, InvalidValue):
                self._problem("expected a mapping of label names to text", "labels")
            return None
        labels = {}
        for (name, text), line in zip(value.items(), value.lines, strict=True):
            if problem := self._label_problem(name, text):
                self._problem(problem, "labels", name, line=line)
            elif isinstance(text, str):
                labels[name] = str(text)
        if len(labels) < len(value):
            return None
        if len(self._shared) >= _MAX_SHARED:
            self._shared.clear()
        return self._shared.setdefault(tuple(sorted(labels.items())), MappingProxyType(labels))

    def _label_problem(self, name: str, text: Value) -> str | None:
        if self._label_names is not None and name not in self._label_names:
            return "expected one of the names in `watch.labels`"
        if isinstance(text, InvalidValue):
            return None
        if not isinstance(text, str):
            return "expected text; write it in quotes"
        if len(text) > MAX_LABEL_VALUE or _UNPRINTABLE.search(text):
            return f"expected at most {MAX_LABEL_VALUE} characters, and no control characters"
        return None


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
    Field(strict=True, pattern=r"^[a-z_][a-z0-9_]{0,63}$"),
    AfterValidator(_label_name),
    Expected(
        "a lower-case label name that does not start with `__` and is not one of the exporter's,"
        " of a target's (such as `pod` or `service`) or of an alert's (such as `severity`)"
    ),
    AfterValidator(_unique_label),
]
FilePattern = Annotated[
    str,
    Field(strict=True, min_length=1, max_length=1024, pattern=r"^[^\x00-\x1f]+$"),
    Field(pattern=r"\.(yaml|yml|json|txt|csv)$"),
    Expected("a path or pattern that ends in .yaml, .yml, .json, .txt or .csv"),
    AfterValidator(_beside_file),
]


class TokenConfig(Section):
    """A token of the HTTP API."""

    name: Name
    """The name of the program that uses it, for the log. Unique."""

    token: SecretKey
    """The token itself. Unique. Either this or `token_file`."""

    accounts: KnownAccounts | None = None
    """The accounts whose calls it may watch and see; all of them where this is left out."""


class ApiConfig(Section):
    """The HTTP API."""

    tokens: Annotated[tuple[TokenConfig, ...], Field(max_length=MAX_TOKENS)] = ()
    """The tokens of programs that may use it; without any, there is no API."""


class CallbackConfig(Section):
    """How the provider's callbacks are handled, for accounts with a `callback_token`."""

    trust: Literal["verify", "accept"] = "verify"
    """`verify` polls the call at once; `accept` takes the callback's word."""

    unknown: Literal["watch", "ignore"] = "watch"
    """Whether a call that is not watched yet is watched from then on."""


class WatchConfig(Section):
    """Which calls are watched, and which labels they may carry."""

    labels: Annotated[tuple[LabelName, ...], Field(max_length=MAX_LABELS)] = ()
    """The names of the labels that a watched call may carry."""

    max_label_values: Annotated[int, Count(1, 10_000)] = 100
    """Distinct values of one label in each account. Of more, the least recently used one is counted
    as `other`."""

    max_label_sets: Annotated[int, Count(1, 100_000)] = 1_000
    """Sets of label values in each account. Of more, the least recently used one is counted as the
    set in which every value is `other`."""

    max_calls: Annotated[int, Count(1, 10_000_000)] = 1_000_000
    """Calls of each account that may be watched at a time, from all sources."""

    calls: Annotated[
        SkipValidation[tuple[CallConfig, ...]],
        BeforeValidator(_calls),
        WithJsonSchema({"type": "array", "items": CALL_SCHEMA}),
    ] = ()
    """The calls to watch: ids, or mappings with the key `reference_id`."""

    files: Annotated[tuple[FilePattern, ...], Field(max_length=MAX_PATTERNS)] = ()
    """Files with further calls: paths or patterns, relative to the configuration."""

    api: ApiConfig = ApiConfig()
    """The HTTP API, through which programs hand their calls over."""

    callback: CallbackConfig = CallbackConfig()
    """How the provider's callbacks are handled, for accounts with a `callback_token`."""

    sql: Annotated[tuple[SqlConfig, ...], Field(max_length=MAX_QUERIES)] = ()
    """Queries on databases of yours, which return calls to watch."""

    @field_validator("calls")
    @classmethod
    def _not_too_many(cls, calls: tuple[CallConfig, ...], info: ValidationInfo) -> Any:
        limit = info.data.get("max_calls", len(calls))
        for account, count in Counter(call.account for call in calls).items():
            if count > limit:
                raise invalid(f"expected at most `max_calls`, {limit}, of account {account}")
        return calls
