"""The web configuration file, in the format that the exporters of Prometheus share.

Source of keys, defaults and words: `docs/web-configuration.md` of prometheus/exporter-toolkit.
Where that would overlook something, this refuses it: what a file says is done, or is a problem.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from exporter.config.document import Problems, load_mapping
from exporter.config.files import NamedFiles
from exporter.config.types import Count, Expected, Switch
from exporter.config.validation import LoadContext, invalid_at, validate
from exporter.secrets import Secret
from exporter.web.tls import Tls, TlsServerConfig, WebSection, server_tls

MAX_FILE: Final = 1 << 20

_HEADERS: Final[dict[str, tuple[str, ...]]] = {
    "Strict-Transport-Security": (),
    "X-Content-Type-Options": ("nosniff",),
    "X-Frame-Options": ("deny", "sameorigin"),
    "X-XSS-Protection": (),
    "Content-Security-Policy": (),
}
"""The headers that may be set, and their values where there are few."""

_SECONDS: Final = {"h": "3600", "m": "60", "s": "1", "ms": "1e-3", "us": "1e-6"}
_UNITS: Final = "h|ms|us|m|s"
_DURATION: Final = re.compile(rf"0|([0-9]{{1,9}}(\.[0-9]{{1,9}})?({_UNITS}))+", re.ASCII)
_PART: Final = re.compile(rf"([0-9.]+)({_UNITS})", re.ASCII)

# Costs above 20 take the better part of a minute for each new password.
_BCRYPT: Final = re.compile(r"\$2[aby]\$(0[4-9]|1[0-9]|20)\$[./A-Za-z0-9]{53}")
_SHORTEST_HASH: Final = 59


def _header(name: str) -> str:
    if name not in _HEADERS:
        shown = name if re.fullmatch("[A-Za-z-]{1,64}", name) else "?"
        raise PydanticCustomError("header", 'HTTP header "{n}" can not be configured', {"n": shown})
    return name


def _headers(headers: dict[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        allowed = _HEADERS[name]
        if value and allowed and value not in allowed:
            raise PydanticCustomError(
                "header",
                "invalid value for {name}. Expected one of: {allowed}",
                {"name": name, "allowed": ", ".join(allowed)},
            )
    return {name: value for name, value in headers.items() if value}


def _interval(value: object) -> object:
    if not isinstance(value, str) or not _DURATION.fullmatch(value):
        raise ValueError
    return float(sum(Decimal(n) * Decimal(_SECONDS[unit]) for n, unit in _PART.findall(value)))


def _hash(value: Secret) -> Secret:
    if len(value.reveal()) < _SHORTEST_HASH:
        raise PydanticCustomError("hash", "hashedSecret too short to be a bcrypted password")
    if not _BCRYPT.fullmatch(value.reveal()):
        raise PydanticCustomError(
            "hash", "expected a bcrypt hash of a cost from 4 to 20, as of `htpasswd -nBC 10 NAME`"
        )
    return value


def _user(name: str) -> str:
    if ":" in name or not name.isprintable():
        raise PydanticCustomError("user", "a user's name holds no colon and no control characters")
    return name


_HeaderValue = Annotated[
    str,
    BeforeValidator(lambda value: "" if value is None else value),
    Field(pattern=r"^[ -~]{0,4096}$"),
    Expected("a text of printable ASCII characters"),
]


class _HttpServer(WebSection):
    http2: Switch = True  # for the toolkit's sake; there is none
    headers: Annotated[
        dict[Annotated[str, AfterValidator(_header)], _HeaderValue], AfterValidator(_headers)
    ] = Field(default_factory=dict)


class RateLimit(WebSection):
    """How many requests are answered: `burst` at once, and one more each `interval` seconds."""

    interval: Annotated[
        float,
        Field(ge=0, le=86_400),
        BeforeValidator(_interval),
        Expected("a duration such as `100ms`, `1s` or `1m30s`, up to 24h; 0 for no limit"),
    ] = 0.0
    burst: Annotated[int, Count(1, 1_000_000)] = 1

    @model_validator(mode="after")
    def _with_burst(self) -> RateLimit:
        if self.interval and "burst" not in self.model_fields_set:
            raise invalid_at("burst", "missing required key")
        return self


class _File(WebSection):
    tls_server_config: TlsServerConfig = TlsServerConfig()
    http_server_config: _HttpServer = _HttpServer()
    basic_auth_users: dict[
        Annotated[str, AfterValidator(_user)], Annotated[Secret, AfterValidator(_hash)]
    ] = Field(default_factory=dict)
    rate_limit: RateLimit = RateLimit()


@dataclass(frozen=True, slots=True)
class WebConfig:
    """Who may come in, and how.

    Attributes:
        tls: None for plain HTTP.
        headers: what every answer carries besides its own.
        users: bcrypt hashes by name; empty where everybody may come in.
        rate_limit: None for no limit.
    """

    tls: Tls | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    users: Mapping[str, Secret] = field(default_factory=dict)
    rate_limit: RateLimit | None = None


def load_web_config(path: Path, files: NamedFiles | None = None) -> WebConfig:
    """Read a web configuration file, and the certificates that it names.

    Args:
        path: a file of YAML; files that it names are relative to its folder. An empty one asks for
            nothing.
        files: records the other files.

    Raises:
        ConfigError: with everything that is wrong.
    """
    problems = Problems(str(path))
    # No variables: the toolkit knows none, and hashes are full of `$`. Go's YAML takes any
    # scalar where a text is expected, as it is written.
    document = load_mapping(
        path, MAX_FILE, None, problems, "tls_server_config", scalars_as_text=True
    )
    if document is None:
        return WebConfig()
    context = LoadContext(path.parent, problems, files or NamedFiles())
    found = validate(_File, document, context)
    tls = None
    if section := document.get("tls_server_config"):
        # Its files are read where this section is valid, whatever is wrong with the others.
        with suppress(ValidationError):
            config = TlsServerConfig.model_validate(section, context=context)
            tls = server_tls(config, document, context)
    if found is None or problems.total:
        problems.fail()
    limit = found.rate_limit
    return WebConfig(
        tls,
        found.http_server_config.headers,
        found.basic_auth_users,
        limit if limit.interval else None,
    )
