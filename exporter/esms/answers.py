"""The provider's answers, parsed and typed. Pure and total: any bytes make an answer.

Source: the provider's page of `GetSendStatus` and its examples. Types are taken loosely, because
the documentation and the examples differ: numbers come as numbers or as strings.
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
from exporter.ids import reference_id
from exporter.secrets import Secret, mask_phone_numbers

MAX_MESSAGE_LENGTH: Final = 200

MAX_PRICE: Final = 1e9
"""VND; no call costs as much, and the sum of prices must not be spoilt by one of them."""

MAX_BALANCE: Final = 1e15
"""VND; no account holds as much, and up to here a float is exact."""

# Looked up once: Python 3.11 takes as long for a member of an enumeration as for a call.
_OK: Final = Outcome.OK
_API_ERROR: Final = Outcome.API_ERROR

_DECIMAL: Final = re.compile("[0-9]{1,20}(?:[.][0-9]{1,20})?")

# A sister call of the provider says `true` where this one says 1.
_FLAGS: Final = {"true": True, "1": True, "false": False, "0": False}


class Answer(NamedTuple):
    """One answer of the provider, or the failure that took its place.

    Attributes:
        outcome: of the request.
        code: the documented result code, `other` for any other, None where there was none.
        message: the provider's words for a failure, bounded, without control characters and phone
            numbers.
        retry_after: seconds for which a throttling provider wants no requests.
        reference_id: the id that the answer is about, or of a call that was placed; None where it
            names none.
        send_status: 1, 2, 4, 5, 7; None where it is absent or no number.
        sent_result: 0 or 1, or as a boolean; None where it is absent or neither.
        call_status: as it came; empty where it is absent.
        duration: seconds, unchecked; None where it is absent or no number.
        odd_duration: a duration came that is not a number.
        ivr: the key or keys that were pressed, as they came.
        balance: VND.
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


# `read_answer`, `read_balance` and `read_placed` take the body of a response with the status 200,
# and case-folded texts, such as the credentials: a message that repeats one in upper or lower case
# is withheld.


def read_answer(body: bytes, hidden: Iterable[Secret] = ()) -> Answer:
    """Read the answer of `GetSendStatus`. Never raises."""
    return _read_document(_object(body), hidden)


def read_balance(body: bytes, hidden: Iterable[Secret] = ()) -> Answer:
    """Read the answer of `GetBalance_json`. Never raises.

    A refusal comes with a balance of 0, which is none. A good answer without a balance that can be
    one is a bad response: it is better not to know than to know something wrong.
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
    """Read the answer of MakeCall*: its `reference_id` is the `SMSID`. Never raises.

    A good answer whose `SMSID` cannot be one is a bad response: a call was placed, and its id is
    not known.
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


def read_callback(fields: Mapping[str, str]) -> Answer:
    """Read the parameters of the provider's callback as the answer that they would be. Total."""
    return _read_document({**fields, "CodeResponse": "100"}, ())


def read_price(text: str) -> float | None:
    """Return the price of a callback, in VND; None where there is none that can be one."""
    # Python reads more than that as a number, `1_0` and `1e3` among it.
    price = float(text) if _DECIMAL.fullmatch(text := text.strip()) else math.inf
    return price if price <= MAX_PRICE else None


def read_refusal(
    http_status: int, retry_after: str | None, now: float, date: str | None = None
) -> Answer:
    """Read an answer that came with another status than 200. Never raises.

    Args:
        http_status: the status of the response.
        retry_after: its `Retry-After` header.
        now: Unix time, for a `Retry-After` that is a date where there is no `date`.
        date: its `Date` header: by the same clock as `retry_after`, right or wrong.
    """
    if http_status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        sent = _date(date or "")
        wait = read_retry_after(retry_after, now if sent is None else sent)
        return Answer(Outcome.THROTTLED, retry_after=wait)
    return Answer(Outcome.HTTP_ERROR)


def _object(body: bytes) -> Mapping[str, object]:
    """Return the JSON object of a body, after a byte order mark; an empty one for any other."""
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
        outcome, code = _API_ERROR, OTHER_CODE
    if outcome is not _OK:
        return Answer(outcome, code, _message(document.get("ErrorMessage"), hidden))
    duration = document.get("CallDuration")
    seconds = _number(duration)
    # By their places, for which Python takes half the time.
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


def _text(value: object) -> str:
    """Return a string or a whole number as trimmed text; empty for anything else."""
    if type(value) is str:
        return value.strip()
    if type(value) is int:
        # Python refuses to print integers of thousands of digits; no field here has twenty.
        return str(value) if abs(value) < 10**20 else ""
    if type(value) is float and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return ""


def _number(value: object) -> float | None:
    """Return a number, or a string that is one, as a float; it may be infinite but never NaN."""
    # bool is an int to Python, and `true` is no number.
    if type(value) is not int and type(value) is not float and type(value) is not str:
        return None
    if type(value) is str and "_" in value:
        return None  # which Python would read over
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
    """Return a boolean, or the number or text that is one."""
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
            # Whole: what is left of it could still hold a part of a credential.
            return "(withheld: it repeats the request)"
    return mask_phone_numbers(text)[:MAX_MESSAGE_LENGTH]


def read_retry_after(value: str | None, now: float) -> float | None:
    """Read a `Retry-After` header (RFC 9110, 10.2.3): seconds or a date.

    Returns:
        Seconds from `now`, not negative and not bounded above; None where it says nothing.
    """
    text = (value or "").strip()
    if not text:
        return None
    if text.isascii() and text.isdigit():
        return float(text[:12])
    moment = _date(text)
    return None if moment is None else max(0.0, moment - now)


def _date(text: str) -> float | None:
    """Return an HTTP date as Unix time; None where it is none."""
    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return None
