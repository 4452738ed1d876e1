"""TLS of the HTTP server: `tls_server_config` of the web configuration file."""

from __future__ import annotations

import math
import os
import re
import socket
import ssl
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Annotated, Any, Final, NamedTuple

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from exporter.config.document import Value, line_of
from exporter.config.files import FileProblemError
from exporter.config.types import Expected, Switch
from exporter.config.validation import LoadContext, Section
from exporter.secrets import Secret

MAX_PEM: Final = 1 << 20

_SECTION: Final = "tls_server_config"
_VERSIONS: Final = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
_CURVES: Final = {
    "CurveP256": "prime256v1",
    "CurveP384": "secp384r1",
    "CurveP521": "secp521r1",
    "X25519": "X25519",
}
_CIPHERS_13: Final = frozenset(
    {"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"}
)
"""Not to be chosen: all of them are offered wherever TLS 1.3 is, as by the toolkit."""

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
"""The names of Go's `crypto/tls`, and OpenSSL's."""

_VERIFY: Final = {
    "": ssl.CERT_NONE,
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
_SOON: Final = 14 * 86_400.0
_CERTIFICATE: Final = re.compile(
    "-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL
)
# Two times in DER, each as UTCTime or as GeneralizedTime.
_VALIDITY: Final = re.compile(rb"(?:\x17\x0d(\d{12}Z)|\x18\x0f(\d{14}Z))" * 2)
_UNVERIFIED: Final = ("RequestClientCert", "RequireAnyClientCert", "RequireClientCert")


def _one_of(known: dict[str, Any] | frozenset[str], message: str) -> Callable[[str], str]:
    def check(value: str) -> str:
        if value not in known:
            # A value in the wrong place may be anything: only what looks like a name is repeated.
            shown = value if re.fullmatch(r"[A-Za-z0-9_.]{1,64}", value) else "?"
            raise PydanticCustomError("unknown", f"{message}: {{value}}", {"value": shown})
        return value

    return check


def _version(value: str) -> str:
    if value in {"TLS10", "TLS11"}:
        raise PydanticCustomError(
            "version", "TLS 1.0 and 1.1 are not offered (RFC 8996); expected TLS12 or TLS13"
        )
    return _one_of(_VERSIONS, "unknown TLS version")(value)


def _client_auth(value: str) -> str:
    if value in _UNVERIFIED:
        raise PydanticCustomError(
            "client_auth",
            "{value} is not offered: certificates that are asked for are verified here; "
            "expected VerifyClientCertIfGiven or RequireAndVerifyClientCert",
            {"value": value},
        )
    return _one_of(_VERIFY, "invalid ClientAuth")(value)


def _unset(value: object) -> object:
    return value or None


_Text = Annotated[str, Expected("text")]
_Path = Annotated[str | None, Expected("the path of a file"), BeforeValidator(_unset)]
_Pem = Annotated[str | None, Expected("text in PEM"), BeforeValidator(_unset)]
_Version = Annotated[_Text, AfterValidator(_version)]


class WebSection(Section):
    """A mapping of the web configuration file; as in Go's YAML, `key:` leaves it at its default."""

    model_config = ConfigDict(strict=True)
    null_is_default = True


class TlsServerConfig(WebSection):
    """`tls_server_config`, as the exporter-toolkit documents it."""

    cert: _Pem = None
    cert_file: _Path = None
    key: Annotated[Secret | None, Expected("text in PEM"), BeforeValidator(_unset)] = None
    key_file: _Path = None
    client_auth_type: Annotated[_Text, AfterValidator(_client_auth)] = "NoClientCert"
    client_ca: _Pem = None
    client_ca_file: _Path = None
    client_allowed_sans: list[_Text] = Field(default_factory=list)
    min_version: _Version = "TLS12"
    max_version: _Version = "TLS13"
    cipher_suites: list[
        Annotated[_Text, AfterValidator(_one_of(_CIPHERS_13 | {*_CIPHERS}, "unknown cipher"))]
    ] = Field(default_factory=list)
    curve_preferences: list[Annotated[_Text, AfterValidator(_one_of(_CURVES, "unknown curve"))]] = (
        Field(default_factory=list)
    )
    prefer_server_cipher_suites: Switch = True


ACCEPTED: Final[ContextVar[socket.socket]] = ContextVar("accepted")
"""The socket of the connection that is being opened."""


class _Handshake(ssl.SSLObject):
    """Sends the alert of a handshake that fails: the event loop closes the connection without."""

    outgoing: ssl.MemoryBIO
    accepted: socket.socket

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError:
            with suppress(OSError):
                self.accepted.send(self.outgoing.read())
            raise


class _Context(ssl.SSLContext):
    sslobject_class = _Handshake

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        *args: Any,  # Any: the event loop's
        **options: Any,
    ) -> ssl.SSLObject:
        handshake = super().wrap_bio(incoming, outgoing, *args, **options)
        assert isinstance(handshake, _Handshake)  # noqa: S101 - by `sslobject_class`
        handshake.outgoing, handshake.accepted = outgoing, ACCEPTED.get()
        return handshake


class Tls(NamedTuple):
    """How connections are secured.

    Attributes:
        context: for connections to come, each opened with its socket in `ACCEPTED`.
        allowed_sans: alternative names of which a client's certificate has to hold one; empty for
            any.
        expires_at: when the first certificate of the server's chain expires (Unix time).
        warn_at: from when on that is soon: 14 days before, or a fifth of the certificate's
            lifetime where that is shorter.
    """

    context: ssl.SSLContext
    allowed_sans: frozenset[str]
    expires_at: float
    warn_at: float

    def expiry_warning(self, now: float) -> str | None:
        """Return a warning where the certificate has expired or expires soon."""
        if now < self.warn_at:
            return None
        when = datetime.fromtimestamp(self.expires_at, UTC)
        verb = "expired" if now >= self.expires_at else "expires soon,"
        return f"the certificate of the web server {verb} at {when:%Y-%m-%dT%H:%M:%SZ}"

    def admits(self, certificate: Any) -> bool:  # Any: `ssl.SSLSocket.getpeercert`'s own
        """Tell whether a client with this verified certificate, or None, may come in."""
        if not self.allowed_sans:
            return True
        names = (certificate or {}).get("subjectAltName", ())
        return any(_san(kind, name) in self.allowed_sans for kind, name in names)


def _san(kind: str, name: str) -> str:
    # OpenSSL writes IPv6 addresses in a way of its own.
    if kind != "IP Address":
        return name
    try:
        return str(ip_address(name.strip()))
    except ValueError:
        return name


def server_tls(config: TlsServerConfig, document: Value, context: LoadContext) -> Tls | None:
    """Make the TLS that a configuration asks for; None after adding why not to the problems.

    Args:
        config: what is asked for.
        document: where its lines are.
        context: of the file that is loaded.
    """
    return _Builder(config, document, context).tls()


class _Builder:
    def __init__(self, config: TlsServerConfig, document: Value, context: LoadContext) -> None:
        self._config = config
        self._document = document
        self._folder = context.folder
        self._problems = context.problems
        self._files = context.files

    def tls(self) -> Tls | None:
        before, config = self._problems.total, self._config
        context = _Context(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["http/1.1"])
        self._offer(context)
        certificate = self._pem("cert", config.cert, config.cert_file)
        key = self._pem("key", config.key.reveal() if config.key else None, config.key_file)
        if certificate is not None and key is not None:
            self._load(context, certificate, key)
        self._verify(context)
        if self._problems.total > before or certificate is None:
            return None
        return Tls(context, frozenset(config.client_allowed_sans), *_validity(certificate))

    def _problem(self, key: str, message: str) -> None:
        parts = (_SECTION, key)
        self._problems.add(line_of(self._document, parts), parts, message)

    def _offer(self, context: ssl.SSLContext) -> None:
        config = self._config
        least, most = _VERSIONS[config.min_version], _VERSIONS[config.max_version]
        if least > most:
            self._problem("max_version", "expected at least the value of `min_version`")
            return
        context.minimum_version, context.maximum_version = least, most
        if not config.prefer_server_cipher_suites:
            context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
        if config.cipher_suites:
            chosen = [_CIPHERS[name] for name in config.cipher_suites if name in _CIPHERS]
            if chosen:
                context.set_ciphers(":".join(chosen))
            elif most is ssl.TLSVersion.TLSv1_3:
                context.minimum_version = most  # no older version has any of them
            else:
                self._problem("cipher_suites", "expected one for TLS12 too")
        if len(config.curve_preferences) > 1:
            self._problem(
                "curve_preferences", "expected one curve, or none for all: a choice of some is not"
                " offered here"
            )  # fmt: skip
        for curve in config.curve_preferences[:1]:
            context.set_ecdh_curve(_CURVES[curve])

    def _pem(self, key: str, text: str | None, file: str | None) -> str | None:
        """Return the text of a key, or of the file that is named instead."""
        if text is not None and file is not None:
            self._problem(f"{key}_file", f"expected either `{key}` or `{key}_file`, not both")
            return None
        if file is not None:
            return self._read(f"{key}_file", file)
        if text is None:
            self._problem(f"{key}_file", f"missing one of {key} or {key}_file")
        return text

    def _read(self, key: str, file: str) -> str | None:
        try:
            return self._files.read(self._folder / file, MAX_PEM, secret=key == "key_file")
        except FileProblemError as error:
            self._problem(key, f"failed to read {key}: {error}")
            return None

    def _load(self, context: ssl.SSLContext, certificate: str, key: str) -> None:
        try:
            with _as_file(certificate) as first, _as_file(key) as second:
                # A password is never asked for at a terminal.
                context.load_cert_chain(first, second, password=lambda: "")
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or "no certificate and key in PEM"
            where = "key_file" if self._config.key_file else "key"
            self._problem(where, f"failed to load X509KeyPair: {reason}")

    def _verify(self, context: ssl.SSLContext) -> None:
        config = self._config
        context.verify_mode = _VERIFY[config.client_auth_type]
        key = "client_ca_file" if config.client_ca_file else "client_ca"
        if context.verify_mode is ssl.CERT_NONE:
            if config.client_ca or config.client_ca_file:
                message = "client CA's have been configured without a Client Auth Policy"
                self._problem(key, message)
            if config.client_allowed_sans:
                message = "client_allowed_sans have been configured without a Client Auth Policy"
                self._problem("client_allowed_sans", message)
            return
        if not (config.client_ca or config.client_ca_file):
            context.load_default_certs(ssl.Purpose.CLIENT_AUTH)
        elif text := self._pem("client_ca", config.client_ca, config.client_ca_file):
            try:
                context.load_verify_locations(cadata=text.encode("ascii", "replace").decode())
            except (OSError, ValueError):
                self._problem(key, "holds no certificate in PEM")


def _validity(pem: str) -> tuple[float, float]:
    """Return when the first of some certificates expires, and from when on that is soon."""
    ends = []
    for block in _CERTIFICATE.findall(pem):
        # No certificate has anything like its validity before it (RFC 5280, section 4.1).
        if found := _VALIDITY.search(ssl.PEM_cert_to_DER_cert(block)):
            begin, end = (_time(*found.group(n, n + 1)) for n in (1, 3))
            ends.append((end, end - min(_SOON, (end - begin) / 5)))
    return min(ends, default=(math.inf, math.inf))


def _time(short: bytes | None, long: bytes | None) -> float:
    text, form = (short, "%y%m%d%H%M%SZ") if short else (long or b"", "%Y%m%d%H%M%SZ")
    return datetime.strptime(text.decode(), form).replace(tzinfo=UTC).timestamp()


@contextmanager
def _as_file(text: str) -> Iterator[str]:
    """Give a text as a file, which is what OpenSSL takes, without leaving a key on a disk."""
    if hasattr(os, "memfd_create"):
        with os.fdopen(os.memfd_create("tls"), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            yield f"/proc/self/fd/{file.fileno()}"
    else:
        with tempfile.NamedTemporaryFile("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            yield file.name
