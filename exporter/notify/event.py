"""What is told of a finished call, and its signature: pure.

The event is a CloudEvent (CloudEvents 1.0, in the JSON format), its signature that of Standard
Webhooks (https://www.standardwebhooks.com).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, NamedTuple
from uuid import NAMESPACE_URL, uuid5

from pydantic_core import to_json

from exporter.calls import Finished, WatchedCall
from exporter.ids import reference_key
from exporter.secrets import Secret

FINISHED: Final = "esms-exporter.call.finished"
"""The `type` of the events: the exporter's, because eSMS has no say in what it means."""

CONTENT_TYPE: Final = "application/cloudevents+json"

PREFIX: Final = "whsec_"
"""What a key for signing begins with; Base64 follows."""


class Event(NamedTuple):
    """An event about a call.

    Attributes:
        id: the same whoever tells of it, however often: receivers know repeats by it.
        body: the CloudEvent, as it is sent.
    """

    id: str
    body: str


def finished_event(
    account: str, call: WatchedCall, finished: Finished, at: float, labels: Mapping[str, str]
) -> Event:
    """Return the event that tells of a finished call.

    Args:
        account: the name of the call's account.
        call: the call.
        finished: how it ended.
        at: when that was found out (Unix time).
        labels: of the call, as its source gave them.
    """
    key = reference_key(call.reference_id)
    number = str(uuid5(NAMESPACE_URL, f"{FINISHED}\n{account}\n{key}"))
    when = _time(at)
    body = {
        "specversion": "1.0",
        "id": number,
        "source": f"/esms-exporter/accounts/{account}",
        "type": FINISHED,
        "subject": call.reference_id,
        "time": when,
        "datacontenttype": "application/json",
        "data": {
            "account": account,
            "reference_id": call.reference_id,
            "result": finished.result,
            "status": finished.status,
            "duration": finished.duration,
            "key": finished.key,
            "labels": labels,
            "first_watched": _time(call.first_watched),
            "finished_at": when,
        },
    }
    return Event(number, to_json(body).decode())


def _time(at: float) -> str:
    """Return a Unix time as RFC 3339 has it."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def signing_key(secret: Secret) -> bytes:
    """Return the bytes of a key that is written as `whsec_BASE64`.

    Raises:
        ValueError: it is not, or has fewer than 24 or more than 64 bytes (Standard Webhooks).
    """
    text = secret.reveal()
    if not text.startswith(PREFIX):
        raise ValueError("has no prefix")
    key = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    if not 24 <= len(key) <= 64:
        raise ValueError("is too short or too long")
    return key


def headers(key: bytes, event: str, now: float, body: bytes) -> dict[str, str]:
    """Return the headers that prove who sends an event, and when.

    Args:
        key: for signing.
        event: the event's id.
        now: Unix time of this attempt.
        body: what is sent.
    """
    stamp = str(int(now))
    signed = hmac.digest(key, f"{event}.{stamp}.".encode() + body, hashlib.sha256)
    return {
        "webhook-id": event,
        "webhook-timestamp": stamp,
        "webhook-signature": f"v1,{base64.b64encode(signed).decode()}",
    }
