"""How the dashboards ask.

Totals of finished calls come from the ledger. Replicas that share one show the same totals: a sum
over them would count each call once a replica. So the largest is taken first (`max without`), and
only then is summed over accounts, results and labels. What a replica does by itself - requests,
commits, resources, the calls that it polls - differs from what the others do, and is summed.
"""

from __future__ import annotations

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
    """Return the rate of what the ledger counts, per second.

    Of buckets, too: the larger of two sets of buckets that grow with `le` grows with it as well.
    """
    return _sum(_shared(f"rate({selector}[$__rate_interval])"), by)


def call_total(selector: str, by: str = "") -> str:
    """Return what the ledger counted in the time that is shown.

    The largest is taken first: a replica that took another's place in that time has only seen a
    part of it. It is a total, and survives restarts. Where the largest goes away for a moment, the
    next may be a little less, which `increase` would take for a counter that began anew.
    """
    totals = f"{_shared(selector)}[$__range:$__interval]"
    return _sum(f"last_over_time({totals}) - min_over_time({totals})", by)


def ratio(part: str, whole: str) -> str:
    """Return a quotient; nothing where there is nothing to divide by."""
    return f"{part} / ({whole} > 0)"


def quantile(share: float, buckets: str) -> str:
    """Return the value below which that share of the observations is."""
    return f"histogram_quantile({share:g}, {buckets})"


def age(timestamps: str) -> str:
    """Return how long ago that was, in seconds; nothing where it never was."""
    return f"time() - ({timestamps} > 0)"


def _shared(vector: str) -> str:
    """Return what replicas share, once."""
    return f"max without ({REPLICA}) ({vector})"


def _sum(vector: str, by: str) -> str:
    return f"sum by ({by}) ({vector})" if by else f"sum({vector})"
