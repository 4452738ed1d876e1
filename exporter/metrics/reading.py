"""Collectors of prometheus-client that read numbers from other objects at each scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Generic, Literal, TypeAlias, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from exporter.polling.stats import Distribution

V = TypeVar("V", bound=float | Distribution)

Rows: TypeAlias = Iterable[tuple[tuple[str, ...], V]]
"""The series of a metric: label values and the value."""


class Registry(CollectorRegistry):
    """A registry that keeps `collectors` in the order of registration."""

    def __init__(self) -> None:
        super().__init__()
        self.collectors: list[Collector] = []

    def register(self, collector: Collector) -> None:
        """Add a collector."""
        super().register(collector)
        self.collectors.append(collector)


class Reading(Collector, Generic[V]):
    """A metric whose series are read from other objects at each scrape.

    Args:
        name: as in queries: the name of a counter ends in `_total`.
        documentation: the HELP text.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        kind: Literal["counter", "gauge", "histogram"],
        name: str,
        documentation: str,
        labels: Sequence[str] = (),
    ) -> None:
        self._kind, self._name, self._documentation = kind, name, documentation
        self._labels = tuple(labels)
        self._read: Callable[[], Rows[V]] = tuple
        self._more_labels: Callable[[], tuple[str, ...]] = tuple
        registry.register(self)

    def read_from(
        self, read: Callable[[], Rows[V]], more_labels: Callable[[], tuple[str, ...]] = tuple
    ) -> None:
        """Set the functions that return the series, and the names of labels after the metric's own.

        To remove all series, pass `tuple` as `read`.
        """
        self._read, self._more_labels = read, more_labels

    def describe(self) -> tuple[Metric]:
        """Return the metric without its series."""
        return (Metric(self._name.removesuffix("_total"), self._documentation, self._kind),)

    def collect(self) -> tuple[Metric]:
        """Return the metric with its series."""
        (metric,) = self.describe()
        metric.samples.extend(self.samples())
        return (metric,)

    def samples(self) -> Iterator[Sample]:
        """Yield the samples of the present series, each read when it is reached."""
        names, rows = self._labels + self._more_labels(), list(self._read())
        for values, value in rows:
            labels = dict(zip(names, values, strict=True))
            if not isinstance(value, Distribution):
                yield Sample(self._name, labels, value)
                continue
            counts = list(accumulate(value.counts))
            for bound, count in zip((*map(repr, value.bounds), "+Inf"), counts, strict=True):
                yield Sample(f"{self._name}_bucket", {**labels, "le": bound}, count)
            yield Sample(f"{self._name}_count", labels, counts[-1])
            yield Sample(f"{self._name}_sum", labels, value.sum)
