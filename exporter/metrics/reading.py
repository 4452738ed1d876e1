"""Metrics whose numbers are plain state elsewhere, as collectors of prometheus-client."""

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
"""The series of a metric: the values of its labels, and its number or numbers."""


class Registry(CollectorRegistry):
    """A registry whose `collectors` are in the order in which they were registered."""

    def __init__(self) -> None:
        super().__init__()
        self.collectors: list[Collector] = []

    def register(self, collector: Collector) -> None:
        """Add a collector."""
        super().register(collector)
        self.collectors.append(collector)


class Reading(Collector, Generic[V]):
    """A metric whose series are read from plain state at each scrape.

    Args:
        registry: where it is registered.
        kind: its type.
        name: as a query names it; a counter's ends in `_total`.
        documentation: the HELP text.
        labels: the names of its labels.
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
        """Read the series from now on.

        Args:
            read: returns them; `tuple` stands for no series.
            more_labels: returns the names of labels that follow the metric's own.
        """
        self._read, self._more_labels = read, more_labels

    def describe(self) -> tuple[Metric]:
        """Return the metric without its series."""
        return (Metric(self._name.removesuffix("_total"), self._documentation, self._kind),)

    def collect(self) -> tuple[Metric]:
        """Return the metric as it stands."""
        (metric,) = self.describe()
        metric.samples.extend(self.samples())
        return (metric,)

    def samples(self) -> Iterator[Sample]:
        """Yield the samples of the series that there are now; of each, when it is reached."""
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
