"""Payloads of notifications. Pure.

Webhooks receive CloudEvents 1.0 in JSON, signed according to Standard Webhooks
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
from exporter.ledger.types import FinishedCall

TYPE: Final = "esms-exporter.call.finished"
"""The `type` of events; it names the exporter, which defines them, and not eSMS."""

CONTENT_TYPE: Final = "application/cloudevents+json"


class CloudEvent(NamedTuple):
    """A CloudEvent in JSON."""

    id: str  # the same for each attempt and exporter, so that receivers can detect repeats
    body: bytes


def cloud_event(call: FinishedCall) -> CloudEvent:
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
            **call._asdict(),
            "first_watched": _milliseconds(call.first_watched),
            "finished_at": at,
        },
    }
    return CloudEvent(number, to_json(event))


def signature_headers(key: bytes, event: CloudEvent, now: float) -> dict[str, str]:
    """Return the signature headers of an attempt at `now` (Unix time)."""
    timestamp = str(int(now))
    signed = hmac.digest(key, f"{event.id}.{timestamp}.".encode() + event.body, hashlib.sha256)
    return {
        "webhook-id": event.id,
        "webhook-timestamp": timestamp,
        "webhook-signature": f"v1,{base64.b64encode(signed).decode()}",
    }


def home_assistant_event(call: FinishedCall) -> bytes:
    """Return the message of a finished call for an event entity of Home Assistant."""
    event: dict[str, Any] = {  # Any: JSON
        "event_type": call.result,
        "account": call.account,
        "reference_id": call.reference_id,
        "status": call.status,
        "labels": call.labels,
        "duration": call.duration,
        "key": call.key,
        "kind": call.kind,
        "delivered": call.delivered,
        "failed": call.failed,
        "finished_at": _time(call.finished_at).isoformat(timespec="seconds"),
    }
    return to_json(event)


def _time(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


def _milliseconds(at: float) -> str:
    """Format a Unix time as in RFC 3339."""
    return _time(at).isoformat(timespec="milliseconds")[:-6] + "Z"
