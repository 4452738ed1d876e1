"""Selectors of finished calls and messages, and definitions of ratios; alerts use the same ones."""

from __future__ import annotations

from typing import Final

from monitoring.dashboards.promql import of_account

FINISHED: Final = of_account("esms_calls_total")
SUCCESS: Final = of_account("esms_calls_total", 'result="success"')
FAILURE: Final = of_account("esms_calls_total", 'result="failure"')
KNOWN: Final = of_account("esms_calls_total", 'result!="unknown"')
ANSWERED: Final = of_account("esms_calls_total", 'status="answered"')
SEIZED: Final = of_account("esms_calls_total", 'status!~"rejected|not_found|expired"')
TALKED: Final = of_account("esms_call_duration_seconds_sum")
TALKS: Final = of_account("esms_call_duration_seconds_count")

RECEIVERS: Final = of_account("esms_messages_total")
GOT: Final = of_account("esms_messages_total", 'result="success"')
RECEIVERS_KNOWN: Final = of_account("esms_messages_total", 'result!="unknown"')

SUCCESS_IS: Final = "Success ratio: delivered calls divided by calls with a known result."
ASR_IS: Final = (
    "ASR (answer-seizure ratio, ITU-T E.411): answered calls divided by calls placed on the "
    "network. Rejected and unknown calls were not placed. A delivered call without an answer is a "
    "success."
)
ACD_IS: Final = (
    "ACD (average call duration): total duration of answered calls divided by their number."
)
