"""The configuration file: what it may say, and reading it with every problem at once."""

from exporter.config.calls import CallConfig
from exporter.config.canaries import CanaryConfig
from exporter.config.files import NamedFiles
from exporter.config.home_assistant import HomeAssistantConfig
from exporter.config.loading import load_config
from exporter.config.models import (
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
from exporter.config.notify import NotifyConfig
from exporter.config.schema import json_schema

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
