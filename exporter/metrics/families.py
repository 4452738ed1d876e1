"""Counters, gauges and histograms that cost little to change and little to show.

prometheus-client's own take a lock for each change, and its renderer some 6 microseconds a series,
during which the event loop stands still. These are changed by the event loop alone, and each series
keeps the text before its number ready-made. Output is proven with prometheus-client's parsers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Final, Generic, Literal, TypeVar

Kind = Literal["counter", "gauge", "histogram"]


class Value:
    """The number of one counter or gauge; set it or add to it."""

    __slots__ = ("_prefix", "value")

    def __init__(self, name: str, labels: str) -> None:
        self.value = 0.0
        self._prefix = f"{name}{{{labels}}} " if labels else f"{name} "

    def inc(self, amount: float = 1.0) -> None:
        """Add to it."""
        self.value += amount

    def set(self, value: float) -> None:
        """Set it."""
        self.value = float(value)

    def lines(self) -> Iterator[str]:
        """Yield the lines of the exposition."""
        yield f"{self._prefix}{self.value!r}\n"


class Buckets:
    """The buckets of one histogram."""

    __slots__ = ("_bounds", "_prefixes", "counts", "sum")

    def __init__(self, name: str, labels: str, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0.0] * (len(bounds) + 1)
        self.sum = 0.0
        comma = "," if labels else ""
        braces = f"{{{labels}}}" if labels else ""
        self._prefixes = (
            *(f'{name}_bucket{{{labels}{comma}le="{bound!r}"}} ' for bound in bounds),
            f'{name}_bucket{{{labels}{comma}le="+Inf"}} ',
            f"{name}_count{braces} ",
            f"{name}_sum{braces} ",
        )

    def observe(self, value: float) -> None:
        """Count one value, in the metric's unit."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def add(self, bound: str, amount: float) -> None:
        """Add to the bucket with that upper bound, which is written as `le` shows it."""
        try:
            index = self._bounds.index(float(bound))
        except ValueError:
            # A bound of another version: such calls are longer than any bucket can tell.
            index = len(self._bounds)
        self.counts[index] += amount

    def lines(self) -> Iterator[str]:
        """Yield the lines of the exposition."""
        cumulated = list(accumulate(self.counts))
        for prefix, number in zip(
            self._prefixes, (*cumulated, cumulated[-1], self.sum), strict=True
        ):
            yield f"{prefix}{number!r}\n"


Series = TypeVar("Series", Value, Buckets)


class Family(Generic[Series]):
    """All series of one metric.

    Args:
        name: as a query names it; a counter's ends in `_total`.
        documentation: the HELP text.
        labels: the names of its labels.
        make: makes a series from the metric's name and its rendered labels.
    """

    def __init__(
        self,
        kind: Kind,
        name: str,
        documentation: str,
        labels: tuple[str, ...],
        make: Callable[[str, str], Series],
    ) -> None:
        self.kind: Final = kind
        self.name: Final = name
        self.documentation: Final = documentation
        self.label_names: Final = labels
        self._make: Callable[[str, str], Series] = make
        self._series: dict[tuple[str, ...], Series] = {}

    def labels(self, *values: str) -> Series:
        """Return the series with these label values, making it at 0 where there is none."""
        series = self._series.get(values)
        if series is None:
            pairs = zip(self.label_names, values, strict=True)
            rendered = ",".join(f'{name}="{escape(value)}"' for name, value in pairs)
            series = self._series[values] = self._make(self.name, rendered)
        return series

    def inc(self, amount: float = 1.0) -> None:
        """Add to the only series of a metric without labels."""
        series = self.labels()
        assert isinstance(series, Value)  # noqa: S101
        series.inc(amount)

    def set(self, value: float) -> None:
        """Set the only series of a metric without labels."""
        series = self.labels()
        assert isinstance(series, Value)  # noqa: S101
        series.set(value)

    def observe(self, value: float) -> None:
        """Count one value in the only series of a histogram without labels."""
        series = self.labels()
        assert isinstance(series, Buckets)  # noqa: S101
        series.observe(value)

    def series(self) -> Iterator[tuple[tuple[str, ...], Series]]:
        """Yield every series with its label values."""
        yield from self._series.items()

    def drop(self, *values: str) -> None:
        """Drop the series with these label values, if it is there."""
        self._series.pop(values, None)

    def remove(self, name: str, value: str) -> None:
        """Drop every series whose label `name` has this value."""
        if name in self.label_names:
            place = self.label_names.index(name)
            self._series = {k: v for k, v in self._series.items() if k[place] != value}

    def clear(self) -> None:
        """Drop every series."""
        self._series = {}

    def lines(self, *, openmetrics: bool) -> Iterator[str]:
        """Yield the lines of the exposition, the metadata first."""
        name, text = self.name, self.documentation.replace("\\", r"\\").replace("\n", r"\n")
        if openmetrics:
            # There, a counter's family is named without the suffix of its samples.
            name = name.removesuffix("_total") if self.kind == "counter" else name
            text = text.replace('"', r"\"")
        yield f"# HELP {name} {text}\n# TYPE {name} {self.kind}\n"
        for series in self._series.values():
            yield from series.lines()


def counter(name: str, documentation: str, *labels: str) -> Family[Value]:
    """Make a counter, whose name ends in `_total`."""
    return Family("counter", name, documentation, labels, Value)


def gauge(name: str, documentation: str, *labels: str) -> Family[Value]:
    """Make a gauge."""
    return Family("gauge", name, documentation, labels, Value)


def histogram(
    name: str, documentation: str, bounds: tuple[float, ...], *labels: str
) -> Family[Buckets]:
    """Make a histogram; `bounds` are the upper bounds of its buckets without `+Inf`."""
    return Family(
        "histogram", name, documentation, labels, lambda name, text: Buckets(name, text, bounds)
    )


def escape(value: str) -> str:
    """Return a label's value as it is written between quotes."""
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
