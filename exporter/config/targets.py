"""The sections `notify` (webhooks) and `home_assistant` (MQTT broker)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, PrivateAttr, ValidationInfo, field_validator
from yarl import URL

from exporter.config.files import Authorities, FileProblemError, authorities_of
from exporter.config.types import (
    Expected,
    KnownAccounts,
    KnownLabel,
    LabelValue,
    Name,
    Password,
    SecretAddress,
    count,
    duration,
    text,
)
from exporter.config.validation import LoadContext, Section, invalid
from exporter.secrets import Secret, decode_signing_key
from exporter.ssrf import is_forbidden, is_ip_address

MAX_TARGETS: Final = 20

_MAX_CERTIFICATES_FILE: Final = 1 << 20


def _signing_key(secret: Secret) -> Secret:
    decode_signing_key(secret)
    return secret


def _target_url(secret: Secret) -> Secret:
    url = urlsplit(secret.reveal())
    if url.scheme not in {"http", "https"} or not url.hostname or url.port == 0 or url.fragment:
        raise ValueError
    # The HTTP client is stricter: it would fail at the first notification.
    if not URL(secret.reveal()).host:
        raise ValueError
    # Check IP addresses only: host names are checked when they are resolved.
    if is_ip_address(url.hostname) and is_forbidden(url.hostname):
        raise ValueError
    return secret


TargetUrl = Annotated[
    SecretAddress,
    Field(json_schema_extra={"pattern": "^https?://[^#]+$"}),
    Expected(
        "`https://HOST...` or `http://HOST...`, not a link-local or metadata address",
        AfterValidator(_target_url),
    ),
]
SigningKey = Annotated[
    SecretAddress,
    Field(json_schema_extra={"pattern": "^whsec_"}),
    Expected("`whsec_` and 24 to 64 bytes in Base64", AfterValidator(_signing_key)),
]
ResultName = Literal["success", "failure", "unknown"]
StatusName = Literal[
    "answered", "no_answer", "busy", "failed", "rejected", "none", "other", "not_found", "expired"
]
LabelValues = Annotated[
    LabelValue | Annotated[tuple[LabelValue, ...], Field(min_length=1)],
    Expected("a text, or a list of texts"),
]


class NotifyConfig(Section):
    """A webhook that receives a POST request with a signed CloudEvent for each finished call."""

    secrets = ("url", "secret")

    name: Name
    """The value of the label `target`. Unique."""

    url: TargetUrl
    """The URL to send notifications to. Either this or `url_file`."""

    secret: SigningKey
    """The key to sign notifications with. Either this or `secret_file`."""

    accounts: KnownAccounts | None = None
    """Only calls of these accounts. Default: all accounts."""

    results: Annotated[tuple[ResultName, ...], Field(min_length=1, max_length=3)] | None = None
    """Only calls with one of these values of `result`."""

    statuses: Annotated[tuple[StatusName, ...], Field(min_length=1, max_length=9)] | None = None
    """Only calls with one of these values of `status`."""

    labels: dict[KnownLabel, LabelValues] | None = None
    """Only calls whose labels have one of these values. A label that a call does not have is
    empty."""

    timeout: Annotated[float, duration("1s", "1m")] = 10.0
    """Timeout of a request, from connecting to the status of the response."""

    give_up_after: Annotated[float, duration("1s", "30d")] = 86_400.0
    """How long delivery is retried after the end of the call."""

    max_concurrency: Annotated[int, count(1, 100)] = 8
    """Maximum number of concurrent requests."""

    @property
    def label_values(self) -> Mapping[str, frozenset[str]]:
        """The accepted values of each label."""
        return {
            name: frozenset((values,) if isinstance(values, str) else values)
            for name, values in (self.labels or {}).items()
        }


def _mqtt_url(value: str) -> str:
    url = urlsplit(value)
    port = f":{url.port}" if url.port else ""
    host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
    # Finds any other part, such as a user or a path. `hostname` is in lower case.
    if not url.hostname or value.lower().rstrip("/") != f"{url.scheme}://{host}{port}":
        raise ValueError
    if url.scheme not in {"mqtt", "mqtts"} or not re.fullmatch("[!-~]+", value):
        raise ValueError
    return value.rstrip("/")


MqttTopic = Annotated[
    str,
    text(
        "up to 8 levels of 1 to 64 letters, digits, `_` or `-`, with `/` between them",
        r"^[A-Za-z0-9_-]{1,64}(/[A-Za-z0-9_-]{1,64}){0,7}$",
    ),
]
MqttUrl = Annotated[
    str,
    text(
        "`mqtt://HOST[:PORT]`, or `mqtts://HOST[:PORT]` for TLS, without user and path",
        check=_mqtt_url,
    ),
    Field(json_schema_extra={"format": "uri", "pattern": "^mqtts?://[^/?#@]+/?$"}),
]
UserName = Annotated[str, text("a name of 1 to 1024 characters", r"^[^\x00-\x1f\x7f]{1,1024}$")]
FilePath = Annotated[str, text("the path of a file", min_length=1, max_length=4096)]


class HomeAssistantConfig(Section):
    """Publish accounts and finished calls to Home Assistant through an MQTT broker."""

    secrets = ("password",)

    url: MqttUrl
    """The MQTT broker. The default port is 1883, or 8883 with TLS."""

    username: UserName | None = None
    """The user to connect as. Default: anonymous."""

    password: Password | None = None
    """The password of `username`. Either this or `password_file`."""

    ca_file: FilePath | None = None
    """Certificate authorities to verify the broker against, in PEM format. Default: those of the
    system."""

    discovery_prefix: MqttTopic = "homeassistant"
    """The topic prefix that Home Assistant uses for discovery and for its birth message."""

    topic_prefix: MqttTopic = "esms-exporter"
    """Prefix of the exporter's own topics. Each ledger needs its own prefix on a broker."""

    accounts: KnownAccounts | None = None
    """The accounts to publish. Default: all accounts."""

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
            raise invalid("requires `username`")
        return value

    @field_validator("ca_file")
    @classmethod
    def _read_certificates(cls, value: str | None, info: ValidationInfo) -> str | None:
        context = info.context
        if value and info.data.get("url", "").startswith("mqtt:"):
            raise invalid("requires a `url` that begins with `mqtts://`")
        if value and isinstance(context, LoadContext):
            try:
                pem = context.files.read(context.folder / value, _MAX_CERTIFICATES_FILE)
                context.broker_authorities[value] = authorities_of(pem)
            except FileProblemError as error:
                raise invalid(str(error)) from None
        return value

    def model_post_init(self, context: Any) -> None:  # Any: as pydantic declares it
        """Keep the certificates that were read."""
        if self.ca_file and isinstance(context, LoadContext):
            self._authorities = context.broker_authorities[self.ca_file]

    @property
    def authorities(self) -> Authorities | None:
        """The authorities of `ca_file`; None for those of the system."""
        return self._authorities
