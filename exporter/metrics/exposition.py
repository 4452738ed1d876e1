"""The response to a scrape: content negotiation, rendering and compression."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any, Final, TypeAlias

import structlog
from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector

from exporter.metrics.reading import Reading, Registry

TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"

_SLICE: Final = 0.004
"""Seconds of rendering between yields to the event loop. More yields would delay the scrape: other
requests run in each of them."""

_BATCH_SIZE: Final = 50
"""Series to render between checks of the time; takes about half a millisecond."""

_MAX_KEPT: Final = 5_000
"""Series of a metric whose lines are kept for the next scrape: some 150 bytes each."""

_Lines: TypeAlias = dict[tuple[str, ...], tuple[object, bytes]]
"""The value and the rendered lines of series, by the values of their labels."""

_Shape: TypeAlias = tuple[tuple[str, ...], bool]

EOF: Final = b"# EOF\n"

_log = structlog.get_logger(__name__)


def wants_openmetrics(accept: str) -> bool:
    """Return whether an `Accept` header prefers OpenMetrics 1.0.0 to the text format 0.0.4.

    Ignores malformed and unknown values. prometheus-client's `choose_encoder` ignores q-values,
    fails on `version=abc` and claims to support any version.
    """
    openmetrics, text = 0.0, 0.0
    for media, parameters, quality in clauses(accept):
        version = parameters.get("version")
        if media == "application/openmetrics-text" and version in (None, "1.0.0", "0.0.1"):
            openmetrics = max(openmetrics, quality)
        elif media in ("text/plain", "text/*", "*/*") and version in (None, "0.0.4"):
            text = max(text, quality)
    return openmetrics > 0 and openmetrics >= text


def accepts_gzip(accept_encoding: str) -> bool:
    qualities = {coding: quality for coding, _, quality in clauses(accept_encoding)}
    return qualities.get("gzip", qualities.get("*", 0.0)) > 0


def clauses(header: str) -> Iterable[tuple[str, dict[str, str], float]]:
    """Yield the values of an `Accept...` header with their parameters and q-values.

    Never raises: a malformed q-value counts as 0.
    """
    for clause in header.split(","):
        value, *parameters = (part.strip().lower() for part in clause.split(";"))
        named = (parameter.partition("=") for parameter in parameters)
        found = {name.strip(): text.strip().strip('"') for name, _, text in named}
        try:
            quality = float(found.get("q", "1"))
        except ValueError:
            quality = 0.0
        yield value, found, quality if 0 <= quality <= 1 else 0.0


class Exposition:
    """Renders all metrics with prometheus-client, and yields to the event loop in between.

    A thread would be worse: it would hold the GIL, and delay each step of the event loop by 5 ms.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._turn = asyncio.Lock()  # concurrent scrapes would multiply the memory in use
        self._failing: set[Collector] = set()
        # The names of labels, whether there are exemplars, and the lines of the last scrape, by
        # metric and format. Rendering a line costs ten times as much as finding it, and most values
        # have not changed.
        self._last: dict[tuple[Reading, bool], tuple[_Shape, _Lines]] = {}

    async def render(self, *, openmetrics: bool) -> bytes:
        """Return the text of all metrics.

        Omit the metrics of a failing collector, and log the first of its consecutive failures.
        """
        parts: list[bytes] = []
        async with self._turn:
            turn = time.monotonic()
            for collector in self._registry.collectors:
                complete = len(parts)
                try:
                    for number, part in enumerate(self._parts(collector, openmetrics=openmetrics)):
                        parts.append(part)
                        if not number % _BATCH_SIZE and time.monotonic() > turn + _SLICE:
                            await asyncio.sleep(0)
                            turn = time.monotonic()
                except Exception as error:  # noqa: BLE001 - one metric must not fail the scrape
                    del parts[complete:]
                    if collector not in self._failing:
                        name, kind = type(collector).__name__, type(error).__name__
                        _log.warning("metrics collection failed", collector=name, kind=kind)
                    self._failing.add(collector)
                else:
                    self._failing.discard(collector)
        return b"".join((*parts, EOF if openmetrics else b""))

    def _parts(self, collector: Collector, *, openmetrics: bool) -> Iterator[bytes]:
        text = partial(render_metric, openmetrics=openmetrics)
        if not isinstance(collector, Reading):
            yield from map(text, collector.collect())
            return
        (metric,) = collector.describe()
        yield (head := text(metric))
        names = collector.labels  # a reload may change them while the series are rendered
        shape = names, collector.has_exemplars
        last_shape, last = self._last.get((collector, openmetrics), (shape, {}))
        if last_shape != shape:
            last = {}
        lines: _Lines = {}
        for series in collector.series():
            known = last.get(series.labels)
            if known is None or known[0] != series.value:
                metric.samples = list(collector.samples(names, series))
                known = series.value, text(metric).removeprefix(head)
            if len(lines) < _MAX_KEPT:
                lines[series.labels] = known
            yield known[1]
        self._last[collector, openmetrics] = shape, lines


def render_metric(metric: Metric, *, openmetrics: bool) -> bytes:
    """Return the lines of a metric, in OpenMetrics without the end of the exposition."""
    # Any: a registry, of which only `collect` is called.
    generate: Callable[[Any], bytes] = generate_openmetrics if openmetrics else generate_latest
    return generate(SimpleNamespace(collect=lambda: (metric,))).removesuffix(EOF)


def compress(body: bytes) -> bytes:
    """Compress with gzip at the fastest level."""
    return zlib.compress(body, level=1, wbits=31)
