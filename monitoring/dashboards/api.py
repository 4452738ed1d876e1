"""Does the provider answer, and does it accept the accounts?"""

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

POLLS: Final = 'operation="get_send_status"'
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
WATCHED: Final = of_account("esms_calls_watched")
PAUSED_UNTIL: Final = of_account("esms_account_paused_until_timestamp_seconds")
LAST_SUCCESS: Final = of_account("esms_last_successful_poll_timestamp_seconds")


def api() -> models.Dashboard:
    """Return the dashboard of the provider's API and of the accounts on it."""
    return frame(
        "esms-api",
        "eSMS / API and accounts",
        "Does the provider answer, how fast, and does it accept the credentials?",
        (*job_and_instance(), account()),
        (_accounts(), _balances(), _requests(), _latency(), _callbacks()),
    )


def _accounts() -> Row:
    return Row(
        "Accounts",
        (
            timeline(
                "Credentials",
                "Whether the last answer that could tell accepted the credentials: refused where "
                "one replica that has calls of the account was refused. They also count as refused "
                "before the first answer.",
                {"{{account}}": _accepted()},
                {"0": ("refused", "red"), "1": ("accepted", "green")},
            ).links(runbooks("EsmsCredentialsRefused")),
            timeline(
                "Pauses",
                "Whether the account is not polled for a while: its credentials were refused, it "
                "was throttled, or the provider is down. The status page tells the reason.",
                {"{{account}}": f"max by (account) ({PAUSED_UNTIL}) > bool time()"},
                {"0": ("polled", "green"), "1": ("paused", "orange")},
            ).links(runbooks("EsmsAccountPaused")),
            series(
                "Refused credentials",
                "Answers a minute that refused the credentials (101), the caller's address or the "
                "account, by the provider's code.",
                "cpm",
                {"{{account}} {{code}}": "60 * " + rate(REFUSALS, "account, code")},
            ),
            series(
                "Time since the last good answer",
                "Of the replica that had it last. It grows where an account has no calls to poll, "
                "too.",
                "s",
                {"{{account}}": age(f"max by (account) ({LAST_SUCCESS})")},
            ).links(runbooks("EsmsPollsStalled")),
            series(
                "Rest of the pause",
                "Time until the account is asked again; 0 when it is not paused.",
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
                "As the replica was told that was told last. Dashed: the account's "
                "`balance_warning`, below which it is low.",
                "currencyVND",
                {
                    "{{account}}": f"max by (account) ({_newest()})",
                    "{{account}} warning": f"max by (account) ({WARNING})",
                },
            )
            .override_by_regexp("/ warning$/", [dashed()])
            .links(runbooks("EsmsBalanceLow", "EsmsBalanceRunsOut")),
            series(
                "Time since the balance was told",
                "Of the replica that was told last.",
                "s",
                {"{{account}}": age(f"max by (account) ({TOLD})")},
            ).links(runbooks("EsmsBalanceUnknown")),
            stacked(
                "Requests for balances",
                "Requests a minute by what they came to.",
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
    """Return the balances that were told last: another replica's is old where it is refused."""
    last = f"max by (job, account) ({TOLD})"
    return f"{BALANCE} and {TOLD} == on (job, account) group_left () {last}"


def _accepted() -> str:
    """Return 0 where a replica is refused, and 1 where one is accepted and none is refused.

    A replica that polls no call of an account has been told nothing, or nothing new.
    """
    one = "job, instance, account"
    refused = " and ".join(
        (
            f"{AUTHORIZED} == 0",
            f"on ({one}) sum by ({one}) ({REFUSALS}) > 0",
            f"on ({one}) sum by ({one}) ({WATCHED}) > 0",
        )
    )
    return f"min by (account) ({refused}) or max by (account) ({AUTHORIZED})"


def _requests() -> Row:
    return Row(
        "Requests",
        (
            stacked(
                "Request rate by account",
                "Requests a second to the provider, of all replicas. The limit is `rate_limit` of "
                "the account.",
                "reqps",
                {"{{account}}": rate(REQUESTS, "account")},
            ),
            coloured(
                stacked(
                    "Outcomes",
                    "Requests a second by what they came to. not_found is common for a while after "
                    "a call was placed.",
                    "reqps",
                    {"{{outcome}}": rate(REQUESTS, "outcome")},
                )
            ),
            share(
                "Failed requests by account",
                "Requests that no answer came to, or one that is an error of the provider, of all. "
                "Refused credentials and throttling are not its errors.",
                {"{{account}}": ratio(rate(FAILED, "account"), rate(REQUESTS, "account"))},
            ).links(runbooks("EsmsApiErrors")),
            series(
                "Throttled requests",
                "Requests a minute that the provider did not answer because there were too many.",
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
                "Answers a second by the provider's result code; 100 is a good one. Codes that "
                "never came are left out.",
                "reqps",
                {"{{code}}": f"{rate(of_account('esms_api_result_codes_total'), 'code')} > 0"},
            ).span(6),
            series(
                "Odd values",
                "Fields of finished calls a minute whose value cannot be used.",
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
                "Requests a second by the time to the end of their answer or their failure.",
                distribution(LATENCY),
            ),
            series(
                "Latency by account",
                "The time that half of the requests, and 99 of 100, took at most.",
                "s",
                {
                    f"{{{{account}}}} {name}": quantile(part, LATENCY, "account")
                    for name, part in (("half", 0.5), ("99 of 100", 0.99))
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
                "Callbacks a minute by what was made of them. forbidden: without the account's "
                "token; error: could not be stored, and comes again.",
                "cpm",
                {"{{outcome}}": f"60 * {rate(of_account('esms_callbacks_total'), 'outcome')}"},
            ).span(24),
        ),
    )
