"""Collectors of prometheus-client that read numbers from other objects at each scrape."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar, Sample

from exporter.polling.stats import Distribution

T = TypeVar("T")

Values: TypeAlias = "float | Distribution | Mapping[Any, Values] | None"
"""The values of a metric: a single value; a mapping of label values to values, possibly nested; or
None for no series. A key may also be a tuple, with the values of several labels.
"""

FindExemplar: TypeAlias = Callable[[tuple[str, ...]], Exemplar | None]
"""Returns the exemplar of a sample by the values of its labels, `le` included.

Its changes are shown when the value of the sample changes.
"""


class Series(NamedTuple):
    """A series: the values of its labels, and its value at a point in time.

    For a histogram, the value is its bounds, the count of each bucket, and the sum.
    """

    labels: tuple[str, ...]
    value: float | tuple[tuple[float, ...], tuple[int, ...], float]


class Registry(CollectorRegistry):
    """A registry that keeps `collectors` in the order of registration."""

    def __init__(self) -> None:
        super().__init__()
        self.collectors: list[Collector] = []

    def register(self, collector: Collector) -> None:
        super().register(collector)
        self.collectors.append(collector)


class Reading(Collector):
    """A metric whose series are read from other objects at each scrape.

    Its `name` has the labels as in queries: `esms_calls_watched{account,state}`.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        kind: Literal["counter", "gauge", "histogram"],
        name: str,
        documentation: str,
    ) -> None:
        self._name, *labels = re.findall(r"\w+", name)
        self._kind, self._documentation, self._labels = kind, documentation, labels
        self.read_from(lambda: None)
        self.read_exemplars(lambda: None)
        registry.register(self)

    def read_from(
        self, read: Callable[[], Values], more_labels: Callable[[], tuple[str, ...]] = tuple
    ) -> None:
        """Set the functions that each scrape calls.

        `read` returns the values, `more_labels` the names of labels to insert after the first one.
        """
        self._read, self._more_labels = read, more_labels

    def read_each(
        self,
        items: Callable[[], Iterable[tuple[object, T]]],
        values: Callable[[T], Values],
        more_labels: Callable[[], tuple[str, ...]] = tuple,
    ) -> None:
        """Read values from several objects; `items` yields each after the values of its labels."""
        self.read_from(lambda: {key: values(item) for key, item in items()}, more_labels)

    def read_exemplars(self, read: Callable[[], FindExemplar | None]) -> None:
        """Set the function that returns how to find exemplars, or None while they are off."""
        self._read_exemplars = read

    @property
    def has_exemplars(self) -> bool:
        return self._read_exemplars() is not None

    @property
    def labels(self) -> tuple[str, ...]:
        return (*self._labels[:1], *self._more_labels(), *self._labels[1:])

    def describe(self) -> tuple[Metric]:
        """Return the metric without its series."""
        return (Metric(self._name.removesuffix("_total"), self._documentation, self._kind),)

    def collect(self) -> tuple[Metric]:
        (metric,), names = self.describe(), self.labels
        for series in self.series():
            metric.samples += self.samples(names, series)
        return (metric,)

    def series(self) -> Iterator[Series]:
        """Yield the present series, each read when it is reached."""
        return _series((), {(): self._read()})

    def samples(self, names: tuple[str, ...], series: Series) -> Iterator[Sample]:
        """Yield the samples of a series; `names` is `labels`, read before `series`."""
        labels = dict(zip(names, series.labels, strict=True))
        exemplar = self._read_exemplars() or (lambda _: None)
        if not isinstance(series.value, tuple):
            yield Sample(self._name, labels, series.value, exemplar=exemplar(series.labels))
            return
        bounds, counts, total = series.value
        cumulative = list(accumulate(counts))
        for bound, count in zip((*map(repr, bounds), "+Inf"), cumulative, strict=True):
            found = exemplar((*series.labels, bound))
            yield Sample(f"{self._name}_bucket", {**labels, "le": bound}, count, exemplar=found)
        yield Sample(f"{self._name}_count", labels, cumulative[-1])
        yield Sample(f"{self._name}_sum", labels, total)


def _series(labels: tuple[str, ...], values: Mapping[Any, Values]) -> Iterator[Series]:
    for key, value in list(values.items()):
        inner = labels + (key if isinstance(key, tuple) else (key,))
        if isinstance(value, (float, int)):
            yield Series(inner, value)
        elif isinstance(value, Distribution):
            yield Series(inner, (value.bounds, tuple(value.counts), value.sum))
        elif value is not None:
            yield from _series(inner, value)
