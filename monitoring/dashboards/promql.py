"""Queries of the dashboards.

Totals of finished calls come from the ledger. The replica that polls an account exposes them; when
the account moves, another replica continues with them. So queries take the largest total first
(`max without`), and then sum over accounts, results and labels. Metrics of a replica itself
(requests, commits, resources, open calls) are summed.

Histograms are classic ones. Prometheus 3 can convert them to native histograms without series for
buckets, sum and count: the queries support both.
"""

from __future__ import annotations

import re
from typing import Final

REPLICA: Final = "instance, pod, container, endpoint, node"
"""The labels in which replicas differ: those of Prometheus, and those of Kubernetes."""


def of_exporter(metric: str, *matchers: str) -> str:
    """Return a selector of a metric, for the selected jobs and instances."""
    chosen = 'job=~"$job"', 'instance=~"$instance"'
    return f"{metric}{{{', '.join((*chosen, *matchers))}}}"


def of_account(metric: str, *matchers: str) -> str:
    """Return a selector of a metric with the label `account`, for the selected accounts."""
    return of_exporter(metric, 'account=~"$account"', *matchers)


def rate(selector: str, by: str = "") -> str:
    """Return the sum of the rates of all replicas, per second."""
    return _sum(f"rate({selector}[$__rate_interval])", by)


def held(selector: str, by: str = "") -> str:
    """Return the sum of a gauge of all replicas."""
    return _sum(selector, by)


def call_rate(selector: str, by: str = "", offset: str = "") -> str:
    """Return the rate of a total in the ledger, per second; `offset` is a modifier of PromQL."""
    rates = _or_native(f"rate({{}}[$__rate_interval]{offset})", selector)
    return _sum(_shared(rates), by)


def priced_rate(selector: str, prices: str) -> str:
    """Return the rate of calls of label sets that have ever had a price, per second.

    `selector` and `prices` are totals in the ledger; labels of results are ignored.
    """
    calls = _shared(f"rate({selector}[$__rate_interval])")
    return _sum(f"{calls} and ignoring (result, status) {_shared(prices)} > 0", "")


def call_total(selector: str, by: str = "") -> str:
    """Return the increase of a total in the ledger in the time range.

    The largest total of all replicas is used: when an account moves, each replica has only a part
    of the range. Totals survive restarts. The millisecond includes the total at the start of the
    range, which Prometheus 3 excludes.
    """
    totals = f"{_shared(_or_native('{}', selector))}[${{__range}}1ms:$__interval]"
    return _sum(f"last_over_time({totals}) - min_over_time({totals})", by)


def ratio(part: str, whole: str) -> str:
    """Return a quotient; no data if the divisor is 0."""
    return f"{part} / ({whole} > 0)"


def quantile(share: float, buckets: str, by: str = "") -> str:
    """Return a quantile of a histogram.

    Replicas that expose the same histogram do not change it.
    """
    classic = rate(buckets, f"{by}, le" if by else "le")
    native = rate(_native(buckets), by)
    return f"histogram_quantile({share:g}, {classic}) or histogram_quantile({share:g}, {native})"


def share_up_to(bound: float, histogram: str, by: str = "") -> str:
    """Return the share of a histogram's values up to a bound, which is that of a bucket.

    Replicas that expose the same histogram do not change it.
    """
    bucket = of_account(f"{histogram}_bucket", f'le="{bound}"')
    classic = ratio(rate(bucket, by), rate(of_account(f"{histogram}_count"), by))
    native = rate(of_account(histogram), by)
    return f"{classic} or histogram_fraction(-Inf, {bound:g}, {native})"


def distribution(buckets: str) -> str:
    """Return the rates of a histogram's buckets, per second."""
    return f"{rate(buckets, 'le')} or on () {rate(_native(buckets))}"


def age(timestamps: str) -> str:
    """Return the age of a timestamp in seconds; no data if it is 0."""
    return f"time() - ({timestamps} > 0)"


def _native(selector: str) -> str:
    return re.sub(r"_(bucket|sum|count)\{", "{", selector)


def _or_native(query: str, selector: str) -> str:
    """Return a query; for the sum or count of a histogram, also of a native histogram."""
    classic, part = query.format(selector), re.search(r"_(sum|count)\{", selector)
    if part is None:
        return classic
    return f"{classic} or histogram_{part[1]}({query.format(_native(selector))})"


def _shared(vector: str) -> str:
    """Return the value that replicas share, once."""
    return f"max without ({REPLICA}) ({vector})"


def _sum(vector: str, by: str) -> str:
    return f"sum by ({by}) ({vector})" if by else f"sum({vector})"
