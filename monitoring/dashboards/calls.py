"""Selectors of finished calls, and what their ratios mean; alerts mean the same by them."""

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

SUCCESS_IS: Final = (
    "Success ratio: calls that the carrier delivered, of all whose result the provider told."
)
ASR_IS: Final = (
    "ASR, the answer-seizure ratio (ITU-T E.411): answered calls, of all that were placed on the "
    "network, which rejected ones were not. A delivered call that nobody took is a success "
    "without an answer."
)
ACD_IS: Final = "ACD, the average call duration: seconds of answered calls, by their number."
