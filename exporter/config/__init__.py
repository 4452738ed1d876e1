"""The configuration file: what it may say, and reading it with every problem at once."""

from exporter.config.accounts import AccountConfig, BalanceConfig, PollingConfig
from exporter.config.canaries import CanaryConfig
from exporter.config.databases import LedgerConfig, SqlConfig
from exporter.config.files import NamedFiles
from exporter.config.home_assistant import HomeAssistantConfig
from exporter.config.loading import Config, json_schema, load_config
from exporter.config.notify import NotifyConfig
from exporter.config.watch import (
    ApiConfig,
    CallbackConfig,
    CallConfig,
    TokenConfig,
    WatchConfig,
)

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
