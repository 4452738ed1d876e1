"""The section `home_assistant`: the MQTT broker that leads to it, and what is published there."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, PrivateAttr, ValidationInfo, field_validator

from exporter.config.files import Authorities, FileProblemError, authorities_of
from exporter.config.types import Expected, KnownAccounts, Password
from exporter.config.validation import MAX_CERTIFICATES_FILE, LoadContext, Section, invalid
from exporter.secrets import Secret


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
    Expected("up to 8 levels of 1 to 64 letters, digits, `_` or `-`, with `/` between them"),
]
MqttUrl = Annotated[
    str,
    Field(strict=True, json_schema_extra={"format": "uri", "pattern": "^mqtts?://[^/?#@]+/?$"}),
    AfterValidator(_mqtt_url),
    Expected("`mqtt://HOST[:PORT]`, or `mqtts://HOST[:PORT]` for TLS, without user and path"),
]
UserName = Annotated[
    str,
    Field(strict=True, pattern=r"^[^\x00-\x1f\x7f]{1,1024}$"),
    Expected("a name of 1 to 1024 characters"),
]
FilePath = Annotated[
    str, Field(strict=True, min_length=1, max_length=4096), Expected("the path of a file")
]


class HomeAssistantConfig(Section):
    """What is published to Home Assistant about the accounts, through an MQTT broker."""

    url: MqttUrl
    """The broker; the port is 1883, or 8883 with TLS, where none is named."""

    username: UserName | None = None
    """The user that connects to the broker; without it, an anonymous one."""

    password: Password | None = None
    """The password of `username`. Either this or `password_file`."""

    ca_file: FilePath | None = None
    """Certificates of the authorities that the broker's may come from, as PEM; without it, those
    of the system."""

    discovery_prefix: MqttTopic = "homeassistant"
    """The prefix at which Home Assistant looks for devices, and says that it has started."""

    topic_prefix: MqttTopic = "esms-exporter"
    """What the exporter's own topics begin with; another one for each ledger on a broker."""

    accounts: KnownAccounts | None = None
    """The accounts that are shown; all of them where this is left out."""

    _authorities: Authorities | None = PrivateAttr(default=None)

    @field_validator("url")
    @classmethod
    def _with_client(cls, value: str, info: ValidationInfo) -> str:
        if info.context and find_spec("aiomqtt") is None:
            install = "`pip install 'esms-exporter[home-assistant]'`"
            raise invalid(f"the MQTT client is not installed: {install}")
        return value

    @field_validator("password")
    @classmethod
    def _with_username(cls, value: Secret | None, info: ValidationInfo) -> Secret | None:
        if value is not None and info.data.get("username", "") is None:
            raise invalid("expected `username` beside it")
        return value

    @field_validator("ca_file")
    @classmethod
    def _with_tls(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        if info.data.get("url", "mqtts:").startswith("mqtt:"):
            raise invalid("expected `url` to begin with `mqtts://`")
        if isinstance(info.context, LoadContext):
            path = info.context.folder / value
            try:
                pem = info.context.files.read(path, MAX_CERTIFICATES_FILE)
                info.context.broker_authorities[str(path)] = authorities_of(pem)
            except FileProblemError as error:
                raise invalid(str(error)) from None
            return str(path)
        return value

    def model_post_init(self, context: Any) -> None:  # Any: as pydantic declares it
        """Keep the authorities that were read with it."""
        if self.ca_file and isinstance(context, LoadContext):
            self._authorities = context.broker_authorities[self.ca_file]

    @property
    def authorities(self) -> Authorities | None:
        """The authorities of `ca_file`; None for those of the system."""
        return self._authorities
