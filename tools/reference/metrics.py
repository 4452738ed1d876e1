"""The reference of the metrics, from the catalogue and from what it starts with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

from exporter.calls import ENDINGS
from exporter.canaries.canaries import CanaryMetrics
from exporter.home_assistant.publisher import MqttMetrics
from exporter.metrics.accounts import AccountMetrics
from exporter.metrics.calls import CallMetrics
from exporter.metrics.catalogue import GET_BALANCE, MAKE_CALL, Catalogue
from exporter.metrics.families import Family
from exporter.metrics.requests import RequestMetrics
from exporter.notify.dispatcher import TargetMetrics
from exporter.polling.stats import AccountStats
from exporter.web.connections import TlsFailure
from tools.reference.markdown import NOTE, code, table
from tools.reference.meanings import (
    MEANINGS,
    OF_LEDGER,
    OPEN_LABELS,
    OVER_REPLICAS,
    SPECIAL,
    USER_LABEL,
)

_INTRODUCTION: Final = """# Metrics

Every metric of the exporter's own, in the order of `/metrics`. LABELS stands for the names in
`watch.labels`, in that order; a call without one of them shows it empty, and what is beyond
`watch.max_label_values` and `watch.max_label_sets` is counted as `other`
([Labels](sources.md#labels)). Times are in seconds; points in time are Unix times, and 0
where there has been none.

A series is there at 0 before anything happens, so that the first failure is an increase: those of
an account from the start, those of a set of user labels from the first call that carries it. An
account has {account} series without the user's labels, and each set of user labels adds {labels}.

What is marked as kept in the ledger goes on after a restart where it was; the others start at 0.
ReferenceIds, phone numbers and texts of errors are never labels. `process_*` and `python_*` come
from Prometheus' client library for Python.

Where several exporters share a ledger, "over replicas" says how to put together what they show: of
counters and histograms, their `rate` or `increase`. The PromQL for it is in
[alerts](alerts.md#several-exporters-on-one-ledger).
"""


def page() -> str:
    """Return the whole page."""
    catalogue, calls = Catalogue(), CallMetrics(["main"], (USER_LABEL,))
    AccountMetrics(catalogue, "main", AccountStats())
    RequestMetrics(catalogue, "main", GET_BALANCE)
    for family in (catalogue.balance, catalogue.balance_timestamp, catalogue.balance_warning):
        family.labels("main")
    TargetMetrics(catalogue, "crm")
    for family in (catalogue.source_last_success, catalogue.source_errors):
        family.labels("config")
    for reason in TlsFailure:
        catalogue.tls_failures.labels(reason.value)
    MqttMetrics(catalogue)
    families = (*calls.families(), *catalogue.families())
    sizes = {
        "account": sum(_series(family, "account") for family in families),
        "labels": sum(_series(family, USER_LABEL) for family in families),
    }
    # Only of accounts that place canary calls.
    CanaryMetrics(catalogue, "main", "nightly")
    RequestMetrics(catalogue, "main", MAKE_CALL)
    used = {label: set[str]() for label in MEANINGS}
    over = {family.name: OF_LEDGER for family in calls.families()} | OVER_REPLICAS
    sections = [_section(family, used, over) for family in families]
    if gone := over.keys() - {family.name for family in families}:
        raise LookupError(f"there is no {sorted(gone)} any more")
    for label, meanings in MEANINGS.items():
        if gone := meanings.keys() - used[label]:
            raise LookupError(f"no metric has {label} = {sorted(gone)} any more")
    return "".join(
        (
            NOTE.format(source="exporter/metrics/ and tools/reference/meanings.py"),
            _INTRODUCTION.format(**sizes),
            *sections,
            "\n## Values of labels\n",
            *_values(),
            _endings(),
        )
    )


def _section(
    family: Family[Any],  # Any: of values or of buckets
    used: dict[str, set[str]],
    over: Mapping[str, str],
) -> str:
    text = "".join(family.lines(openmetrics=False))
    (parsed,) = text_string_to_metric_families(text)
    facts = [f"type: {parsed.type}", f"labels: {_labels(family)}"]
    for name in family.label_names:
        if (kind := _kind(family, name)) in MEANINGS:
            values = dict.fromkeys(sample.labels[name] for sample in parsed.samples)
            if unexplained := values.keys() - MEANINGS[kind].keys():
                raise LookupError(f"nothing says what {kind} = {sorted(unexplained)} means")
            used[kind].update(values)
            facts.append(f"[{name}](#{kind.replace(' ', '-')}): {' '.join(map(code, values))}")
    bounds = dict.fromkeys(
        f"{float(sample.labels['le']):g}" for sample in parsed.samples if "le" in sample.labels
    )
    if bounds:
        facts.append(f"buckets: {' '.join(bounds).replace('inf', '+Inf')}")
    if family.name not in over:
        raise LookupError(f"nothing says what {family.name} is over replicas")
    facts.append(f"over replicas: {over[family.name]}")
    listed = "".join(f"- {fact}\n" for fact in facts)
    return f"\n## {family.name}\n\n{family.documentation}\n\n{listed}"


def _kind(family: Family[Any], label: str) -> str:  # Any: see above
    """Return where `MEANINGS` explains the values of a label."""
    return SPECIAL.get((family.name, label), label)


def _labels(family: Family[Any]) -> str:  # Any: see above
    names = []
    for name in family.label_names:
        if name == USER_LABEL:
            names.append("LABELS")
        elif name in MEANINGS or name in OPEN_LABELS:
            names.append(code(name))
        else:
            raise LookupError(f"nothing says what the label {name} is")
    return ", ".join(names) or "none"


def _series(family: Family[Any], label: str) -> int:  # Any: see above
    """Return how many series carry a label, in a catalogue with one account and one set."""
    lines = [line for line in family.lines(openmetrics=False) if not line.startswith("#")]
    return len(lines) if label in family.label_names else 0


def _values() -> Iterator[str]:
    for name, words in OPEN_LABELS.items():
        yield f"\n`{name}`: {words}\n"
    for name, meanings in MEANINGS.items():
        yield f"\n### {name}\n\n{_meanings(meanings.items())}"


def _meanings(meanings: Iterable[tuple[str, str]]) -> str:
    return table(("value", "meaning"), ((code(value), words) for value, words in meanings))


def _endings() -> str:
    """Return which statuses go with which results."""
    by_result: dict[str, list[str]] = {}
    for result, status in ENDINGS:
        by_result.setdefault(result.value, []).append(code(status.value))
    rows = ((code(result), " ".join(statuses)) for result, statuses in by_result.items())
    return f"\n### result and status together\n\n{table(('result', 'status'), rows)}"
