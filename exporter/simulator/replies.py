"""What the provider says: the documented bodies, as fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Operation(StrEnum):
    """The operations that the stand-in knows, named as in the URL."""

    GET_SEND_STATUS = "GetSendStatus"
    MAKE_CALL_RECORD = "MakeCallRecord_V2"
    MAKE_CALL_TEMPLATE = "MakeCallTemplate_V2"
    GET_BALANCE = "GetBalance_json"


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer before it is written out.

    Attributes:
        code: the result code, also the outcome in the counters.
        fields: the JSON object of the body.
        status: HTTP status.
        retry_after: the header of that name, if any.
    """

    code: str
    fields: Mapping[str, object]
    status: int = 200
    retry_after: str | None = None


# The texts of 101 and 104 are documented; the others' are in their manner.
ERRORS = {
    "101": "Authorize Failed",
    "103": "Balance not enough",
    "104": "Template not found",
    "105": "ReferenceId not found",
    "106": "Record not found",
    "108": "Phone number invalid",
    "124": "RequestId already exists",
    "140": "IP not in whitelist",
    "143": "Account is locked",
    "160": "TPS limit exceeded",
    "851": "ReferenceId is required",
}


def refused(operation: Operation, code: str) -> Reply:
    """The body of a failure; each operation has its own shape of it (api/examples)."""
    message = ERRORS[code]
    if operation is Operation.GET_BALANCE:
        return Reply(code, {"Balance": 0, "CodeResponse": code, "ErrorMessage": message})
    if operation is Operation.GET_SEND_STATUS or code == "101":
        return Reply(code, {"CodeResult": code, "CountRegenerate": 0, "ErrorMessage": message})
    return Reply(code, {"CodeResult": code, "ErrorMessage": message})
