"""The watched calls of the configuration file.

There may be a million, so they are read by hand: a pydantic model for each would take many times
the memory and time.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import MappingProxyType
from typing import Final

from exporter.config.document import BROKEN, Value, YamlMapping
from exporter.config.problems import SHOWN, Problems
from exporter.ids import ReferenceId, ReferenceKey, reference_id, reference_key

MAX_LABEL_VALUE = 128

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

_KEYS = frozenset({"reference_id", "account", "labels"})
# Lone surrogates cannot be encoded; the others would break lines of logs and of the exposition.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# Sets of labels of which there is one copy.
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


@dataclass(slots=True)
class _Place:
    """Where a call stands, to tell its problems."""

    problems: Problems
    parts: tuple[str | int, ...]
    line: int
    item: YamlMapping | None

    def problem(
        self, message: str, key: str | None = None, name: str | None = None, line: int | None = None
    ) -> None:
        if line is None:
            line = self.line
            if self.item is not None and key is not None and key in self.item:
                line = self.item.line_of(key)
        keys = [part for part in (key, name) if part is not None]
        self.problems.add(line, (*self.parts, *keys), message)

    def unknown_keys(self, item: YamlMapping) -> None:
        report_unknown_keys(item, _KEYS, self.parts, self.problems)


class CallReader:
    """Reads a list of calls: that of `watch.calls`, or of a file of calls."""

    def __init__(
        self,
        accounts: Sequence[str] | None,
        labels: Sequence[str] | None,
        problems: Problems,
        parts: tuple[str | int, ...] = ("watch", "calls"),
        *,
        repeats: bool = False,
        account: str | None = None,
    ) -> None:
        """Prepare to read.

        Args:
            accounts: the names of the accounts; None where they cannot be told, to check none.
            labels: the names in `watch.labels`; None where they cannot be told.
            problems: takes what is wrong.
            parts: the keys that lead to the list.
            repeats: take a call that stands there twice for no problem.
            account: the account of calls that name none; by default the only one that there is.
        """
        self._parts = parts
        self._accounts = None if accounts is None else frozenset(accounts)
        only = accounts[0] if accounts and len(accounts) == 1 else None
        self._only_account = account or only
        self._label_names = None if labels is None else frozenset(labels)
        self._problems = problems
        self._shared: dict[tuple[tuple[str, str], ...], Mapping[str, str]] = {}
        self._repeats = repeats
        # By account: ids as they are compared, and the line where each was first.
        self._seen: dict[str, dict[ReferenceKey, int]] = {}

    def read(self, items: Iterable[tuple[int, Value]]) -> Iterator[CallConfig]:
        """Yield the calls that are as they should be.

        Args:
            items: each with the line where it stands.
        """
        for index, (line, item) in enumerate(items):
            if (call := self._call(index, line, item)) is not None:
                yield call

    def _call(self, index: int, line: int, item: Value) -> CallConfig | None:
        if item is BROKEN:
            return None
        if isinstance(item, YamlMapping):
            place = _Place(self._problems, (*self._parts, index), line, item)
            call = self._long_form(item, place)
        else:
            place = _Place(self._problems, (*self._parts, index), line, None)
            named = _reference_id(item, place)
            account = self._account(None, place)
            call = CallConfig(named, account) if named and account else None
        if call is not None and not self._repeats:
            self._note(call, place)
        return call

    def _long_form(self, item: YamlMapping, place: _Place) -> CallConfig | None:
        if not item.keys() <= _KEYS:
            place.unknown_keys(item)
        named = None
        if "reference_id" in item:
            named = _reference_id(item["reference_id"], place, "reference_id")
        else:
            place.problem("missing required key", "reference_id")
        account = self._account(item.get("account"), place)
        labels = self._labels(item.get("labels"), place)
        if named is None or account is None or labels is None:
            return None
        return CallConfig(named, account, labels)

    def _account(self, value: Value, place: _Place) -> str | None:
        if self._accounts is None or value is BROKEN:
            return None
        if value is None:
            if self._only_account is None:
                place.problem(
                    "missing required key; it may be left out where there is one account", "account"
                )
            return self._only_account
        if isinstance(value, str) and value in self._accounts:
            return value
        place.problem("expected the name of one of the accounts", "account")
        return None

    def _labels(self, value: Value, place: _Place) -> Mapping[str, str] | None:
        if value is None:
            return _NO_LABELS
        if not isinstance(value, YamlMapping):
            if value is not BROKEN:
                place.problem("expected a mapping of label names to text", "labels")
            return None
        labels = {}
        for (name, text), line in zip(value.items(), value.lines, strict=True):
            if self._label_names is not None and name not in self._label_names:
                place.problem("expected one of the names in `watch.labels`", "labels", name, line)
            elif isinstance(text, str):
                if len(text) <= MAX_LABEL_VALUE and not _UNPRINTABLE.search(text):
                    labels[name] = str(text)
                else:
                    message = (
                        f"expected at most {MAX_LABEL_VALUE} characters, and no control characters"
                    )
                    place.problem(message, "labels", name, line)
            elif text is not BROKEN:
                place.problem("expected text; write it in quotes", "labels", name, line)
        if len(labels) < len(value):
            return None
        return self._one_copy(labels)

    def _one_copy(self, labels: Mapping[str, str]) -> Mapping[str, str]:
        if len(self._shared) >= _MAX_SHARED:
            self._shared.clear()
        return self._shared.setdefault(tuple(sorted(labels.items())), MappingProxyType(labels))

    def _note(self, call: CallConfig, place: _Place) -> None:
        key = reference_key(call.reference_id)
        seen = self._seen.setdefault(call.account, {})
        if key in seen:
            message = f"the same call again; the first is on line {seen[key]}"
            place.problem(message, None if place.item is None else "reference_id")
        else:
            seen[key] = place.line


def _reference_id(value: Value, place: _Place, key: str | None = None) -> ReferenceId | None:
    if isinstance(value, str):
        # A copy, because the ids outlive the document: in between its objects they would keep
        # most of its memory from being given back.
        copy = str(value.encode("utf-8", "surrogatepass"), "utf-8", "surrogatepass")
        try:
            return reference_id(copy)
        except ValueError as error:
            place.problem(f"expected an id; the text {error}", key)
    elif isinstance(value, bool | int | float):
        place.problem("expected text; an id that looks like a number needs quotes", key)
    elif value is not BROKEN:
        what = "an id" if key else "an id, or a mapping with the key `reference_id`"
        place.problem(f"expected {what}", key)
    return None


def report_unknown_keys(
    mapping: YamlMapping, known: Collection[str], parts: Iterable[str | int], problems: Problems
) -> None:
    """Tell every key of `mapping` that is not in `known`, with the known one most like it."""
    for key, line in mapping.keys_with_lines():
        if key in known:
            continue
        message = "unknown key"
        # Looking for the nearest is slow, and a file may have a million of them.
        if problems.total < SHOWN and (nearest := get_close_matches(key[:64].lower(), known, 1)):
            message += f"; did you mean `{nearest[0]}`?"
        problems.add(line, (*parts, key), message)
