"""Metrics whose numbers are plain state elsewhere, as collectors of prometheus-client."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Final, Generic, Literal, TypeAlias, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

from exporter.polling.stats import Distribution

V = TypeVar("V", bound=float | Distribution)

Rows: TypeAlias = Iterable[tuple[tuple[str, ...], V]]
"""The series of a metric: the values of its labels, and its number or numbers."""


class Registry(CollectorRegistry):
    """A registry that knows the order of its collectors.

    Attributes:
        collectors: all of them, in the order in which they were registered.
    """

    def __init__(self) -> None:
        super().__init__()
        self.collectors: list[Collector] = []

    def register(self, collector: Collector) -> None:
        """Add a collector; its metrics are exposed after those that are there."""
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
        self._kind: Final = kind
        self._name: Final = name
        self._documentation: Final = documentation
        self._labels: Final = tuple(labels)
        self._read: Callable[[], Rows[V]] = tuple
        self._more_labels: Callable[[], tuple[str, ...]] = tuple
        self._prefixes: dict[tuple[str, ...], list[str]] = {}
        self._prefixes_for: tuple[str, ...] = ()  # these names of labels
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
        names = self._labels + self._more_labels()
        (metric,) = self.describe()
        for values, value in self._read():
            metric.samples += self._samples(names, values, value)
        return (metric,)

    def batches(self, size: int) -> Iterator[Iterable[str]]:
        """Yield the lines of the exposition, of up to that many series at a time.

        The series are those of the first moment. They are written as prometheus-client does, which
        takes some 10 microseconds for the name and the labels of each. These are the same at every
        scrape, and are kept.
        """
        names, rows = self._labels + self._more_labels(), list(self._read())
        if self._prefixes_for != names or len(self._prefixes) > 2 * len(rows):
            self._prefixes, self._prefixes_for = {}, names
        for start in range(0, len(rows), size):
            yield self._lines(names, rows[start : start + size])

    def _lines(
        self, names: tuple[str, ...], rows: Iterable[tuple[tuple[str, ...], V]]
    ) -> Iterator[str]:
        known = self._prefixes
        for values, value in rows:
            if (prefixes := known.get(values)) is None:
                samples = self._samples(names, values, value)
                prefixes = known[values] = prefixes_of(*self.describe(), samples)
            if isinstance(value, Distribution):
                counts: list[float] = list(accumulate(value.counts))
                numbers = (*counts, counts[-1], value.sum)
                for prefix, number in zip(prefixes, numbers, strict=True):
                    yield line_of(prefix, number)
            else:
                yield line_of(prefixes[0], value)

    def _samples(
        self, names: tuple[str, ...], values: tuple[str, ...], value: V
    ) -> Iterator[Sample]:
        name, labels = self._name, dict(zip(names, values, strict=True))
        if not isinstance(value, Distribution):
            yield Sample(name, labels, value)
            return
        counts = list(accumulate(value.counts))
        for bound, count in zip((*map(repr, value.bounds), "+Inf"), counts, strict=True):
            yield Sample(f"{name}_bucket", {**labels, "le": bound}, count)
        yield Sample(f"{name}_count", labels, counts[-1])
        yield Sample(f"{name}_sum", labels, value.sum)


class One(Collector):
    """A registry of a single metric."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> tuple[Metric]:
        """Return it."""
        return (self._metric,)


def prefixes_of(metric: Metric, samples: Iterable[Sample]) -> list[str]:
    """Return the lines of samples of a metric up to their numbers: the same in both formats."""
    alone = Metric(metric.name, metric.documentation, metric.type)
    alone.samples.extend(samples)
    _help, _type, *lines, _end = generate_latest(One(alone)).decode().split("\n")
    return [line[: line.rindex(" ") + 1] for line in lines]


def line_of(prefix: str, number: float) -> str:
    """Return a line of the exposition."""
    # For numbers such as these both are the same, and this one takes a fifth of the time.
    plain = -1e6 < number < 1e6
    text = repr(number * 1.0) if plain else floatToGoString(number)  # type: ignore[no-untyped-call]
    return f"{prefix}{text}\n"
