from __future__ import annotations

import json

from exporter.ledger.types import FinishedCall
from exporter.notify.events import (
    CloudEvent,
    cloud_event,
    home_assistant_event,
    signature_headers,
)
from exporter.secrets import Secret, decode_signing_key

AT = 1_700_000_060.5
LABELS = {"campaign": "cấp cứu"}
CALL = FinishedCall(
    "main", "505139D7-54f8", "success", "answered", 13.0, "1", LABELS, 1_700_000_000.25, AT
)

# https://github.com/standard-webhooks/standard-webhooks has these in the tests of its libraries.
VECTOR_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
VECTOR = {
    "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
    "webhook-timestamp": "1614265330",
    "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
}
VECTOR_BODY = b'{"test": 2432232314}'


def test_the_event_of_home_assistant() -> None:
    busy = CALL._replace(result="failure", status="busy", duration=None, key=None)
    assert json.loads(home_assistant_event(busy)) == {
        "event_type": "failure",
        "account": "main",
        "reference_id": "505139D7-54f8",
        "status": "busy",
        "labels": LABELS,
        "duration": None,
        "key": None,
        "kind": "call",
        "delivered": None,
        "failed": None,
        "finished_at": "2023-11-14T22:14:20+00:00",
    }


def test_the_id_follows_from_the_account_and_the_reference_id_alone() -> None:
    first = cloud_event(CALL).id
    again = FinishedCall("main", "505139d754F8", "unknown", "expired", None, None, {}, 5.0, 6.0)
    assert cloud_event(again).id == first
    assert cloud_event(CALL._replace(account="other")).id != first
    assert cloud_event(CALL._replace(reference_id="505139d7-54F9")).id != first
    # What is signed is joined with full stops.
    assert "." not in first


def test_the_signature_is_that_of_the_standard() -> None:
    event = CloudEvent(VECTOR["webhook-id"], VECTOR_BODY)
    key = decode_signing_key(Secret(VECTOR_SECRET))
    assert signature_headers(key, event, 1614265330.9) == VECTOR
