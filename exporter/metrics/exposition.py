"""The answer to a scrape: which format and encoding a scraper accepts, and the text."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

import structlog
from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from exporter.metrics.readings import One, Reading, Registry, line_of, prefixes_of

TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"

_BATCH_SIZE: Final = 50
"""Series that are rendered before the event loop gets its turn: they take a few milliseconds."""

_MAX_PREFIXES: Final = 20_000

_log = structlog.get_logger(__name__)


def wants_openmetrics(accept: str) -> bool:
    """Say whether an `Accept` header prefers OpenMetrics 1.0.0 to the text format 0.0.4.

    Total: what is malformed does not count, and text is the answer to everything unknown. Not
    prometheus-client's `choose_encoder`, which ignores q-values, fails on `version=abc` and
    promises any version that is asked for.
    """
    openmetrics, text = 0.0, 0.0
    for media, parameters in _clauses(accept):
        quality, version = _quality(parameters.get("q", "1")), parameters.get("version")
        if media == "application/openmetrics-text" and version in (None, "1.0.0", "0.0.1"):
            openmetrics = max(openmetrics, quality)
        elif media in ("text/plain", "text/*", "*/*") and version in (None, "0.0.4"):
            text = max(text, quality)
    return openmetrics > 0 and openmetrics >= text


def accepts_gzip(accept_encoding: str) -> bool:
    """Say whether an `Accept-Encoding` header takes gzip; total."""
    any_quality = 0.0
    for coding, parameters in _clauses(accept_encoding):
        quality = _quality(parameters.get("q", "1"))
        if coding == "gzip":
            return quality > 0
        if coding == "*":
            any_quality = quality
    return any_quality > 0


def _clauses(header: str) -> Iterable[tuple[str, dict[str, str]]]:
    for clause in header.split(","):
        value, *parameters = (part.strip().lower() for part in clause.split(";"))
        named = (parameter.partition("=") for parameter in parameters)
        yield value, {name.strip(): text.strip().strip('"') for name, _, text in named}


def _quality(text: str) -> float:
    try:
        quality = float(text)
    except ValueError:
        return 0.0
    return quality if 0 <= quality <= 1 else 0.0


class Exposition:
    """Renders all metrics, and lets the event loop have its turn in between.

    Not in a thread: while that works, Python's lock would let the loop wait 5 ms for each turn.

    Args:
        registry: what is rendered.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._turn = asyncio.Lock()  # scrapes at the same time would all hold their parts
        self._failing: set[Collector] = set()
        self._prefixes: dict[tuple[str, ...], str] = {}  # of samples of the library's metrics

    async def render(self, *, openmetrics: bool) -> bytes:
        """Return the text of all metrics as they stand.

        A collector that fails is logged, once until it works again, and loses its own metrics.
        """
        generate = generate_openmetrics if openmetrics else generate_latest
        parts: list[str] = []
        async with self._turn:
            for collector in self._registry.collectors:
                complete = len(parts)
                try:
                    if isinstance(collector, Reading):
                        parts.append(_head(generate, *collector.describe()))
                        for lines in collector.batches(_BATCH_SIZE):
                            parts += lines
                            await asyncio.sleep(0)
                    else:
                        for metric in collector.collect():
                            parts.append(_head(generate, metric))
                            parts += map(partial(self._line, metric), metric.samples)
                            await asyncio.sleep(0)
                except Exception as error:  # noqa: BLE001 - a scrape is worth more than one metric
                    del parts[complete:]
                    if collector not in self._failing:
                        name, kind = type(collector).__name__, type(error).__name__
                        _log.warning("metrics not collected", collector=name, kind=kind)
                    self._failing.add(collector)
                else:
                    self._failing.discard(collector)
        return "".join((*parts, "# EOF\n" if openmetrics else "")).encode()

    def _line(self, metric: Metric, sample: Sample) -> str:
        key = (sample.name, *sample.labels.values())
        if (prefix := self._prefixes.get(key)) is None:
            if len(self._prefixes) >= _MAX_PREFIXES:  # most are of series that are gone
                self._prefixes = {}
            (prefix,) = prefixes_of(metric, [sample])
            self._prefixes[key] = prefix
        return line_of(prefix, sample.value)


def _head(generate: Callable[[Any], bytes], metric: Metric) -> str:
    # Any: a registry, of which no more is asked than of a collector
    bare = Metric(metric.name, metric.documentation, metric.type)
    return generate(One(bare)).decode().removesuffix("# EOF\n")


def compress(body: bytes) -> bytes:
    """Compress with gzip, at the level that costs least: a scrape is read once."""
    return zlib.compress(body, level=1, wbits=31)
