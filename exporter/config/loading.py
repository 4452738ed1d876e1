"""From a file to a `Config`, or to everything that is wrong with it."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from pydantic import BaseModel, ValidationError

from exporter.config.calls import CallReader, report_unknown_keys
from exporter.config.databases import database_problem
from exporter.config.document import (
    BROKEN,
    Value,
    YamlMapping,
    YamlSequence,
    parse_document,
    told_to,
)
from exporter.config.fields import is_duration
from exporter.config.files import FileProblemError, read_text
from exporter.config.models import (
    MAX_ACCOUNTS,
    MAX_LABELS,
    MAX_PATTERNS,
    MAX_QUERIES,
    MAX_TOKENS,
    AccountConfig,
    ApiConfig,
    CallbackConfig,
    Config,
    LedgerConfig,
    PollingConfig,
    SqlConfig,
    TokenConfig,
    WatchConfig,
)
from exporter.config.problems import Problems
from exporter.secret import Secret

MAX_FILE = 64 << 20
MAX_SECRET_FILE = 64 << 10

CREDENTIALS = {
    AccountConfig: ("api_key", "secret_key", "callback_token"),
    TokenConfig: ("token",),
    SqlConfig: ("url",),
}
"""The keys of models whose values are secrets, each of which a file may hold instead."""

_CREDENTIAL = re.compile("[!-~]{1,1024}")
# Stands in for a credential that is wrong, so that it is told once; no Config is made of it.
_NO_SECRET = Secret("?")

_SECTIONS: dict[str, type[BaseModel]] = {
    "polling": PollingConfig,
    "watch": WatchConfig,
    "ledger": LedgerConfig,
}

_MESSAGES = {
    "missing": "missing required key",
    "model_type": "expected a mapping of keys to values",
    "tuple_type": "expected a list",
    "too_short": "expected at least {min_length} item",
    "too_long": "expected at most {max_length} items",
}


def load_config(
    path: Path, environ: Mapping[str, str] = os.environ, secret_files: set[Path] | None = None
) -> Config:
    """Read the configuration file at `path`.

    Args:
        path: a file of YAML; files that it names are relative to its folder.
        environ: the variables for `${NAME}`.
        secret_files: takes the paths of the files that hold credentials, also of those that
            cannot be read.

    Raises:
        ConfigError: with everything that is wrong, in the order of the file.
    """
    problems = Problems(str(path))
    with told_to(problems):
        document = parse_document(read_text(path, MAX_FILE), environ, problems)
    if document is None:
        problems.add(0, (), "is empty; expected a mapping with the key `accounts`")
        problems.fail()
    if not isinstance(document, YamlMapping):
        if document is not BROKEN:
            problems.add(1, (), "expected a mapping with the key `accounts`")
        problems.fail()
    return _Loader(document, path.parent, problems, secret_files).load()


class _Loader:
    """Turns a document into a `Config`.

    What pydantic is given holds no unknown keys, no credentials and no calls: those are checked
    here, where their lines are known, and where a value cannot find its way into a message.
    """

    def __init__(
        self,
        document: YamlMapping,
        folder: Path,
        problems: Problems,
        secret_files: set[Path] | None,
    ) -> None:
        self._document = document
        self._secret_files = secret_files if secret_files is not None else set()
        self._folder = folder
        self._problems = problems

    def load(self) -> Config:
        """Return the configuration.

        Raises:
            ConfigError: something is wrong.
        """
        data = self._section(self._document, Config, ())
        for section, model in _SECTIONS.items():
            value = self._document.get(section)
            if isinstance(value, YamlMapping):
                data[section] = self._section(value, model, (section,))
            elif value is None:
                # A section whose keys are all commented out.
                data.pop(section, None)
        accounts = self._document.get("accounts")
        if isinstance(accounts, YamlSequence):
            # One too many is enough to be told.
            shown = accounts[: MAX_ACCOUNTS + 1]
            data["accounts"] = [
                self._with_secrets(item, AccountConfig, ("accounts", index))
                for index, item in enumerate(shown)
            ]
            self._unique_names(shown, ("accounts",))
        watch = data.get("watch")
        if isinstance(watch, dict):
            self._watch(watch, _strings(accounts, "name"))
        config = self._validated(data)
        if config is not None and len(config.watch.calls) > config.watch.max_calls:
            parts = ("watch", "calls")
            self._problems.add(
                self._line(parts), parts, f"expected at most `max_calls`, {config.watch.max_calls}"
            )
        if config is None or self._problems.total:
            self._problems.fail()
        return config

    def _known(
        self, mapping: YamlMapping, known: Collection[str], parts: tuple[str | int, ...]
    ) -> dict[str, object]:
        report_unknown_keys(mapping, known, parts, self._problems)
        return {key: mapping[key] for key in known if key in mapping}

    def _section(
        self,
        mapping: YamlMapping,
        model: type[BaseModel],
        parts: tuple[str | int, ...],
        known: Collection[str] = (),
    ) -> dict[str, object]:
        data = self._known(mapping, known or model.model_fields, parts)
        for key, field in model.model_fields.items():
            value = data.get(key)
            # In a file, 15 is no duration: seconds or minutes? Only the text `0` needs no unit.
            if isinstance(value, bool | int | float) and is_duration(field):
                data[key] = str(value)
        return data

    def _with_secrets(
        self, item: Value, model: type[BaseModel], parts: tuple[str | int, ...]
    ) -> object:
        if not isinstance(item, YamlMapping):
            return item
        keys = CREDENTIALS[model]
        known = (*model.model_fields, *(f"{key}_file" for key in keys))
        data = self._section(item, model, parts, known)
        for key in keys:
            file_key = f"{key}_file"
            data.pop(file_key, None)
            if key in item or file_key in item or model.model_fields[key].is_required():
                data[key] = _NO_SECRET
            if key in item and file_key in item:
                message = f"expected either `{key}` or `{file_key}`, not both"
                self._problems.add(item.line_of(file_key), (*parts, file_key), message)
            elif key in item:
                data[key] = self._credential(item[key], item.line_of(key), (*parts, key))
            elif file_key in item:
                text = self._secret_file(item[file_key], item.line_of(file_key), (*parts, file_key))
                data[key] = self._credential(text, item.line_of(file_key), (*parts, file_key))
            elif key in data:
                line = self._line(parts)
                self._problems.add(line, (*parts, key), f"missing; expected it or `{file_key}`")
        return data

    def _credential(self, value: Value, line: int, parts: tuple[str | int, ...]) -> Secret:
        if value is BROKEN:
            return _NO_SECRET
        text = value.strip() if isinstance(value, str) else ""
        if _CREDENTIAL.fullmatch(text):
            return Secret(text)
        if isinstance(value, bool | int | float):
            message = "expected text; a key that looks like a number needs quotes"
        elif not text:
            message = "expected a key, and it is empty"
        else:
            message = "expected a key: printable ASCII characters without blanks"
        self._problems.add(line, parts, message)
        return _NO_SECRET

    def _secret_file(self, value: Value, line: int, parts: tuple[str | int, ...]) -> Value:
        if isinstance(value, str) and value:
            self._secret_files.add(self._folder / value)
            try:
                return read_text(self._folder / value, MAX_SECRET_FILE)
            except FileProblemError as error:
                self._problems.add(line, parts, f"the file {error}")
        elif value is not BROKEN:
            self._problems.add(line, parts, "expected the path of a file")
        return BROKEN

    def _unique_names(self, items: list[Value], parts: tuple[str, ...]) -> None:
        first: dict[str, int] = {}
        for index, item in enumerate(items):
            name = item.get("name") if isinstance(item, YamlMapping) else None
            if isinstance(name, str) and first.setdefault(name, index) != index:
                line = self._line((*parts, first[name], "name"))
                message = f"expected a name of its own; the same is on line {line}"
                there: tuple[str | int, ...] = (*parts, index, "name")
                self._problems.add(self._line(there), there, message)

    def _watch(self, watch: dict[str, object], accounts: list[str] | None) -> None:
        labels = watch.get("labels", YamlSequence())
        if labels is None:
            del watch["labels"]
            labels = YamlSequence()
        names = _strings(labels)
        if names is not None:
            self._unique_labels(names)
        if isinstance(labels, YamlSequence):
            watch["labels"] = labels[: MAX_LABELS + 1]
        files = watch.get("files")
        if files is None:
            watch.pop("files", None)
        elif isinstance(files, YamlSequence):
            watch["files"] = [self._beside(pattern) for pattern in files[: MAX_PATTERNS + 1]]
        self._api(watch, accounts)
        self._sql(watch, accounts)
        callback = watch.get("callback")
        if isinstance(callback, YamlMapping):
            watch["callback"] = self._section(callback, CallbackConfig, ("watch", "callback"))
        elif callback is None:
            watch.pop("callback", None)
        calls = watch.pop("calls", None)
        if isinstance(calls, YamlSequence):
            watch["calls"] = CallReader(accounts, names, self._problems).read(calls)
        elif calls is not None and calls is not BROKEN:
            parts = ("watch", "calls")
            self._problems.add(self._line(parts), parts, "expected a list")

    def _api(self, watch: dict[str, object], accounts: list[str] | None) -> None:
        api = watch.get("api")
        if api is None:
            watch.pop("api", None)
        if not isinstance(api, YamlMapping):
            return
        parts = ("watch", "api", "tokens")
        data = self._section(api, ApiConfig, parts[:2])
        watch["api"] = data
        tokens = data.get("tokens")
        if tokens is None:
            data.pop("tokens", None)
        if not isinstance(tokens, YamlSequence):
            return
        shown = tokens[: MAX_TOKENS + 1]
        data["tokens"] = [
            self._with_secrets(item, TokenConfig, (*parts, index))
            for index, item in enumerate(shown)
        ]
        self._unique_names(shown, parts)
        for index, item in enumerate(shown):
            names = item.get("accounts") if isinstance(item, YamlMapping) else None
            for place, name in enumerate(_strings(names) or ()):
                if accounts is not None and name not in accounts:
                    there = (*parts, index, "accounts", place)
                    message = "expected the name of one of the accounts"
                    self._problems.add(self._line(there), there, message)

    def _sql(self, watch: dict[str, object], accounts: list[str] | None) -> None:
        parts = ("watch", "sql")
        queries = watch.get("sql")
        if queries is None:
            watch.pop("sql", None)
        if not isinstance(queries, YamlSequence):
            return
        shown = queries[: MAX_QUERIES + 1]
        found = [
            self._with_secrets(item, SqlConfig, (*parts, index)) for index, item in enumerate(shown)
        ]
        watch["sql"] = found
        self._unique_names(shown, parts)
        for index, (given, item) in enumerate(zip(shown, found, strict=True)):
            if not isinstance(item, dict) or not isinstance(given, YamlMapping):
                continue
            url, account = item["url"], item.get("account")
            if url is not _NO_SECRET and (problem := database_problem(url)):
                place = (*parts, index, "url" if "url" in given else "url_file")
                self._problems.add(self._line(place), place, problem)
            if isinstance(account, str) and accounts is not None and account not in accounts:
                place = (*parts, index, "account")
                message = "expected the name of one of the accounts"
                self._problems.add(self._line(place), place, message)

    def _beside(self, pattern: Value) -> object:
        if not isinstance(pattern, str) or not pattern:
            return pattern
        return os.path.join(glob.escape(os.path.abspath(self._folder)), pattern)  # noqa: PTH100, PTH118 - a pattern

    def _unique_labels(self, names: list[str]) -> None:
        for index, name in enumerate(names[: MAX_LABELS + 1]):
            if name in names[:index]:
                parts = ("watch", "labels", index)
                self._problems.add(self._line(parts), parts, "the same name again")

    def _validated(self, data: dict[str, object]) -> Config | None:
        try:
            return Config.model_validate(data)
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                # What is broken was told, and items that are wrong leave a list too short.
                told = detail["input"] is BROKEN or (
                    detail["type"] == "too_short" and detail["input"]
                )
                if not told:
                    message = _MESSAGES.get(detail["type"], detail["msg"])
                    message = message.format_map(detail.get("ctx", {}))
                    self._problems.add(self._line(detail["loc"]), detail["loc"], message)
            return None

    def _line(self, parts: Iterable[str | int]) -> int:
        """Return the line of a key or item, or of the nearest above it that is there."""
        value: Value = self._document
        line = 1
        for part in parts:
            if isinstance(value, YamlMapping) and isinstance(part, str) and part in value:
                line, value = value.line_of(part), value[part]
            elif isinstance(value, YamlSequence) and isinstance(part, int):
                line, value = value.lines[part], value[part]
            else:
                break
        return line


def _strings(items: object, key: str | None = None) -> list[str] | None:
    """Return the items of a list, or what each has under `key`, if all of them are text."""
    if not isinstance(items, YamlSequence):
        return None
    values: Iterable[object] = items
    if key is not None:
        values = (item.get(key) if isinstance(item, YamlMapping) else None for item in items)
    texts = [value for value in values if isinstance(value, str)]
    return texts if len(texts) == len(items) else None
