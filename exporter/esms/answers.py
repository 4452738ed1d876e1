"""Parse the provider's answers. Pure; never raises: invalid bytes are a `bad_response`.

Source: the provider's page of `GetSendStatus` and its examples. They disagree on types, so numbers
may be JSON numbers or strings.
"""

from __future__ import annotations

import math
import re
from codecs import BOM_UTF8
from collections.abc import Iterable, Mapping
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final, NamedTuple

from pydantic_core import from_json

from exporter.esms.codes import CODES, OTHER_CODE, Outcome
from exporter.ids import Kind, reference_id
from exporter.secrets import Secret, mask_phone_numbers

MAX_MESSAGE_LENGTH: Final = 200

MAX_PRICE: Final = 1e9
"""VND. A higher price is an error, and must not corrupt the sum of prices."""

MAX_RECEIVERS: Final = 10_000_000
"""Receivers of a message. A higher number is an error, and must not corrupt the counters."""

MAX_BALANCE: Final = 1e15
"""VND. A higher balance is an error; up to here, floats are exact."""

# Looking up a member of an enumeration costs as much as a function call in Python 3.11.
_OK: Final = Outcome.OK
_API_ERROR: Final = Outcome.API_ERROR

_CODE: Final = re.compile("[0-9]{1,8}")
_DECIMAL: Final = re.compile("[0-9]{1,20}(?:[.][0-9]{1,20})?")

# Another operation of the provider returns `true` where this one returns 1.
_FLAGS: Final = {"true": True, "1": True, "false": False, "0": False}


class Answer(NamedTuple):
    """An answer of the provider, or the failure of the request.

    Attributes:
        code: the result code; `other` if it is not a number of up to 8 digits; None if missing.
        message: the error message, limited in length, without control characters and phone numbers.
        retry_after: seconds to wait, from the `Retry-After` header.
        reference_id: the id of the call or message in the answer, or of a placed call.
        send_status: 1, 2, 4, 5 or 7; None if missing or not a number.
        sent_result: 0, 1 or a boolean; None if missing or invalid.
        call_status: as received; empty if missing.
        duration: seconds, not validated; None if missing or not a number.
        odd_duration: whether a duration is present that is not a number.
        ivr: the pressed keys, as received.
        balance: VND.
        delivered: number of receivers that got the message; None if missing or invalid.
        failed: number of receivers that did not; None likewise.
        receivers: number of receivers; None likewise.
        price: total price of a message in VND; None likewise.
        sent: whether the request may have reached the provider.
    """

    outcome: Outcome
    code: str | None = None
    message: str = ""
    retry_after: float | None = None
    reference_id: str | None = None
    send_status: int | None = None
    sent_result: int | None = None
    call_status: str = ""
    duration: float | None = None
    odd_duration: bool = False
    ivr: str = ""
    balance: float | None = None
    sent: bool = True
    delivered: int | None = None
    failed: int | None = None
    receivers: int | None = None
    price: float | None = None


# `read_answer`, `read_balance` and `read_placed` parse the body of a response with status 200.
# `hidden` are case-folded texts such as the credentials: a message that contains one is withheld.


def read_answer(body: bytes, hidden: Iterable[Secret] = ()) -> Answer:
    """Parse the response of `GetSendStatus`."""
    return _read_document(_object(body), hidden)


def read_message_answer(body: bytes, hidden: Iterable[Secret] = ()) -> Answer:
    """Parse the response of `GetSendStatus` for a message. Never raises."""
    return _read_message(_object(body), hidden)


def read_balance(body: bytes, hidden: Iterable[Secret] = ()) -> Answer:
    """Parse the response of `GetBalance_json`.

    The balance of 0 in a refusal is ignored. Success without a plausible balance is a bad response.
    """
    document = _object(body)
    answer = _read_document(document, hidden)
    if answer.outcome is not Outcome.OK:
        return answer
    balance = _number(document.get("Balance"))
    if balance is None or not 0 <= balance <= MAX_BALANCE:
        return Answer(Outcome.BAD_RESPONSE, answer.code)
    return Answer(Outcome.OK, answer.code, balance=balance)


def read_placed(body: bytes, hidden: Iterable[Secret] = ()) -> Answer:
    """Parse the response of `MakeCall*`: `reference_id` is the `SMSID`.

    Success without a valid `SMSID` is a bad response: the call was placed, but its id is unknown.
    """
    document = _object(body)
    answer = _read_document(document, hidden)
    if answer.outcome is not Outcome.OK:
        return answer
    sms_id = document.get("SMSID")
    try:
        found = reference_id(sms_id if isinstance(sms_id, str) else "")
    except ValueError:
        return Answer(Outcome.BAD_RESPONSE, answer.code)
    return Answer(Outcome.OK, answer.code, reference_id=found)


def read_callback(fields: Mapping[str, str], kind: Kind = Kind.CALL) -> Answer:
    """Convert the parameters of the provider's callback to an answer."""
    read = _read_document if kind is Kind.CALL else _read_message
    return read({**fields, "CodeResponse": "100"}, ())


def read_price(text: str) -> float | None:
    """Return the price in a callback, in VND; None if it is missing or implausible."""
    # `float` alone would accept `1_0` and `1e3`.
    price = float(text) if _DECIMAL.fullmatch(text := text.strip()) else math.inf
    return price if price <= MAX_PRICE else None


def read_refusal(
    http_status: int, retry_after: str | None, now: float, date: str | None = None
) -> Answer:
    """Convert a response with another status than 200.

    A date in the `Retry-After` header is compared with the `Date` header, because the clock of the
    server may be wrong; without one, with `now` (Unix time).
    """
    if http_status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        sent = _date(date or "")
        wait = read_retry_after(retry_after, now if sent is None else sent)
        return Answer(Outcome.THROTTLED, retry_after=wait)
    return Answer(Outcome.HTTP_ERROR)


def _object(body: bytes) -> Mapping[str, object]:
    """Return the JSON object in a body, with or without a BOM; empty if there is none."""
    try:
        document = from_json(body.removeprefix(BOM_UTF8))
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _read_document(document: Mapping[str, object], hidden: Iterable[Secret]) -> Answer:
    code = _text(document.get("CodeResponse")) or _text(document.get("CodeResult"))
    if not code:
        return Answer(Outcome.BAD_RESPONSE)
    outcome = CODES.get(code)
    if outcome is None:
        outcome = _API_ERROR
        if not _CODE.fullmatch(code):
            code = OTHER_CODE
    if outcome is not _OK:
        return Answer(outcome, code, _message(document.get("ErrorMessage"), hidden))
    duration = document.get("CallDuration")
    seconds = _number(duration)
    # Positional arguments take half the time.
    return Answer(
        outcome,
        code,
        "",
        None,
        _text(document.get("ReferenceId")) or None,
        _integer(document.get("SendStatus")),
        _flag(document.get("SentResult")),
        _text(document.get("CallStatus")),
        seconds,
        seconds is None and duration is not None and duration != "",
        _text(document.get("Ivr")),
    )


def _read_message(document: Mapping[str, object], hidden: Iterable[Secret]) -> Answer:
    answer = _read_document(document, hidden)
    if answer.outcome is not _OK:
        return answer
    price = _number(document.get("TotalPrice"))
    return answer._replace(
        reference_id=_text(document.get("SMSID")) or None,
        delivered=_receivers(document.get("SendSuccess")),
        failed=_receivers(document.get("SendFailed")),
        receivers=_receivers(document.get("TotalReceiver")),
        price=price if price is not None and 0 <= price <= MAX_PRICE else None,
    )


def _receivers(value: object) -> int | None:
    number = _integer(value)
    return number if number is not None and 0 <= number <= MAX_RECEIVERS else None


def _text(value: object) -> str:
    """Return a string or a whole number as trimmed text; empty for other values."""
    if type(value) is str:
        return value.strip()
    if type(value) is int:
        # Python refuses to print very long integers; no field has twenty digits.
        return str(value) if abs(value) < 10**20 else ""
    if type(value) is float and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return ""


def _number(value: object) -> float | None:
    """Return a number, or a string with a number, as a float; possibly infinite, never NaN."""
    # `type`, because `isinstance` accepts bool as int.
    if type(value) is not int and type(value) is not float and type(value) is not str:
        return None
    if type(value) is str and "_" in value:
        return None  # `float` would ignore it
    try:
        number = float(value)
    except OverflowError:
        return math.inf
    except ValueError:
        return None
    return None if math.isnan(number) else number


def _integer(value: object) -> int | None:
    if type(value) is int:
        return value
    number = _number(value)
    return int(number) if number is not None and number.is_integer() else None


def _flag(value: object) -> bool | None:
    """Convert a boolean, 0, 1 or text to a boolean; return None if it is invalid."""
    if type(value) is bool:
        return value
    if type(value) is str and (flag := _FLAGS.get(value.strip().lower())) is not None:
        return flag
    number = _integer(value)
    return bool(number) if number in (0, 1) else None


def _message(value: object, hidden: Iterable[Secret]) -> str:
    text = value if isinstance(value, str) else ""
    if not text.isprintable():
        text = "".join(char for char in text if char.isprintable())
    folded = text.casefold()
    for part in hidden:
        if part.reveal() in folded:
            # Withhold it completely: the rest may contain a part of a credential.
            return "(withheld: it repeats the request)"
    return mask_phone_numbers(text)[:MAX_MESSAGE_LENGTH]


def read_retry_after(value: str | None, now: float) -> float | None:
    """Parse a `Retry-After` header (RFC 9110, 10.2.3): seconds or a date.

    Return seconds from `now`, at least 0 and without a maximum; None if missing or invalid.
    """
    text = (value or "").strip()
    if not text:
        return None
    if text.isascii() and text.isdigit():
        return float(text[:12])
    moment = _date(text)
    return None if moment is None else max(0.0, moment - now)


def _date(text: str) -> float | None:
    """Return an HTTP date as Unix time; None if it is invalid."""
    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return None
