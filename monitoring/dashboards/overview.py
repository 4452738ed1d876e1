"""Dashboard of the results of calls."""

from __future__ import annotations

from typing import Final

from grafana_foundation_sdk.models import dashboard as models

from monitoring.dashboards.calls import (
    ACD_IS,
    ANSWERED,
    ASR_IS,
    FAILURE,
    FINISHED,
    GOT,
    KNOWN,
    RECEIVERS,
    RECEIVERS_KNOWN,
    SEIZED,
    SUCCESS,
    SUCCESS_IS,
    TALKED,
    TALKS,
)
from monitoring.dashboards.frame import Row, account, frame, job_and_instance, user_labels
from monitoring.dashboards.panels import (
    coloured,
    dashed,
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
    priced_rate,
    quantile,
    ratio,
    share_up_to,
)
from monitoring.dashboards.summary import by_label

KEYS: Final = of_account("esms_call_keypresses_total")
PRICE: Final = of_account("esms_call_price_vnd_total")
DELAYS: Final = of_account("esms_call_result_delay_seconds_bucket")
MESSAGE_PRICE: Final = of_account("esms_message_price_vnd_total")
MESSAGE_DELAYS: Final = of_account("esms_message_result_delay_seconds_bucket")
WATCHED: Final = of_account("esms_calls_watched")
MESSAGES_WATCHED: Final = of_account("esms_messages_watched")

RANGE: Final = "In the time range."


def overview() -> models.Dashboard:
    """Return the dashboard for teams that place calls."""
    return frame(
        "esms-overview",
        "eSMS / Overview",
        "Results of calls and messages: success ratio, answers, durations and volume.",
        (*job_and_instance(), account(), *user_labels()),
        (_now(), _answered(), _volume(), _traffic(), _messages(), _canaries(), _by_account()),
    )


def _now() -> Row:
    return Row(
        "Time range",
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
                f"Finished calls, each counted once, when its result is committed. {RANGE}",
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
                "Prices of finished calls, as reported by the provider's callback; 0 without "
                f"callbacks. {RANGE}",
                "currencyVND",
                {"VND": call_total(PRICE)},
            ),
            by_label(),
        ),
    )


def _answered() -> Row:
    return Row(
        "Success and answers",
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
                f"{ACD_IS} It falls when callees hang up at once, for example because they hear "
                "nothing, or because of fraud.",
                "s",
                {"{{$split}}": ratio(call_rate(TALKED, "$split"), call_rate(TALKS, "$split"))},
            )
            .links(runbooks("EsmsAcdCollapsed"))
            .interval("1m"),
            series(
                "Duration of answered calls",
                "Median and 90th percentile of the duration of answered calls.",
                "s",
                {
                    name: quantile(part, of_account("esms_call_duration_seconds_bucket"))
                    for name, part in (("p50", 0.5), ("p90", 0.9))
                },
                exemplars=True,
            ).interval("1m"),
            share(
                "Short calls by $split",
                "Short-call ratio: answered calls of at most 20 s divided by answered calls.",
                {"{{$split}}": share_up_to(20.0, "esms_call_duration_seconds", "$split")},
            ),
        ),
    )


def _volume() -> Row:
    return Row(
        "Volume",
        (
            coloured(
                stacked(
                    "Finished calls by result",
                    "Calls per minute. success: the carrier delivered the call; failure: it did "
                    "not; unknown: the provider reported no result.",
                    "cpm",
                    {"{{result}}": f"60 * {call_rate(FINISHED, 'result')}"},
                    exemplars=True,
                ).links(runbooks("EsmsResultsUnknown"))
            ),
            stacked(
                "Failed calls by status",
                "Calls per minute that the carrier did not deliver, by status.",
                "cpm",
                {"{{status}}": f"60 * {call_rate(FAILURE, 'status')}"},
                exemplars=True,
            ).links(runbooks("EsmsCallFailed", "EsmsCallsFailing")),
            stacked(
                "Delivered calls by status",
                "Calls per minute that the carrier delivered, by what the callee did.",
                "cpm",
                {"{{status}}": f"60 * {call_rate(SUCCESS, 'status')}"},
                exemplars=True,
            ),
            stacked(
                "Finished calls by $split",
                "Calls per minute.",
                "cpm",
                {"{{$split}}": f"60 * {call_rate(FINISHED, '$split')}"},
                exemplars=True,
            ).span(6),
            stacked(
                "Key presses",
                "Finished calls per minute in which the callee pressed a key, by the first key.",
                "cpm",
                {"{{key}}": f"60 * {call_rate(KEYS, 'key')}"},
            ).span(6),
            stacked(
                "Price by $split",
                "VND per hour, as reported by the provider's callback; 0 without callbacks.",
                "currencyVND",
                {"{{$split}}": f"3600 * {call_rate(PRICE, '$split')}"},
            ).span(6),
            series(
                "Spend per call",
                "Price of all calls divided by finished calls, and by answered calls, of label "
                "sets that have ever had a price. Only callbacks report prices: too low where "
                "some calls have none.",
                "currencyVND",
                {
                    name: ratio(f"({call_rate(PRICE)} > 0)", priced_rate(calls, PRICE))
                    for name, calls in (
                        ("per finished call", FINISHED),
                        ("per answered call", ANSWERED),
                    )
                },
            )
            .interval("1m")
            .span(6),
        ),
    )


def _traffic() -> Row:
    return Row(
        "Compared with last week",
        tuple(
            series(
                f"{of} by $split, and last week",
                f"{of} per hour. The dashed lines are those of a week ago. When the solid line "
                "falls to 0, nothing is placed or ids do not arrive; when it is far above, look "
                "for a loop or fraud.",
                "short",
                {
                    "{{$split}}": f"3600 * {call_rate(finished, '$split')}",
                    "{{$split}} last week": "3600 * " + call_rate(finished, "$split", " offset 1w"),
                },
            )
            .override_by_regexp("/ last week$/", [dashed()])
            .links(
                runbooks(
                    *("EsmsTrafficStopped", "EsmsTrafficStoppedForLabels"),
                    *("EsmsTrafficBurst", "EsmsTrafficBurstForLabels"),
                )
            )
            .interval("5m")
            .span(12)
            for of, finished in (
                ("Finished calls", FINISHED),
                ("Receivers of messages", RECEIVERS),
            )
        ),
    )


def _messages() -> Row:
    return Row(
        "Messages",
        (
            coloured(
                stacked(
                    "Receivers by result",
                    "Receivers of finished messages per minute. success: the receiver got the "
                    "message; failure: not; unknown: the provider reported no result.",
                    "cpm",
                    {"{{result}}": f"60 * {call_rate(RECEIVERS, 'result')}"},
                    exemplars=True,
                ).links(runbooks("EsmsMessageFailed", "EsmsMessagesFailing", "EsmsResultsUnknown"))
            ),
            share(
                "Delivered messages by $split",
                "Receivers that got their message divided by receivers with a known result.",
                {
                    "{{$split}}": ratio(
                        call_rate(GOT, "$split"), call_rate(RECEIVERS_KNOWN, "$split")
                    )
                },
            ).links(runbooks("EsmsMessagesFailing", "EsmsMessagesFailingForLabels")),
            stacked(
                "Price of messages by $split",
                "VND per hour, as reported by the provider.",
                "currencyVND",
                {"{{$split}}": f"3600 * {call_rate(MESSAGE_PRICE, '$split')}"},
            ),
            series(
                "Delay of results of messages",
                "Time from adding a message to its result: median, 90th and 99th percentile. "
                "Empty with a filter on your labels.",
                "s",
                {
                    name: quantile(part, MESSAGE_DELAYS)
                    for name, part in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))
                },
                exemplars=True,
            )
            .interval("1m")
            .span(12),
            stacked(
                "Open messages by state",
                "Open messages, by the state in their last answer. Empty with a filter on your "
                "labels.",
                "short",
                {"{{state}}": held(MESSAGES_WATCHED, "state")},
            )
            .links(runbooks("EsmsCallsStuck"))
            .span(12),
        ),
    )


def _by_account() -> Row:
    return Row(
        "By account (empty with a filter on your labels)",
        (
            series(
                "Delay of results",
                "Time from adding a call to its result: median, 90th and 99th percentile.",
                "s",
                {
                    name: quantile(part, DELAYS)
                    for name, part in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))
                },
                exemplars=True,
            )
            .interval("1m")
            .span(12),
            stacked(
                "Open calls by state",
                "Open calls, by the state in their last answer.",
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
        "Canary calls",
        (
            timeline(
                "Last canary call",
                "Whether the last canary call ended as expected.",
                {"{{canary}}": each("esms_canary_success")},
                {"0": ("failed", "red"), "1": ("success", "green")},
            ).links(runbooks("EsmsCanaryFailed")),
            series(
                "Time since the last successful canary call",
                "Time since a canary call last ended as expected.",
                "s",
                {"{{canary}}": age(each("esms_canary_last_success_timestamp_seconds"))},
            )
            .height(6)
            .span(12),
            stacked(
                "Canary calls",
                "Canary calls per hour that were due, by result. Missed and limited calls were "
                "not placed.",
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
                "Duration of a stage in the last canary call that completed it: until the "
                "provider accepted the call, and from then until its end.",
                "s",
                {
                    "{{canary}} {{stage}}": each(
                        "esms_canary_stage_duration_seconds", "canary, stage"
                    )
                },
            ).span(12),
        ),
    )
