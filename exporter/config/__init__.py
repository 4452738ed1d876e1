"""The configuration: its model, its loader, which reports all problems at once, and its schema."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field, PrivateAttr

from exporter.config.accounts import AccountConfig, BalanceConfig, PollingConfig
from exporter.config.canaries import MAX_CANARIES, CanaryConfig
from exporter.config.databases import LedgerConfig, SqlConfig
from exporter.config.document import Problems, Value, YamlMapping, YamlSequence, load_mapping
from exporter.config.files import Authorities, FileProblemError, NamedFiles, system_authorities
from exporter.config.targets import MAX_TARGETS, HomeAssistantConfig, NotifyConfig
from exporter.config.types import MAX_ACCOUNTS, duration, format_duration
from exporter.config.validation import LoadContext, Section, validate
from exporter.config.watch import ApiConfig, CallbackConfig, CallConfig, TokenConfig, WatchConfig

__all__ = [
    "AccountConfig",
    "ApiConfig",
    "BalanceConfig",
    "CallConfig",
    "CallbackConfig",
    "CanaryConfig",
    "Config",
    "HomeAssistantConfig",
    "LedgerConfig",
    "NamedFiles",
    "NotifyConfig",
    "PollingConfig",
    "SqlConfig",
    "TokenConfig",
    "WatchConfig",
    "json_schema",
    "load_config",
]

MAX_FILE: Final = 64 << 20


class Config(Section):
    """The configuration of esms-exporter."""

    accounts: Annotated[tuple[AccountConfig, ...], Field(min_length=1, max_length=MAX_ACCOUNTS)]
    """The accounts whose calls are watched."""

    polling: PollingConfig = PollingConfig()
    """When calls are polled, and when to give up."""

    balance: BalanceConfig = BalanceConfig()
    """How often the balance of each account is requested."""

    watch: WatchConfig = WatchConfig()
    """Which calls are watched, and the names of their labels."""

    ledger: LedgerConfig = LedgerConfig()
    """The durable record of calls and totals."""

    notify: Annotated[tuple[NotifyConfig, ...], Field(max_length=MAX_TARGETS)] = ()
    """Webhooks that receive a POST request for each finished call."""

    canaries: Annotated[tuple[CanaryConfig, ...], Field(max_length=MAX_CANARIES)] = ()
    """Test calls that the exporter places on a schedule. They cost money."""

    home_assistant: Annotated[HomeAssistantConfig | None, Field(title="Home Assistant")] = None
    """Publish accounts and finished calls to Home Assistant, through an MQTT broker. Off by
    default."""

    shutdown_timeout: Annotated[float, duration("100ms", "1h")] = 10.0
    """Grace period at shutdown, to finish what is in progress."""

    _authorities: Authorities | None = PrivateAttr(default=None)

    def model_post_init(self, context: Any) -> None:  # Any: as pydantic declares it
        """Keep the certificate authorities of the load context."""
        if isinstance(context, LoadContext):
            self._authorities = context.authorities

    @property
    def authorities(self) -> Authorities | None:
        """The certificate authorities that servers are verified against; None for the default."""
        return self._authorities

    @property
    def tls(self) -> ssl.SSLContext | bool:
        """The authorities as an `ssl` argument of aiohttp."""
        return self._authorities.context if self._authorities else True

    @property
    def memory(self) -> float:
        """Seconds to remember a finished call: `keep_finished` or two runs of the slowest query."""
        runs = (2 * (query.interval + query.timeout) for query in self.watch.sql)
        return max([self.ledger.keep_finished, *runs])

    def account_of(self, canary: CanaryConfig) -> str:
        """Return the name of the account that places a canary call."""
        return canary.account or self.accounts[0].name


def load_config(
    path: Path, environ: Mapping[str, str] = os.environ, files: NamedFiles | None = None
) -> Config:
    """Read a YAML configuration file.

    Args:
        path: the file; paths in it are relative to its folder.
        environ: the variables for `${NAME}`.
        files: records the files that it names.

    Raises:
        ConfigError: the configuration is invalid; holds all problems, in the order of the file.
    """
    problems, files = Problems(str(path)), files or NamedFiles()
    document = load_mapping(path, MAX_FILE, environ, problems, "accounts")
    if document is None:
        problems.add(0, (), "is empty; expected a mapping with the key `accounts`")
        problems.fail()
    authorities = None
    try:
        authorities = system_authorities(files)
    except FileProblemError as error:
        problems.add(0, ("SSL_CERT_FILE",), str(error))
    accounts = _strings(_at(document, ("accounts",)), "name")
    labels = _strings(_at(document, ("watch", "labels")) or YamlSequence())
    context = LoadContext(path.parent, problems, files, accounts, labels, authorities)
    config = validate(Config, document, context)
    if config is None or problems.total:
        problems.fail()
    return config


def _at(document: Value, path: Iterable[str]) -> Value:
    for key in path:
        document = document.get(key) if isinstance(document, YamlMapping) else None
    return document


def _strings(items: Value, key: str | None = None) -> list[str] | None:
    """Return the items of a list, or the value of `key` in each item; None unless all are text."""
    if not isinstance(items, YamlSequence):
        return None
    values = [_at(item, [key]) for item in items] if key else items
    texts = [value for value in values if isinstance(value, str)]
    return texts if len(texts) == len(items) else None


_ANNOTATIONS: Final = ("title", "description", "default")
_VARIABLE: Final = {"type": "string", "pattern": r"^\$\{.+\}$"}


def json_schema() -> dict[str, object]:
    """Return the JSON Schema (draft 2020-12) of the file before `${NAME}` is replaced."""
    schema: dict[str, Any] = Config.model_json_schema()  # Any: as pydantic declares it
    models = {model.__name__: model for model in Section.__subclasses__()}
    for name, model in {"Config": schema, **schema["$defs"]}.items():
        keys, required = model["properties"], model.get("required", [])
        model["properties"] = {key: _as_in_file(value) for key, value in keys.items()}
        secrets = models[name].secrets
        for key in secrets:
            model["properties"][f"{key}_file"] = {
                "title": f"{keys[key]['title']} File",
                "description": f"A file that contains the value of `{key}`; the path is relative to"
                " the configuration. Read again when it changes.",
                "type": "string",
                "minLength": 1,
            }
        if either := [key for key in secrets if key in required]:
            model["required"] = [key for key in required if key not in either]
            model["allOf"] = [
                {"oneOf": [{"required": [key]}, {"required": [f"{key}_file"]}]} for key in either
            ]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _as_in_file(value: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a key as written in the file: durations and variables are strings."""
    if "$ref" in value:
        # Its keys have their own defaults, as durations.
        return {"$ref": value["$ref"]}
    is_duration = value.get("format") == "duration"
    if is_duration and "default" in value:
        value = {**value, "default": format_duration(value["default"])}
    if is_duration or value.get("type") in {"integer", "number"}:
        about: dict[str, Any] = {key: value.pop(key) for key in _ANNOTATIONS if key in value}
        value = {**about, "anyOf": [value, _VARIABLE]}
    return value
