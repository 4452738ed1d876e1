"""Dashboard of the provider's API and of the accounts."""

from __future__ import annotations

from typing import Final

from grafana_foundation_sdk.models import dashboard as models

from monitoring.dashboards.frame import Row, account, frame, job_and_instance
from monitoring.dashboards.panels import (
    coloured,
    dashed,
    heat,
    runbooks,
    series,
    share,
    stacked,
    timeline,
)
from monitoring.dashboards.promql import age, distribution, of_account, quantile, rate, ratio

POLLS: Final = 'operation=~"get_(send|message)_status"'
REQUESTS: Final = of_account("esms_api_requests_total", POLLS)
FAILED: Final = of_account(
    "esms_api_requests_total",
    POLLS,
    'outcome=~"api_error|bad_response|timeout|connection|tls|http_error"',
)
LATENCY: Final = of_account("esms_api_request_duration_seconds_bucket", POLLS)
BALANCE: Final = of_account("esms_account_balance_vnd")
TOLD: Final = of_account("esms_account_balance_timestamp_seconds")
WARNING: Final = of_account("esms_account_balance_warning_vnd")
AUTHORIZED: Final = of_account("esms_account_authorized")
REFUSALS: Final = of_account("esms_auth_failures_total")
OLDEST: Final = of_account("esms_oldest_watched_call_timestamp_seconds")
PAUSED_UNTIL: Final = of_account("esms_account_paused_until_timestamp_seconds")
LAST_SUCCESS: Final = of_account("esms_last_successful_poll_timestamp_seconds")


def api() -> models.Dashboard:
    """Return the dashboard of the provider's API and of the accounts on it."""
    return frame(
        "esms-api",
        "eSMS / API and accounts",
        "The provider's API: credentials, pauses, balances, requests, latency and callbacks.",
        (*job_and_instance(), account()),
        (_accounts(), _balances(), _requests(), _latency(), _callbacks()),
    )


def _accounts() -> Row:
    return Row(
        "Accounts",
        (
            timeline(
                "Credentials",
                "Whether the provider accepts the credentials: refused after it refused two "
                "calls in a row, and before the first answer. Also refused if at least one "
                "replica with open calls or messages of the account is.",
                {"{{account}}": _accepted()},
                {"0": ("refused", "red"), "1": ("accepted", "green")},
            ).links(runbooks("EsmsCredentialsRefused")),
            timeline(
                "Pauses",
                "Whether the account is paused: its credentials were refused, it was throttled, "
                "or the provider is down. The status page shows the reason.",
                {"{{account}}": f"max by (account) ({PAUSED_UNTIL}) > bool time()"},
                {"0": ("polled", "green"), "1": ("paused", "orange")},
            ).links(runbooks("EsmsAccountPaused")),
            series(
                "Refused credentials",
                "Polls per minute that the provider refused because of the credentials (101), "
                "the exporter's address (140) or the account (143), by result code.",
                "cpm",
                {"{{account}} {{code}}": "60 * " + rate(REFUSALS, "account, code")},
            ),
            series(
                "Time since the last successful poll",
                "Of the replica with the latest one. It also grows if the account has no calls "
                "to poll.",
                "s",
                {"{{account}}": age(f"max by (account) ({LAST_SUCCESS})")},
            ).links(runbooks("EsmsPollsStalled")),
            series(
                "Remaining time of the pause",
                "Time until the account is polled again; 0 if it is not paused.",
                "s",
                {"{{account}}": f"clamp_min(max by (account) ({PAUSED_UNTIL}) - time(), 0)"},
            ),
        ),
    )


def _balances() -> Row:
    return Row(
        "Balances",
        (
            series(
                "Balance",
                "From the replica that received it last. The dashed line is `balance_warning` "
                "of the account.",
                "currencyVND",
                {
                    "{{account}}": f"max by (account) ({_newest()})",
                    "{{account}} warning": f"max by (account) ({WARNING})",
                },
            )
            .override_by_regexp("/ warning$/", [dashed()])
            .links(runbooks("EsmsBalanceLow", "EsmsBalanceRunsOut")),
            series(
                "Age of the balance",
                "Time since the last successful balance request of any replica.",
                "s",
                {"{{account}}": age(f"max by (account) ({TOLD})")},
            ).links(runbooks("EsmsBalanceUnknown")),
            stacked(
                "Requests for balances",
                "Requests per minute by outcome.",
                "cpm",
                {
                    "{{outcome}}": "60 * "
                    + rate(
                        of_account("esms_api_requests_total", 'operation="get_balance"'), "outcome"
                    )
                },
            ),
        ),
    )


def _newest() -> str:
    """Return the newest balances: those of a replica that is refused may be old."""
    last = f"max by (job, account) ({TOLD})"
    return f"{BALANCE} and {TOLD} == on (job, account) group_left () {last}"


def _accepted() -> str:
    """Return 0 where a replica is refused, and 1 where one is accepted and none is refused.

    A replica that has no open call or message of an account has no answer, or only an old one.
    """
    one = "job, instance, account"
    refused = " and ".join(
        (
            f"{AUTHORIZED} == 0",
            f"on ({one}) sum by ({one}) ({REFUSALS}) > 0",
            f"on ({one}) {OLDEST} > 0",
        )
    )
    return f"min by (account) ({refused}) or max by (account) ({AUTHORIZED})"


def _requests() -> Row:
    return Row(
        "Requests",
        (
            stacked(
                "Request rate by account",
                "Requests per second to the provider, of all replicas. The limit is "
                "`rate_limit` of the account.",
                "reqps",
                {"{{account}}": rate(REQUESTS, "account")},
            ),
            coloured(
                stacked(
                    "Requests by outcome",
                    "Requests per second by outcome. not_found is common for a while after a "
                    "call was placed.",
                    "reqps",
                    {"{{outcome}}": rate(REQUESTS, "outcome")},
                )
            ),
            share(
                "Failed requests by account",
                "Share of requests that got no valid answer, or an error of the provider. Calls "
                "and messages have different hosts. Refused credentials and throttling are not "
                "included.",
                {
                    "{{account}} {{operation}}": ratio(
                        rate(FAILED, "account, operation"), rate(REQUESTS, "account, operation")
                    )
                },
            ).links(runbooks("EsmsApiErrors")),
            series(
                "Throttled requests",
                "Requests per minute that the provider refused because there were too many.",
                "cpm",
                {
                    "{{account}}": "60 * "
                    + rate(
                        of_account("esms_api_requests_total", POLLS, 'outcome="throttled"'),
                        "account",
                    )
                },
            )
            .links(runbooks("EsmsThrottled"))
            .span(12),
            stacked(
                "Result codes",
                "Answers of the provider per second, by result code; 100 is success. Codes that "
                "never occurred are hidden.",
                "reqps",
                {"{{code}}": f"{rate(of_account('esms_api_result_codes_total'), 'code')} > 0"},
            ).span(6),
            series(
                "Invalid values",
                "Invalid values of fields per minute in answers and callbacks for finished "
                "calls, and missing values of SentResult.",
                "cpm",
                {"{{field}}": f"60 * {rate(of_account('esms_api_odd_values_total'), 'field')}"},
            ).span(6),
        ),
    )


def _latency() -> Row:
    return Row(
        "Latency",
        (
            heat(
                "Latency of requests",
                "Requests per second by the time from sending them to the complete answer or the "
                "failure.",
                distribution(LATENCY),
            ),
            series(
                "Latency by account",
                "Median and 99th percentile of the time from sending a request to the complete "
                "answer or the failure.",
                "s",
                {
                    f"{{{{account}}}} {name}": quantile(part, LATENCY, "account")
                    for name, part in (("p50", 0.5), ("p99", 0.99))
                },
            ).span(12),
        ),
    )


def _callbacks() -> Row:
    return Row(
        "Callbacks",
        (
            stacked(
                "Callbacks of the provider",
                "Callbacks of the provider per minute, by outcome. forbidden: the token is "
                "wrong; error: the callback could not be stored, and the provider repeats it.",
                "cpm",
                {"{{outcome}}": f"60 * {rate(of_account('esms_callbacks_total'), 'outcome')}"},
            ).span(24),
        ),
    )
