"""What a configuration says of Home Assistant, and of the MQTT broker that leads to it."""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from exporter.config.authorities import Trusting
from exporter.config.fields import AccountName, Words
from exporter.secrets import Secret

_MOST_ACCOUNTS = 1000


def _mqtt_url(value: str) -> str:
    url = urlsplit(value)
    port = f":{url.port}" if url.port else ""
    host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
    # Whatever else it holds is found by putting it together anew; the case of a host is lost.
    if not url.hostname or value.lower().rstrip("/") != f"{url.scheme}://{host}{port}":
        raise ValueError
    if url.scheme not in {"mqtt", "mqtts"} or not re.fullmatch("[!-~]+", value):
        raise ValueError
    return value.rstrip("/")


MqttTopic = Annotated[
    str,
    Field(strict=True, pattern=r"^[A-Za-z0-9_-]{1,64}(/[A-Za-z0-9_-]{1,64}){0,7}$"),
    Words("up to 8 levels of 1 to 64 letters, digits, `_` or `-`, with `/` between them"),
]
MqttUrl = Annotated[
    str,
    Field(strict=True, json_schema_extra={"format": "uri", "pattern": "^mqtts?://[^/?#@]+/?$"}),
    AfterValidator(_mqtt_url),
    Words("`mqtt://HOST[:PORT]`, or `mqtts://HOST[:PORT]` for TLS, without user and path"),
]
PathText = Annotated[
    str,
    Field(strict=True, min_length=1, max_length=4096),
    Words("the path of a file"),
]
UserName = Annotated[
    str,
    Field(strict=True, pattern=r"^[^\x00-\x1f\x7f]{1,1024}$"),
    Words("a name of 1 to 1024 characters"),
]


class HomeAssistantConfig(Trusting):
    """What Home Assistant is told of the accounts, through an MQTT broker."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True
    )

    url: MqttUrl
    """The broker; the port is 1883, or 8883 with TLS, where none is named."""

    username: UserName | None = None
    """Who the exporter is to the broker; without it, nobody in particular."""

    password: Secret | None = None
    """What it shows beside `username`. Either this or `password_file`."""

    ca_file: PathText | None = None
    """Certificates of the authorities that the broker's may come from, as PEM; without it, those
    of the system."""

    discovery_prefix: MqttTopic = "homeassistant"
    """The prefix at which Home Assistant looks for devices, and says that it has started."""

    topic_prefix: MqttTopic = "esms-exporter"
    """What the exporter's own topics begin with; another one for each ledger on a broker."""

    accounts: (
        Annotated[tuple[AccountName, ...], Field(min_length=1, max_length=_MOST_ACCOUNTS)] | None
    ) = None
    """The accounts that are shown; all of them where this is left out."""

    @field_validator("password")
    @classmethod
    def _of_somebody(cls, value: Secret | None, info: ValidationInfo) -> Secret | None:
        if value is not None and info.data.get("username", "") is None:
            raise PydanticCustomError("expected", "expected `username` beside it")
        return value

    @field_validator("ca_file")
    @classmethod
    def _with_tls(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("url", "mqtts:").startswith("mqtt:"):
            raise PydanticCustomError("expected", "expected `url` to begin with `mqtts://`")
        return value
