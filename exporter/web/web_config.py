"""The web configuration file and its TLS, in the format of the Prometheus exporter-toolkit.

Source of keys and defaults: `docs/web-configuration.md` of prometheus/exporter-toolkit. Unlike the
toolkit, the exporter rejects settings that it would ignore.
"""

from __future__ import annotations

import math
import re
import socket
import ssl
from contextlib import suppress
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationInfo,
    model_validator,
)

from exporter.config.document import Problems, YamlMapping, load_mapping
from exporter.config.files import FileProblemError, NamedFiles, ascii_pem, load_certificate
from exporter.config.validation import (
    Authorities,
    Expected,
    LoadContext,
    Pem,
    Section,
    Switch,
    count,
    invalid,
    invalid_at,
    secret,
    text,
    validate,
)
from exporter.secrets import Secret

MAX_FILE: Final = 1 << 20

_SECONDS: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6}
_PART: Final = r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(h|ms|us|m|s)"

_ALLOWED: Final = {"X-Content-Type-Options": ["nosniff"], "X-Frame-Options": ["deny", "sameorigin"]}
"""The allowed values of headers with a fixed set of values."""

_VERSIONS: Final = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
_CURVES: Final = {
    "CurveP256": "prime256v1",
    "CurveP384": "secp384r1",
    "CurveP521": "secp521r1",
    "X25519": "X25519",
}
_CIPHERS: Final = {
    f"TLS_ECDHE_{sign}_WITH_{name}": f"ECDHE-{sign}-{openssl}"
    for sign in ("ECDSA", "RSA")
    for name, openssl in {
        "AES_128_CBC_SHA": "AES128-SHA",
        "AES_256_CBC_SHA": "AES256-SHA",
        "AES_128_GCM_SHA256": "AES128-GCM-SHA256",
        "AES_256_GCM_SHA384": "AES256-GCM-SHA384",
        "CHACHA20_POLY1305_SHA256": "CHACHA20-POLY1305",
    }.items()
}
"""OpenSSL's names of cipher suites, by those of Go's `crypto/tls`."""

_CIPHERS_13: Final = (
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
)
"""Always enabled with TLS 1.3, as in the toolkit."""

_VERIFY: Final = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}

# Warn this long before a certificate expires, or a fifth of its validity if shorter.
_SOON: Final = timedelta(days=14)
_CERTIFICATE: Final = re.compile(
    "-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL
)
# The validity in DER: two times, each UTCTime or GeneralizedTime.
_VALIDITY: Final = re.compile(rb"(?:\x17\x0d(?=\d{12}Z)|\x18\x0f(?=\d{14}Z))(\d+Z)" * 2)


# TLS.

ACCEPTED: Final[ContextVar[socket.socket]] = ContextVar("accepted")
"""The socket of the connection whose handshake is starting."""


class _Handshake(ssl.SSLObject):
    """Sends the alert of a failed handshake, because the event loop closes without sending it."""

    outgoing: ssl.MemoryBIO
    accepted: socket.socket

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except ssl.SSLError as error:
            if not isinstance(error, ssl.SSLWantReadError | ssl.SSLWantWriteError):
                with suppress(OSError):
                    self.accepted.send(self.outgoing.read())
            raise


class _Context(ssl.SSLContext):
    sslobject_class = _Handshake

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        *args: Any,  # Any: passed on from the event loop
        **options: Any,
    ) -> ssl.SSLObject:
        handshake = super().wrap_bio(incoming, outgoing, *args, **options)
        assert isinstance(handshake, _Handshake)  # noqa: S101 - by `sslobject_class`
        handshake.outgoing, handshake.accepted = outgoing, ACCEPTED.get()
        return handshake


class Tls(NamedTuple):
    """TLS of the server."""

    context: ssl.SSLContext  # for new connections; `ACCEPTED` must hold the socket of each
    allowed_sans: frozenset[str]  # a client's certificate must contain one; empty for any
    expires_at: float  # Unix time at which the first certificate of the server's chain expires
    warn_at: float  # when warnings about that start

    def expiry_warning(self, now: float) -> str | None:
        """Return a warning if the certificate has expired or expires soon."""
        if now < self.warn_at:
            return None
        when = datetime.fromtimestamp(self.expires_at, UTC)
        verb = "expired" if now >= self.expires_at else "expires soon,"
        return f"the certificate of the web server {verb} at {when:%Y-%m-%dT%H:%M:%SZ}"

    def admits(self, certificate: Any) -> bool:  # Any: `ssl.SSLSocket.getpeercert`'s own
        """Return whether a client with this verified certificate, or None, is allowed."""
        names = (certificate or {}).get("subjectAltName", ())
        return not self.allowed_sans or any(_san(*name) in self.allowed_sans for name in names)


def _san(kind: str, name: str) -> str:
    with suppress(ValueError):
        # OpenSSL has its own notation of IPv6 addresses.
        return str(ip_address(name.strip())) if kind == "IP Address" else name
    return name


def _validity(pem: str) -> tuple[float, float]:
    """Return when the first of the certificates expires, and when warnings start."""
    ends = []
    for block in _CERTIFICATE.findall(pem):
        # The validity is the first pair of times in a certificate (RFC 5280, section 4.1).
        if found := _VALIDITY.search(ssl.PEM_cert_to_DER_cert(block)):
            begin, end = (
                datetime.strptime(at.decode(), f"%{'y' if len(at) == 13 else 'Y'}%m%d%H%M%S%z")
                for at in found.groups()
            )
            ends.append((end.timestamp(), (end - min(_SOON, (end - begin) / 5)).timestamp()))
    return min(ends, default=(math.inf, math.inf))


# The file.


class _Section(Section):
    """A mapping in the file; as in Go's YAML, an empty value means the default."""

    model_config = ConfigDict(strict=True)
    null_is_default = True


_Text = Annotated[str, Expected("text")]
_Version = Literal["TLS12", "TLS13"]


def _used(value: Any, info: ValidationInfo) -> Any:  # Any: a text or a list
    if value and info.data.get("client_auth_type") == "NoClientCert":
        raise invalid("not used with this `client_auth_type`, which asks for no client certificate")
    return value


def _not_older(version: str, info: ValidationInfo) -> str:
    if version < info.data.get("min_version", version):
        raise invalid("expected at least the value of `min_version`")
    return version


def _usable(ciphers: list[str], info: ValidationInfo) -> list[str]:
    if ciphers and info.data.get("max_version") == "TLS12" and _CIPHERS.keys().isdisjoint(ciphers):
        raise invalid("expected at least one cipher suite for TLS12")
    return ciphers


def _at_most_one(curves: list[str]) -> list[str]:
    if len(curves) > 1:
        raise invalid("expected exactly one curve, or none for the default curves")
    return curves


class _TlsServer(_Section):
    file_keys = ("cert", "key", "client_ca")

    cert: Pem
    key: Annotated[Secret, Expected("text in PEM")]
    client_auth_type: Literal[tuple(_VERIFY)] = "NoClientCert"  # type: ignore[valid-type] # texts
    client_ca: Annotated[Authorities, AfterValidator(_used)] = ""
    client_allowed_sans: Annotated[list[_Text], AfterValidator(_used)] = Field(default_factory=list)
    min_version: _Version = "TLS12"
    max_version: Annotated[_Version, AfterValidator(_not_older)] = "TLS13"
    cipher_suites: Annotated[
        list[Literal[(*_CIPHERS, *_CIPHERS_13)]],  # type: ignore[valid-type] # texts
        AfterValidator(_usable),
    ] = Field(default_factory=list)
    curve_preferences: Annotated[
        list[Literal[tuple(_CURVES)]],  # type: ignore[valid-type] # texts
        AfterValidator(_at_most_one),
    ] = Field(default_factory=list)
    prefer_server_cipher_suites: Switch = True

    def tls(self) -> Tls:
        """Return the TLS of the section; raise `ValidationError` for a bad certificate or key."""
        context = _Context(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["http/1.1"])
        context.minimum_version = _VERSIONS[self.min_version]
        context.maximum_version = _VERSIONS[self.max_version]
        if not self.prefer_server_cipher_suites:
            context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
        if chosen := [_CIPHERS[name] for name in self.cipher_suites if name in _CIPHERS]:
            context.set_ciphers(":".join(chosen))
        elif self.cipher_suites:
            # Older versions have none of these cipher suites.
            context.minimum_version = ssl.TLSVersion.TLSv1_3
        for curve in self.curve_preferences:
            context.set_ecdh_curve(_CURVES[curve])
        try:
            load_certificate(context, self.cert, self.key.reveal())
        except FileProblemError as error:
            raise invalid_at("key", str(error)) from None
        context.verify_mode = _VERIFY[self.client_auth_type]
        if self.client_ca:
            context.load_verify_locations(cadata=ascii_pem(self.client_ca))
        elif context.verify_mode is not ssl.CERT_NONE:
            context.load_default_certs(ssl.Purpose.CLIENT_AUTH)
        return Tls(context, frozenset(self.client_allowed_sans), *_validity(self.cert))


def _tls(value: object, info: ValidationInfo[LoadContext]) -> Tls | None:
    """Return the TLS of a section; None for an empty section."""
    if not value:
        return None
    if isinstance(value, YamlMapping):
        value = YamlMapping((key, item) for key, item in value.items() if item not in ("", None))
    return _TlsServer.model_validate(value, context=info.context).tls()


def _headers(headers: dict[str, str]) -> dict[str, str]:
    for name, allowed in _ALLOWED.items():
        if headers.get(name, "") not in ["", *allowed]:
            raise invalid(f"{name}: expected one of: {', '.join(allowed)}")
    return {name: value for name, value in headers.items() if value}


def _interval(value: object) -> float:
    if not isinstance(value, str) or not re.fullmatch(f"0|({_PART})+", value, re.ASCII):
        raise ValueError
    return sum(float(number) * _SECONDS[unit] for number, unit in re.findall(_PART, value))


def _user(name: str) -> str:
    if ":" in name or not name.isprintable():
        raise ValueError
    return name


_User = Annotated[str, text("a user name without colons and control characters", check=_user)]
_Hash = Annotated[
    Secret,
    secret(
        # A cost above 20 takes most of a minute per password.
        "a bcrypt hash with a cost from 4 to 20, as from `htpasswd -nBC 10 NAME`",
        r"\$2[aby]\$(0[4-9]|1[0-9]|20)\$[./A-Za-z0-9]{53}",
    ),
]
_Header = Literal[
    "Strict-Transport-Security",
    "X-Content-Type-Options",
    "X-Frame-Options",
    "X-XSS-Protection",
    "Content-Security-Policy",
]
_HeaderValue = Annotated[
    str,
    BeforeValidator(lambda value: "" if value is None else value),
    Field(pattern=r"^[ -~]{0,4096}$"),
    Expected("a text of printable ASCII characters"),
]


class _HttpServer(_Section):
    http2: Switch = True  # accepted for compatibility; HTTP/2 is not supported
    headers: Annotated[dict[_Header, _HeaderValue], AfterValidator(_headers)] = Field(
        default_factory=dict
    )


class RateLimit(_Section):
    """Rate limit of requests: a burst of `burst`, and one more each `interval` seconds."""

    interval: Annotated[
        float,
        Field(ge=0, le=86_400),
        BeforeValidator(_interval),
        Expected("a duration such as `100ms`, `1s` or `1m30s`, up to 24h; 0 for no limit"),
    ] = 0.0
    burst: Annotated[int, count(1, 1_000_000)] = 1

    @model_validator(mode="after")
    def _with_burst(self) -> RateLimit:
        if self.interval and "burst" not in self.model_fields_set:
            raise invalid_at("burst", "missing required key")
        return self


class WebConfig(_Section):
    """Access to the HTTP server; by default plain HTTP without a password and a limit."""

    tls_server_config: Annotated[Tls | None, PlainValidator(_tls)] = None
    http_server_config: _HttpServer = _HttpServer()
    basic_auth_users: dict[_User, _Hash] = Field(default_factory=dict)
    rate_limit: RateLimit = RateLimit()


def load_web_config(path: Path, files: NamedFiles | None = None) -> WebConfig:
    """Read a web configuration file and the certificates that it names, which `files` records.

    Raises a `ConfigError` with every problem.
    """
    problems = Problems(str(path))
    # `$` is not expanded: hashes contain it, and the toolkit does not expand it either. As in
    # Go's YAML, any scalar is accepted where text is expected.
    document = load_mapping(
        path, MAX_FILE, None, problems, "tls_server_config", scalars_as_text=True
    )
    return validate(WebConfig, document, LoadContext(path.parent, problems, files or NamedFiles()))
