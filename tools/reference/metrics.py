"""The reference of the metrics, from the catalogue and its initial series."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client.core import Metric

from exporter.call_totals import CallTotals
from exporter.calls import ENDINGS, CallbackOutcome
from exporter.canaries.canaries import CanaryNumbers, CanaryStage, read_canaries
from exporter.home_assistant.integration import read_mqtt
from exporter.home_assistant.payloads import MqttStats
from exporter.ids import Kind
from exporter.ledger.canary_runs import CanaryResult
from exporter.ledger.types import Snapshot
from exporter.metrics.catalogue import Catalogue
from exporter.metrics.reading import Reading
from exporter.notify.dispatcher import TargetStatus, read_targets
from exporter.polling.stats import AccountStats, Balance, Operation
from exporter.source_status import ConfigStatus, SourceStatus
from exporter.web.connections import TlsFailure
from tools.reference.markdown import NOTE, code, table
from tools.reference.meanings import (
    MEANINGS,
    OPEN_LABELS,
    SPECIAL,
    USER_LABEL,
)

_INTRODUCTION: Final = """# Metrics

This page is a reference for people who write queries, alerts or dashboards. It lists every metric
of the exporter, in the order of `/metrics`, and explains the
[values of labels](#values-of-labels).

- **LABELS** are the names in `watch.labels`, in this order. A label that a call does not have is
  empty. Values above `watch.max_label_values` and `watch.max_label_sets` are counted as `other`
  ([Labels](sources.md#labels)).
- **Units.** Times are in seconds. Timestamps are Unix times, and 0 if the event has not occurred.
- **Initial series.** Series are exposed with the value 0 before the first event, so that
  `increase()` includes the first failure. The series of an account exist from the start, those of a
  set of user labels from its first call. An account has {account} series without user labels; each
  set of user labels adds {labels}.
- **Restarts.** Metrics "kept in the ledger" continue after a restart; the others start at 0.
- **Exemplars.** With `metrics.exemplars: true`, the OpenMetrics format contains
  [exemplars](dashboards.md#from-a-panel-to-a-call): the id of the newest finished call or message
  that a series or a bucket counts. They are in memory only, some 300 bytes each: after a restart, a
  series has one when the next call finishes. Canary calls, ids of more than 116 characters, and
  results that another exporter on the same ledger has stored have none.
- **Privacy.** ReferenceIds, phone numbers and error messages are never labels of series.
  ReferenceIds are in exemplars, which are off by default.
- **Several exporters on one ledger.** Only the exporter that polls an account exposes its series.
  Sum over exporters: `sum by (account)`.

`process_*` and `python_*` come from the Prometheus client library for Python.
"""


def page() -> str:
    """Return the whole page."""
    metrics, totals = Catalogue(), CallTotals((USER_LABEL,))
    totals.show(["main"], Snapshot({}, {}, set()))
    totals.use_exemplars(enabled=True)
    account, source = AccountStats(), SourceStatus("config")
    account.of(Operation.GET_BALANCE)
    account.balance, account.balance_warning = Balance(0.0, 0.0), 0.0
    metrics.read_calls(totals)
    metrics.read_accounts(lambda: [("main", account)])
    metrics.read_status(lambda: [source], ConfigStatus())
    metrics.callbacks.read_from(lambda: {"main": dict.fromkeys(CallbackOutcome, 0)})
    for reason in TlsFailure:
        metrics.tls_failures.labels(reason.value)
    read_targets(metrics, lambda: [TargetStatus("crm")])
    read_mqtt(metrics, MqttStats)
    for reading in (
        *(metrics.ledger_errors, metrics.log_lines_dropped),
        *(metrics.replicas, metrics.last_heartbeat, metrics.evictions),
    ):
        reading.read_from(lambda: 0)
    metrics.lease.read_from(lambda: {"main": 1})
    sizes = {
        "account": _series(metrics, "account"),
        "labels": _series(metrics, USER_LABEL),
    }
    # Only of accounts with messages.
    account.polls_of(Kind.MESSAGE)
    totals.start("main", 0, Kind.MESSAGE)
    # Only of accounts that place canary calls.
    account.of(Operation.MAKE_CALL)
    stages, runs = dict.fromkeys(CanaryStage, 0.0), dict.fromkeys(CanaryResult, 0)
    canary = CanaryNumbers("main", success=False, last_success=0.0, stages=stages, runs=runs)
    read_canaries(metrics, {"nightly": canary})
    families = {name_of(metric): metric for metric in own_metrics(metrics)}
    used = {label: set[str]() for label in MEANINGS}
    exemplars = with_exemplars(metrics)
    sections = [
        _section(name, metric, used, exemplars=name in exemplars)
        for name, metric in families.items()
    ]
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


def own_metrics(metrics: Catalogue) -> list[Metric]:
    """Return the exporter's own metrics, without those of the client library."""
    return [one for one in metrics.registry.collect() if one.name.startswith("esms_")]


def with_exemplars(metrics: Catalogue) -> set[str]:
    """Return the names of the metrics that have exemplars."""
    readings = (one for one in metrics.registry.collectors if isinstance(one, Reading))
    return {name_of(*one.describe()) for one in readings if one.has_exemplars}


def name_of(metric: Metric) -> str:
    """Return the name of a metric as a query has it."""
    return f"{metric.name}_total" if metric.type == "counter" else metric.name


def _section(name: str, metric: Metric, used: dict[str, set[str]], *, exemplars: bool) -> str:
    labels = [label for label in metric.samples[0].labels if label != "le"]
    facts = [f"type: {metric.type}", f"labels: {_labels(labels)}"]
    for label in labels:
        if (kind := SPECIAL.get((name, label), label)) in MEANINGS:
            values = dict.fromkeys(sample.labels[label] for sample in metric.samples)
            if unexplained := values.keys() - MEANINGS[kind].keys():
                raise LookupError(f"nothing says what {kind} = {sorted(unexplained)} means")
            used[kind].update(values)
            facts.append(f"[{label}](#{kind.replace(' ', '-')}): {' '.join(map(code, values))}")
    bounds = dict.fromkeys(
        f"{float(sample.labels['le']):g}" for sample in metric.samples if "le" in sample.labels
    )
    if bounds:
        facts.append(f"buckets: {' '.join(bounds).replace('inf', '+Inf')}")
    if exemplars:
        facts.append("exemplars: `reference_id`")
    listed = "".join(f"- {fact}\n" for fact in facts)
    return f"\n## {name}\n\n{metric.documentation}\n\n{listed}"


def _labels(labels: Iterable[str]) -> str:
    names = []
    for name in labels:
        if name == USER_LABEL:
            names.append("LABELS")
        elif name in MEANINGS or name in OPEN_LABELS:
            names.append(code(name))
        else:
            raise LookupError(f"nothing says what the label {name} is")
    return ", ".join(names) or "none"


def _series(metrics: Catalogue, label: str) -> int:
    """Return how many series carry a label."""
    return sum(label in one.labels for metric in own_metrics(metrics) for one in metric.samples)


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
