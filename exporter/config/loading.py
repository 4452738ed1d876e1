"""From a file to a `Config`, or to everything that is wrong with it."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel

from exporter.config.authorities import Authorities, authorities_of, system_authorities
from exporter.config.brokers import MAX_AUTHORITIES, client_problem
from exporter.config.calls import CallReader, report_unknown_keys
from exporter.config.canaries import MAX_CANARIES, CanaryConfig, phone_problem
from exporter.config.credentials import CREDENTIALS, NO_SECRET, Credentials, file_keys
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
from exporter.config.files import FileProblemError, NamedFiles, read_text
from exporter.config.home_assistant import HomeAssistantConfig
from exporter.config.models import (
    MAX_ACCOUNTS,
    MAX_LABELS,
    MAX_PATTERNS,
    MAX_QUERIES,
    MAX_TOKENS,
    AccountConfig,
    ApiConfig,
    BalanceConfig,
    CallbackConfig,
    Config,
    LedgerConfig,
    PollingConfig,
    SqlConfig,
    TokenConfig,
    WatchConfig,
)
from exporter.config.notify import MAX_TARGETS, NotifyConfig
from exporter.config.problems import Problems
from exporter.config.validation import line_of, validated
from exporter.secrets import Secret

MAX_FILE = 64 << 20

_SECTIONS: dict[str, type[BaseModel]] = {
    "polling": PollingConfig,
    "balance": BalanceConfig,
    "watch": WatchConfig,
    "ledger": LedgerConfig,
    "home_assistant": HomeAssistantConfig,
}


def load_config(
    path: Path, environ: Mapping[str, str] = os.environ, files: NamedFiles | None = None
) -> Config:
    """Read the configuration file at `path`.

    Args:
        path: a file of YAML; files that it names are relative to its folder.
        environ: the variables for `${NAME}`.
        files: takes down the files that hold credentials.

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
    return _Loader(document, path.parent, problems, files or NamedFiles()).load()


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
        files: NamedFiles,
    ) -> None:
        self._document = document
        self._folder = folder
        self._problems = problems
        self._files = files
        self._credentials = Credentials(folder, problems, files)
        self._broker: Authorities | None = None

    def load(self) -> Config:
        """Return the configuration.

        Raises:
            ConfigError: something is wrong.
        """
        data = self._section(self._document, Config, ())
        for section, model in _SECTIONS.items():
            value = data.get(section)
            if isinstance(value, YamlMapping):
                read = self._with_secrets if model in CREDENTIALS else self._section
                data[section] = read(value, model, (section,))
        accounts = self._document.get("accounts")
        if accounts is not None:  # other lists may be left empty
            self._items(data, AccountConfig, ("accounts",), MAX_ACCOUNTS)
        self._canaries(data, _strings(accounts, "name"))
        watch = data.get("watch")
        self._notify(data, _strings(accounts, "name"), watch)
        if isinstance(watch, dict):
            self._watch(watch, _strings(accounts, "name"))
        broker = data.get("home_assistant")
        if isinstance(broker, dict):
            self._home_assistant(broker, _strings(accounts, "name"))
        config = validated(Config, data, self._document, self._problems)
        if config is not None:
            self._count(config.watch)
        authorities: Authorities | None = None
        try:
            authorities = system_authorities(self._files)
        except FileProblemError as error:
            self._problems.add(0, ("SSL_CERT_FILE",), str(error))
        if config is None or self._problems.total:
            self._problems.fail()
        if config.home_assistant:
            config.home_assistant.trust(self._broker)
        config.trust(authorities)
        return config

    def _count(self, watch: WatchConfig) -> None:
        parts, limit = ("watch", "calls"), watch.max_calls
        for account, count in Counter(call.account for call in watch.calls).items():
            if count > limit:
                message = f"expected at most `max_calls`, {limit}, of account {account}"
                self._problems.add(self._line(parts), parts, message)

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
            if value is None and isinstance(field.default, BaseModel | tuple):
                data.pop(key, None)  # a section, or a list, whose content is commented out
            # In a file, 15 is no duration: seconds or minutes? Only the text `0` needs no unit.
            if isinstance(value, bool | int | float) and is_duration(field):
                data[key] = str(value)
        return data

    def _with_secrets(
        self, item: Value, model: type[BaseModel], parts: tuple[str | int, ...]
    ) -> object:
        if not isinstance(item, YamlMapping):
            return item
        data = self._section(item, model, parts, (*model.model_fields, *file_keys(model)))
        self._credentials.read(item, model, data, parts, self._line(parts))
        return data

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
        names = _strings(labels)
        if names is not None:
            self._unique_labels(names)
        if isinstance(labels, YamlSequence):
            watch["labels"] = labels[: MAX_LABELS + 1]
        files = watch.get("files")
        if isinstance(files, YamlSequence):
            watch["files"] = [self._beside(pattern) for pattern in files[: MAX_PATTERNS + 1]]
        self._api(watch, accounts)
        self._sql(watch, accounts)
        callback = watch.get("callback")
        if isinstance(callback, YamlMapping):
            watch["callback"] = self._section(callback, CallbackConfig, ("watch", "callback"))
        calls = watch.pop("calls", None)
        if isinstance(calls, YamlSequence):
            reader = CallReader(accounts, names, self._problems)
            watch["calls"] = tuple(reader.read(calls.with_lines()))
        elif calls is not None and calls is not BROKEN:
            parts = ("watch", "calls")
            self._problems.add(self._line(parts), parts, "expected a list")

    def _api(self, watch: dict[str, object], accounts: list[str] | None) -> None:
        api = watch.get("api")
        if not isinstance(api, YamlMapping):
            return
        data = watch["api"] = self._section(api, ApiConfig, ("watch", "api"))
        parts = ("watch", "api", "tokens")
        first: dict[Secret, tuple[str | int, ...]] = {}
        for index, given, token in self._items(data, TokenConfig, parts, MAX_TOKENS):
            for place, name in enumerate(_strings(given.get("accounts")) or ()):
                self._known_account(name, accounts, (*parts, index, "accounts", place))
            where = (*parts, index, "token" if "token" in given else "token_file")
            secret = token["token"]
            if isinstance(secret, Secret) and secret is not NO_SECRET:
                other = first.setdefault(secret, where)
                if other is not where:
                    message = (
                        f"expected a token of its own; the same is on line {self._line(other)}"
                    )
                    self._problems.add(self._line(where), where, message)

    def _sql(self, watch: dict[str, object], accounts: list[str] | None) -> None:
        parts = ("watch", "sql")
        for index, given, data in self._items(watch, SqlConfig, parts, MAX_QUERIES):
            self._known_account(data.get("account"), accounts, (*parts, index, "account"))
            url = data["url"]
            if isinstance(url, Secret) and url is not NO_SECRET:
                place = (*parts, index, "url" if "url" in given else "url_file")
                if problem := database_problem(url):
                    self._problems.add(self._line(place), place, problem)

    def _notify(self, data: dict[str, object], accounts: list[str] | None, watch: object) -> None:
        allowed = watch.get("labels") if isinstance(watch, dict) else None
        names = _strings(allowed if allowed is not None else YamlSequence())
        for index, given, _ in self._items(data, NotifyConfig, ("notify",), MAX_TARGETS):
            for place, name in enumerate(_strings(given.get("accounts")) or ()):
                self._known_account(name, accounts, ("notify", index, "accounts", place))
            labels = given.get("labels")
            if not isinstance(labels, YamlMapping) or names is None:
                continue
            for name in labels.keys() - set(names):
                parts = ("notify", index, "labels", name)
                message = "expected one of the names in `watch.labels`"
                self._problems.add(self._line(parts), parts, message)

    def _canaries(self, data: dict[str, object], accounts: list[str] | None) -> None:
        parts = ("canaries",)
        for index, given, canary in self._items(data, CanaryConfig, parts, MAX_CANARIES):
            account = (*parts, index, "account")
            if "account" in given:
                self._known_account(given["account"], accounts, account)
            elif accounts is not None and len(accounts) != 1:
                message = "missing; expected it where there are several accounts"
                self._problems.add(self._line((*parts, index)), account, message)
            phone = canary["phone"]
            if isinstance(phone, Secret) and phone is not NO_SECRET:
                place = (*parts, index, "phone" if "phone" in given else "phone_file")
                if problem := phone_problem(phone):
                    self._problems.add(self._line(place), place, problem)

    def _home_assistant(self, broker: dict[str, object], accounts: list[str] | None) -> None:
        part = "home_assistant"
        if problem := client_problem():
            self._problems.add(self._line((part,)), (part,), problem)
        for place, name in enumerate(_strings(broker.get("accounts")) or ()):
            self._known_account(name, accounts, (part, "accounts", place))
        named = broker.get("ca_file")
        if isinstance(named, str) and named:
            path = self._folder / named
            broker["ca_file"] = str(path)
            try:
                self._broker = authorities_of(self._files.read(path, MAX_AUTHORITIES))
            except FileProblemError as error:
                where = (part, "ca_file")
                self._problems.add(self._line(where), where, str(error))

    def _items(
        self, holder: dict[str, object], model: type[BaseModel], parts: tuple[str, ...], most: int
    ) -> Iterator[tuple[int, YamlMapping, dict[str, object]]]:
        """Read a list of named mappings that hold secrets.

        Returns:
            The index of each, what is given, and what was read of it.
        """
        items = holder.get(parts[-1])
        if not isinstance(items, YamlSequence):
            return iter(())
        # One too many is enough to be told.
        shown = items[: most + 1]
        self._unique_names(shown, parts)
        read = [self._with_secrets(item, model, (*parts, n)) for n, item in enumerate(shown)]
        holder[parts[-1]] = read
        return (
            (index, given, data)
            for index, (given, data) in enumerate(zip(shown, read, strict=True))
            if isinstance(given, YamlMapping) and isinstance(data, dict)
        )

    def _known_account(
        self, name: object, accounts: list[str] | None, parts: tuple[str | int, ...]
    ) -> None:
        if isinstance(name, str) and accounts is not None and name not in accounts:
            message = "expected the name of one of the accounts"
            self._problems.add(self._line(parts), parts, message)

    def _beside(self, pattern: Value) -> object:
        if not isinstance(pattern, str) or not pattern:
            return pattern
        return os.path.join(glob.escape(os.path.abspath(self._folder)), pattern)  # noqa: PTH100, PTH118 - a pattern

    def _unique_labels(self, names: list[str]) -> None:
        for index, name in enumerate(names[: MAX_LABELS + 1]):
            if name in names[:index]:
                parts = ("watch", "labels", index)
                self._problems.add(self._line(parts), parts, "the same name again")

    def _line(self, parts: Iterable[str | int]) -> int:
        return line_of(self._document, parts)


def _strings(items: object, key: str | None = None) -> list[str] | None:
    """Return the items of a list, or what each has under `key`, if all of them are text."""
    if not isinstance(items, YamlSequence):
        return None
    values: Iterable[object] = items
    if key is not None:
        values = (item.get(key) if isinstance(item, YamlMapping) else None for item in items)
    texts = [value for value in values if isinstance(value, str)]
    return texts if len(texts) == len(items) else None
