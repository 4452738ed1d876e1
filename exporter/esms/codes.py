"""The provider's result codes, and the outcomes of requests.

Source: the provider's public table of result codes (`bang-ma-loi`), limited to calls.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Outcome(StrEnum):
    """The outcome of a request: the label `outcome` of `esms_api_requests_total`."""

    OK = "ok"
    AUTH = "auth"
    NOT_FOUND = "not_found"
    THROTTLED = "throttled"
    API_ERROR = "api_error"
    BAD_RESPONSE = "bad_response"
    TIMEOUT = "timeout"
    CONNECTION = "connection"
    TLS = "tls"
    HTTP_ERROR = "http_error"


# To add a code, add one line. Its outcome decides what the poller does. `codes` of an account
# overrides it.
CODES: Final[dict[str, Outcome]] = {
    "100": Outcome.OK,
    "99": Outcome.API_ERROR,  # number blocked
    "101": Outcome.AUTH,  # wrong ApiKey or SecretKey
    "102": Outcome.API_ERROR,  # no price list
    "103": Outcome.API_ERROR,  # balance too low
    "104": Outcome.API_ERROR,  # call code or template does not exist
    "105": Outcome.NOT_FOUND,  # id not found, possibly not yet
    "106": Outcome.API_ERROR,  # recording does not exist
    "108": Outcome.API_ERROR,  # phone number malformed
    "118": Outcome.API_ERROR,  # type not supported
    "124": Outcome.API_ERROR,  # duplicate RequestId
    "140": Outcome.AUTH,  # the caller's IP address is not whitelisted
    "143": Outcome.AUTH,  # account not active, or locked
    "160": Outcome.THROTTLED,  # over the limit of requests per second
    "851": Outcome.API_ERROR,  # id missing
    "854": Outcome.NOT_FOUND,  # no data found
}

AUTH_CODES: Final = tuple(code for code, outcome in CODES.items() if outcome is Outcome.AUTH)

OTHER_CODE: Final = "other"
"""The label value of codes that are neither documented nor configured: bounds the label."""
