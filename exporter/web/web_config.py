"""The web configuration file, in the format that the exporters of Prometheus share.

Source of keys, defaults and words: `docs/web-configuration.md` of prometheus/exporter-toolkit.
Where that would overlook something, this refuses it: what a file says is done, or is a problem.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from exporter.config.calls import report_unknown_keys
from exporter.config.document import BROKEN, YamlMapping, parse_document, told_to
from exporter.config.fields import Count, Switch, Words
from exporter.config.files import NamedFiles, read_text
from exporter.config.problems import Problems
from exporter.config.validation import validated
from exporter.secrets import Secret
from exporter.web.tls import Tls, TlsServerConfig, server_tls

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


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


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
    Words("a text of printable ASCII characters"),
]


class _HttpServer(_Model):
    http2: Switch = True  # for the toolkit's sake; there is none
    headers: Annotated[
        dict[Annotated[str, AfterValidator(_header)], _HeaderValue], AfterValidator(_headers)
    ] = Field(default_factory=dict)


class RateLimit(_Model):
    """How many requests are answered: `burst` at once, and one more each `interval` seconds."""

    interval: Annotated[
        float,
        Field(ge=0, le=86_400),
        BeforeValidator(_interval),
        Words("a duration such as `100ms`, `1s` or `1m30s`, up to 24h; 0 for no limit"),
    ] = 0.0
    burst: Annotated[int, Count(1, 1_000_000)] = 1


class _File(_Model):
    tls_server_config: TlsServerConfig = TlsServerConfig()
    http_server_config: _HttpServer = _HttpServer()
    basic_auth_users: dict[
        Annotated[str, AfterValidator(_user)], Annotated[Secret, AfterValidator(_hash)]
    ] = Field(default_factory=dict)
    rate_limit: RateLimit = RateLimit()


_SECTIONS: Final[dict[str, type[BaseModel]]] = {
    "tls_server_config": TlsServerConfig,
    "http_server_config": _HttpServer,
    "rate_limit": RateLimit,
}


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
        files: takes down the other files.

    Raises:
        ConfigError: with everything that is wrong.
    """
    problems = Problems(str(path))
    with told_to(problems):
        # No variables: the toolkit knows none, and hashes are full of `$`. Go's YAML takes any
        # scalar where a text is expected, as it is written.
        text = read_text(path, MAX_FILE)
        document = parse_document(text, None, problems, scalars_as_text=True)
    if document is None:
        return WebConfig()
    if not isinstance(document, YamlMapping):
        if document is not BROKEN:
            problems.add(1, (), "expected a mapping with keys such as `tls_server_config`")
        problems.fail()
    found = validated(_File, _known(document, problems), document, problems)
    if found is None:
        problems.fail()
    tls = None
    if document.get("tls_server_config"):
        tls = server_tls(
            found.tls_server_config, path.parent, document, problems, files or NamedFiles()
        )
    limit, section = found.rate_limit, document.get("rate_limit")
    if limit.interval and isinstance(section, YamlMapping) and "burst" not in section:
        line = document.line_of("rate_limit")
        problems.add(line, ("rate_limit", "burst"), "missing required key")
    if problems.total:
        problems.fail()
    return WebConfig(
        tls,
        found.http_server_config.headers,
        found.basic_auth_users,
        limit if limit.interval else None,
    )


def _known(document: YamlMapping, problems: Problems) -> dict[str, object]:
    """Return what the models know, without sections that are empty; the rest is a problem."""
    report_unknown_keys(document, _File.model_fields, (), problems)
    data: dict[str, object] = {}
    for key in _File.model_fields:
        value = document.get(key)
        model = _SECTIONS.get(key)
        if model is not None and isinstance(value, YamlMapping):
            known = model.model_fields
            report_unknown_keys(value, known, (key,), problems)
            data[key] = {name: value[name] for name in known if value.get(name) is not None}
        elif value is not None:
            data[key] = value
    return data
