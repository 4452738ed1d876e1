"""The answer to a scrape: which format a scraper asked for, and the text in it."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any, Final

import structlog
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from exporter.metrics.families import Family

TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"

_log = structlog.get_logger(__name__)


def wants_openmetrics(accept: str) -> bool:
    """Say whether an `Accept` header prefers OpenMetrics 1.0.0 to the text format 0.0.4.

    Total: what is malformed does not count, and text is the answer to everything unknown.
    """
    openmetrics, text = 0.0, 0.0
    for clause in accept.split(","):
        media, *parameters = (part.strip().lower() for part in clause.split(";"))
        values = dict(_parameter(parameter) for parameter in parameters)
        quality = _quality(values.get("q", "1"))
        version = values.get("version")
        if media == "application/openmetrics-text" and version in (None, "1.0.0", "0.0.1"):
            openmetrics = max(openmetrics, quality)
        elif media in ("text/plain", "text/*", "*/*") and version in (None, "0.0.4"):
            text = max(text, quality)
    return openmetrics > 0 and openmetrics >= text


def accepts_gzip(accept_encoding: str) -> bool:
    """Say whether an `Accept-Encoding` header takes gzip."""
    any_quality = 0.0
    for clause in accept_encoding.split(","):
        coding, *parameters = (part.strip().lower() for part in clause.split(";"))
        quality = _quality(dict(_parameter(p) for p in parameters).get("q", "1"))
        if coding == "gzip":
            return quality > 0
        if coding == "*":
            any_quality = quality
    return any_quality > 0


def _parameter(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name.strip(), value.strip().strip('"')


def _quality(text: str) -> float:
    try:
        quality = float(text)
    except ValueError:
        return 0.0
    return quality if 0 <= quality <= 1 else 0.0


class Renderer:
    """Renders families, followed by prometheus-client's own metrics of the process."""

    def __init__(self) -> None:
        self._process = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._process)
        PlatformCollector(registry=self._process)
        GCCollector(registry=self._process)
        self._process_fails = False

    def render(
        self,
        families: Iterable[Family[Any]],  # Any: of values or of buckets
        *,
        openmetrics: bool,
    ) -> bytes:
        """Render one scrape."""
        lines = [line for family in families for line in family.lines(openmetrics=openmetrics)]
        lines.append(self._process_metrics(openmetrics=openmetrics))
        if openmetrics:
            lines.append("# EOF\n")
        return "".join(lines).encode()

    def _process_metrics(self, *, openmetrics: bool) -> str:
        generate = generate_openmetrics if openmetrics else generate_latest
        try:
            text = generate(self._process).decode().removesuffix("# EOF\n")
        except Exception as error:  # noqa: BLE001 - a scrape is worth more than these metrics
            if not self._process_fails:
                _log.warning("process metrics failed", kind=type(error).__name__)
            self._process_fails = True
            return ""
        self._process_fails = False
        return text


def compress(body: bytes) -> bytes:
    """Compress with gzip, at the level that costs least: a scrape is read once."""
    return zlib.compress(body, level=1, wbits=31)
