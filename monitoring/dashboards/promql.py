"""How the dashboards ask.

Totals of finished calls come from the ledger. Of replicas that share one, the one that polls an
account exposes them; when the account moves, another one goes on with them. So the largest is taken
first (`max without`), and only then is summed over accounts, results and labels. What a replica
does by itself - requests, commits, resources, the calls that it polls - is summed.

Histograms are classic ones. Prometheus 3 may be told to convert them to native histograms, without
series for buckets, sum and count: queries for these ask for the native histogram as well.
"""

from __future__ import annotations

import re
from typing import Final

REPLICA: Final = "instance, pod, container, endpoint, node"
"""The labels that tell one replica from another: Prometheus' own, and those of Kubernetes."""


def of_exporter(metric: str, *matchers: str) -> str:
    """Return a selector of a metric, for the jobs and instances that are chosen."""
    chosen = 'job=~"$job"', 'instance=~"$instance"'
    return f"{metric}{{{', '.join((*chosen, *matchers))}}}"


def of_account(metric: str, *matchers: str) -> str:
    """Return a selector of a metric with the label `account`, for the accounts that are chosen."""
    return of_exporter(metric, 'account=~"$account"', *matchers)


def rate(selector: str, by: str = "") -> str:
    """Return the rate of what each replica counts by itself, per second."""
    return _sum(f"rate({selector}[$__rate_interval])", by)


def held(selector: str, by: str = "") -> str:
    """Return what each replica has by itself, of all of them."""
    return _sum(selector, by)


def call_rate(selector: str, by: str = "") -> str:
    """Return the rate of what the ledger counts, per second."""
    return _sum(_shared(_or_native("rate({}[$__rate_interval])", selector)), by)


def call_total(selector: str, by: str = "") -> str:
    """Return what the ledger counted in the time that is shown.

    The largest is taken first: when an account moves, each replica has only seen a part of it. It
    is a total, and survives restarts. The millisecond includes the total at the start of that time,
    which Prometheus 3 would leave out.
    """
    totals = f"{_shared(_or_native('{}', selector))}[${{__range}}1ms:$__interval]"
    return _sum(f"last_over_time({totals}) - min_over_time({totals})", by)


def ratio(part: str, whole: str) -> str:
    """Return a quotient; nothing where there is nothing to divide by."""
    return f"{part} / ({whole} > 0)"


def quantile(share: float, buckets: str, by: str = "") -> str:
    """Return the value below which that share of the observations is.

    Replicas that show the same histogram do not change it.
    """
    classic = rate(buckets, f"{by}, le" if by else "le")
    native = rate(_native(buckets), by)
    return f"histogram_quantile({share:g}, {classic}) or histogram_quantile({share:g}, {native})"


def distribution(buckets: str) -> str:
    """Return the rates of a histogram's buckets, per second."""
    return f"{rate(buckets, 'le')} or on () {rate(_native(buckets))}"


def age(timestamps: str) -> str:
    """Return how long ago that was, in seconds; nothing where it never was."""
    return f"time() - ({timestamps} > 0)"


def _native(selector: str) -> str:
    return re.sub(r"_(bucket|sum|count)\{", "{", selector)


def _or_native(query: str, selector: str) -> str:
    """Return a query; of a histogram's sum or count, also what a native histogram says."""
    classic, part = query.format(selector), re.search(r"_(sum|count)\{", selector)
    if part is None:
        return classic
    return f"{classic} or histogram_{part[1]}({query.format(_native(selector))})"


def _shared(vector: str) -> str:
    """Return what replicas share, once."""
    return f"max without ({REPLICA}) ({vector})"


def _sum(vector: str, by: str) -> str:
    return f"sum by ({by}) ({vector})" if by else f"sum({vector})"
