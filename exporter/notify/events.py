"""Events of finished calls as targets receive them. Pure.

Webhooks receive CloudEvents (1.0, in the JSON format), signed as Standard Webhooks has it
(https://www.standardwebhooks.com).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple
from uuid import NAMESPACE_URL, uuid5

from pydantic_core import to_json

from exporter.ids import reference_key
from exporter.ledger.outbox import CallFinished

TYPE: Final = "esms-exporter.call.finished"
"""The `type` of the events: the exporter's, because eSMS has no say in its meaning."""

CONTENT_TYPE: Final = "application/cloudevents+json"


class CloudEvent(NamedTuple):
    """An event as it is sent.

    Attributes:
        id: the same whichever exporter sends it, and how often: receivers know repeats by it.
        body: JSON.
    """

    id: str
    body: bytes


def cloud_event(call: CallFinished) -> CloudEvent:
    """Return the event that a webhook receives for a finished call."""
    name = f"{TYPE}\n{call.account}\n{reference_key(call.reference_id)}"
    number, at = str(uuid5(NAMESPACE_URL, name)), _milliseconds(call.finished_at)
    event = {
        "specversion": "1.0",
        "id": number,
        "source": f"/esms-exporter/accounts/{call.account}",
        "type": TYPE,
        "subject": call.reference_id,
        "time": at,
        "datacontenttype": "application/json",
        "data": {
            "account": call.account,
            "reference_id": call.reference_id,
            "result": call.result,
            "status": call.status,
            "duration": call.duration,
            "key": call.key,
            "labels": call.labels,
            "first_watched": _milliseconds(call.first_watched),
            "finished_at": at,
        },
    }
    return CloudEvent(number, to_json(event))


def signature_headers(key: bytes, event: CloudEvent, now: float) -> dict[str, str]:
    """Return the headers that prove who sends an event, and when (Unix time of this attempt)."""
    timestamp = str(int(now))
    signed = hmac.digest(key, f"{event.id}.{timestamp}.".encode() + event.body, hashlib.sha256)
    return {
        "webhook-id": event.id,
        "webhook-timestamp": timestamp,
        "webhook-signature": f"v1,{base64.b64encode(signed).decode()}",
    }


def home_assistant_event(call: CallFinished) -> bytes:
    """Return the message that makes an event entity of Home Assistant fire."""
    event: dict[str, Any] = {  # Any: JSON
        "event_type": call.result,
        "account": call.account,
        "reference_id": call.reference_id,
        "status": call.status,
        "labels": call.labels,
        "duration": call.duration,
        "key": call.key,
        "finished_at": _time(call.finished_at).isoformat(timespec="seconds"),
    }
    return to_json(event)


def _time(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


def _milliseconds(at: float) -> str:
    """Return a Unix time as RFC 3339 has it."""
    return _time(at).isoformat(timespec="milliseconds")[:-6] + "Z"
