"""How the dashboards ask.

Totals of finished calls come from the ledger. Replicas that share one show the same totals: a sum
over them would count each call once a replica. So the largest is taken first (`max without`), and
only then is summed over accounts, results and labels. What a replica does by itself - requests,
commits, resources - differs from what the others do, and is summed.
"""

from __future__ import annotations

from typing import Final

REPLICA: Final = "instance, pod"
"""The labels that tell one replica from another: Prometheus' own, and that of Kubernetes."""


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


def shared(selector: str) -> str:
    """Return what replicas share, once."""
    return f"max without ({REPLICA}) ({selector})"


def call_rate(selector: str, by: str = "") -> str:
    """Return the rate of what the ledger counts, per second."""
    return _sum(shared(f"rate({selector}[$__rate_interval])"), by)


def call_total(selector: str, by: str = "") -> str:
    """Return what the ledger counted in the time that is shown.

    The largest is taken before the increase: a replica that took another's place in that time has
    only seen a part of it. The ledger's totals survive restarts, so that it still only grows.
    """
    return _sum(f"increase({shared(selector)}[$__range:$__interval])", by)


def ratio(part: str, whole: str) -> str:
    """Return a quotient; nothing where there is nothing to divide by."""
    return f"{part} / ({whole} > 0)"


def quantile(share: float, buckets: str) -> str:
    """Return the value below which that share of the observations is."""
    return f"histogram_quantile({share:g}, {buckets})"


def age(timestamps: str) -> str:
    """Return how long ago that was, in seconds; nothing where it never was."""
    return f"time() - ({timestamps} > 0)"


def _sum(vector: str, by: str) -> str:
    return f"sum by ({by}) ({vector})" if by else f"sum({vector})"
