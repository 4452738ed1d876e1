"""What a scrape of the metrics would show."""

from __future__ import annotations

from prometheus_client.samples import Sample

from exporter.metrics.catalogue import Catalogue


def samples(metrics: Catalogue, name: str = "", **labels: str) -> list[Sample]:
    """Return the samples with a name and with these labels among theirs; all by default."""
    return [
        sample
        for metric in metrics.registry.collect()
        for sample in metric.samples
        if (not name or sample.name == name) and labels.items() <= sample.labels.items()
    ]


def value(metrics: Catalogue, name: str, **labels: str) -> float:
    """Return the sum of such samples."""
    return sum(sample.value for sample in samples(metrics, name, **labels))
