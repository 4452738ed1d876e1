"""Are calls being answered?"""

from __future__ import annotations

from typing import Final

from grafana_foundation_sdk.models import dashboard as models

from monitoring.dashboards.calls import (
    ACD_IS,
    ANSWERED,
    ASR_IS,
    FAILURE,
    FINISHED,
    KNOWN,
    SEIZED,
    SUCCESS,
    SUCCESS_IS,
    TALKED,
    TALKS,
)
from monitoring.dashboards.frame import Row, account, frame, job_and_instance, user_labels
from monitoring.dashboards.panels import (
    coloured,
    runbooks,
    series,
    share,
    single,
    stacked,
    timeline,
)
from monitoring.dashboards.promql import (
    age,
    call_rate,
    call_total,
    held,
    of_account,
    of_exporter,
    quantile,
    ratio,
)
from monitoring.dashboards.summary import by_label

KEYS: Final = of_account("esms_call_keypresses_total")
PRICE: Final = of_account("esms_call_price_vnd_total")
DELAYS: Final = of_account("esms_call_result_delay_seconds_bucket")
WATCHED: Final = of_account("esms_calls_watched")

RANGE: Final = "In the time that is shown."


def overview() -> models.Dashboard:
    """Return the dashboard for whoever makes the calls."""
    return frame(
        "esms-overview",
        "eSMS / Overview",
        "Are calls being answered? Success, answers, durations and volume of voice calls.",
        (*job_and_instance(), account(), *user_labels()),
        (_now(), _answered(), _volume(), _canaries(), _by_account()),
    )


def _now() -> Row:
    return Row(
        "In the time that is shown",
        (
            single(
                "Success ratio",
                f"{SUCCESS_IS} {RANGE}",
                "percentunit",
                {"success": ratio(call_total(SUCCESS), call_total(KNOWN))},
                none="no calls",
                decimals=1,
            ),
            single(
                "ASR",
                f"{ASR_IS} {RANGE}",
                "percentunit",
                {"ASR": ratio(call_total(ANSWERED), call_total(SEIZED))},
                none="no calls",
                decimals=1,
            ),
            single(
                "ACD",
                f"{ACD_IS} {RANGE}",
                "s",
                {"ACD": ratio(call_total(TALKED), call_total(TALKS))},
                none="no answers",
                decimals=1,
            ),
            single(
                "Finished calls",
                f"Calls whose result was committed. {RANGE}",
                "short",
                {"calls": call_total(FINISHED)},
            ),
            single(
                "Failed calls",
                f"Finished calls that the carrier did not deliver. {RANGE}",
                "short",
                {"calls": call_total(FAILURE)},
            ),
            single(
                "Price",
                "What finished calls cost, as far as the provider's callback told it; 0 without "
                f"callbacks. {RANGE}",
                "currencyVND",
                {"VND": call_total(PRICE)},
            ),
            by_label(),
        ),
    )


def _answered() -> Row:
    return Row(
        "Are calls being answered?",
        (
            share(
                "Success ratio and ASR",
                f"{SUCCESS_IS} {ASR_IS}",
                {
                    "success ratio": ratio(call_rate(SUCCESS), call_rate(KNOWN)),
                    "ASR": ratio(call_rate(ANSWERED), call_rate(SEIZED)),
                },
            ).links(runbooks("EsmsCallsFailing", "EsmsCallSuccessBudgetBurn", "EsmsAsrDropped")),
            share(
                "Success ratio by $split",
                SUCCESS_IS,
                {"{{$split}}": ratio(call_rate(SUCCESS, "$split"), call_rate(KNOWN, "$split"))},
            ).links(runbooks("EsmsCallsFailingForLabels")),
            share(
                "ASR by $split",
                ASR_IS,
                {"{{$split}}": ratio(call_rate(ANSWERED, "$split"), call_rate(SEIZED, "$split"))},
            ),
            series(
                "ACD by $split",
                f"{ACD_IS} Calls that are answered and hung up at once pull it down: fraud, or "
                "audio that nobody hears.",
                "s",
                {"{{$split}}": ratio(call_rate(TALKED, "$split"), call_rate(TALKS, "$split"))},
            )
            .links(runbooks("EsmsAcdCollapsed"))
            .interval("1m")
            .span(12),
            series(
                "Duration of answered calls",
                "The duration below which half, and nine of ten, answered calls are.",
                "s",
                {
                    name: quantile(part, of_account("esms_call_duration_seconds_bucket"))
                    for name, part in (("half", 0.5), ("nine of ten", 0.9))
                },
            )
            .interval("1m")
            .span(12),
        ),
    )


def _volume() -> Row:
    return Row(
        "Volume",
        (
            coloured(
                stacked(
                    "Finished calls by result",
                    "Calls a minute. success: the carrier delivered the call; failure: it did not; "
                    "unknown: the provider never told.",
                    "cpm",
                    {"{{result}}": f"60 * {call_rate(FINISHED, 'result')}"},
                ).links(runbooks("EsmsResultsUnknown"))
            ),
            stacked(
                "Failed calls by status",
                "Calls a minute that the carrier did not deliver, by what became of them.",
                "cpm",
                {"{{status}}": f"60 * {call_rate(FAILURE, 'status')}"},
            ).links(runbooks("EsmsCallFailed", "EsmsCallsFailing")),
            stacked(
                "Delivered calls by status",
                "Calls a minute that the carrier delivered, by what the callee did.",
                "cpm",
                {"{{status}}": f"60 * {call_rate(SUCCESS, 'status')}"},
            ),
            stacked(
                "Finished calls by $split",
                "Calls a minute.",
                "cpm",
                {"{{$split}}": f"60 * {call_rate(FINISHED, '$split')}"},
            ),
            stacked(
                "Key presses",
                "Finished calls a minute whose callee pressed a key, by the first key.",
                "cpm",
                {"{{key}}": f"60 * {call_rate(KEYS, 'key')}"},
            ),
            stacked(
                "Price by $split",
                "VND an hour, as far as the provider's callback told it; 0 without callbacks.",
                "currencyVND",
                {"{{$split}}": f"3600 * {call_rate(PRICE, '$split')}"},
            ),
        ),
    )


def _by_account() -> Row:
    return Row(
        "By account alone: empty under a filter on your labels",
        (
            series(
                "Delay to result",
                "Time from the moment a call was watched to its result: that of half, of nine of "
                "ten, and of 99 of 100 calls.",
                "s",
                {
                    name: quantile(part, DELAYS)
                    for name, part in (("half", 0.5), ("nine of ten", 0.9), ("99 of 100", 0.99))
                },
            )
            .interval("1m")
            .span(12),
            stacked(
                "Watched calls by state",
                "Calls that have not finished, by their state at the last answer.",
                "short",
                {"{{state}}": held(WATCHED, "state")},
            )
            .links(runbooks("EsmsCallsStuck"))
            .span(12),
        ),
    )


def _canaries() -> Row:
    def each(metric: str, by: str = "canary") -> str:
        return f"max by ({by}) ({of_exporter(metric)})"

    return Row(
        "Canary calls: placed to see whether calls go through",
        (
            timeline(
                "Last canary call",
                "Whether the last call of each canary ended as expected.",
                {"{{canary}}": each("esms_canary_success")},
                {"0": ("failed", "red"), "1": ("good", "green")},
            ).links(runbooks("EsmsCanaryFailed")),
            series(
                "Time since a canary call was good",
                "How long ago a call of each canary last ended as expected.",
                "s",
                {"{{canary}}": age(each("esms_canary_last_success_timestamp_seconds"))},
            )
            .height(6)
            .span(12),
            stacked(
                "Canary calls",
                "Calls an hour by what became of them. What was missed or limited was not placed.",
                "short",
                {
                    "{{canary}} {{result}}": "3600 * "
                    + call_rate(of_exporter("esms_canary_runs_total"), "canary, result")
                },
            )
            .links(runbooks("EsmsCanaryNotPlaced"))
            .span(12),
            series(
                "Stages of canary calls",
                "How long the provider took to accept the last call, and the call from there to "
                "its end.",
                "s",
                {
                    "{{canary}} {{stage}}": each(
                        "esms_canary_stage_duration_seconds", "canary, stage"
                    )
                },
            ).span(12),
        ),
    )
