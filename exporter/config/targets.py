"""The sections `notify` (webhooks) and `home_assistant` (MQTT broker)."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from exporter.config.files import FileProblemError, ascii_pem, load_certificate
from exporter.config.validation import (
    Authorities,
    Expected,
    KnownAccounts,
    KnownLabel,
    LabelValue,
    Name,
    Password,
    Pem,
    SecretAddress,
    Section,
    Switch,
    check_url,
    count,
    duration,
    invalid,
    invalid_at,
    secret,
    text,
)
from exporter.secrets import Secret, decode_signing_key
from exporter.ssrf import is_forbidden, is_ip_address

MAX_TARGETS: Final = 20


def _signing_key(secret: Secret) -> Secret:
    decode_signing_key(secret)
    return secret


def _target_url(secret: Secret) -> Secret:
    host = check_url(secret.reveal(), "http", "https", without="#").host or ""
    # Check IP addresses only: host names are checked when they are resolved.
    if is_ip_address(host) and is_forbidden(host):
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
        return {
            name: frozenset((values,) if isinstance(values, str) else values)
            for name, values in (self.labels or {}).items()
        }


def _mqtt_url(value: str) -> str:
    check_url(value, "mqtt", "mqtts", without="?#@", path=False)
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
        "^[!-~]+$",
        check=_mqtt_url,
    ),
    Field(json_schema_extra={"format": "uri", "pattern": "^mqtts?://[^/?#@]+/?$"}),
]
UserName = Annotated[str, text("a name of 1 to 1024 characters", r"^[^\x00-\x1f\x7f]{1,1024}$")]
PrivateKey = Annotated[
    Secret, secret("a private key in PEM, without a password", r"-----BEGIN [\s\S]+")
]


class HomeAssistantConfig(Section):
    """Publish accounts and finished calls to Home Assistant through an MQTT broker."""

    file_keys = ("ca", "cert")

    url: MqttUrl
    """The MQTT broker. The default port is 1883, or 8883 with TLS."""

    username: UserName | None = None
    """The user to connect as. Default: anonymous."""

    password: Password | None = None
    """The password of `username`. Either this or `password_file`."""

    ca: Authorities = ""
    """Certificate authorities to verify the broker against, in PEM format. Default: those of the
    system. Either this or `ca_file`."""

    cert: Pem = ""
    """A client certificate, for a broker that requires one. Either this or `cert_file`."""

    key: PrivateKey | None = None
    """The private key of `cert`. Either this or `key_file`."""

    discovery_prefix: MqttTopic = "homeassistant"
    """The topic prefix that Home Assistant uses for discovery and for its birth message."""

    topic_prefix: MqttTopic = "esms-exporter"
    """Prefix of the exporter's own topics. Each ledger needs its own prefix on a broker."""

    accounts: KnownAccounts | None = None
    """The accounts to publish. Default: all accounts."""

    language: Literal["en", "vi"] = "en"
    """The language of the names of entities; ids stay the same."""

    buttons: Switch = True
    """Publish buttons that reload the configuration and place canary calls. Every client that the
    broker allows to publish to their topics can press them."""

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

    @model_validator(mode="after")
    def _with_tls(self) -> HomeAssistantConfig:
        given = [key for key in ("ca", "cert", "key") if getattr(self, key)]
        if given and self.url.startswith("mqtt:"):
            raise invalid_at(given[0], "requires a `url` that begins with `mqtts://`")
        if bool(self.cert) != bool(self.key):
            raise invalid_at(given[-1], f"requires `{'key' if self.cert else 'cert'}`")
        if self.key:
            try:
                self.tls()
            except FileProblemError as error:
                raise invalid_at("key", str(error)) from None
        return self

    def tls(self) -> ssl.SSLContext:
        """Return the TLS of a connection; raise `FileProblemError` for a bad certificate or key."""
        context = ssl.create_default_context(cadata=ascii_pem(self.ca))
        if self.key:
            load_certificate(context, self.cert, self.key.reveal())
        return context
