from __future__ import annotations

import base64
import json

import pytest

from exporter.calls import Finished, Key, Result, Status, WatchedCall
from exporter.ids import reference_id
from exporter.notify.event import finished_event, headers, signing_key
from exporter.secrets import Secret
from tests import subprocesses
from tests.programs import program

CALL = WatchedCall(7, reference_id("505139D7-54f8"), 1_700_000_000.25)
ANSWERED = Finished(Result.SUCCESS, Status.ANSWERED, 13.0, Key.ONE)
AT = 1_700_000_060.5

# https://github.com/standard-webhooks/standard-webhooks has these in the tests of its libraries.
VECTOR_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
VECTOR = {
    "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
    "webhook-timestamp": "1614265330",
    "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
}
VECTOR_BODY = b'{"test": 2432232314}'


def test_the_event_is_a_cloud_event() -> None:
    event = finished_event("main", CALL, ANSWERED, AT, {"campaign": "cấp cứu"})
    assert json.loads(event.body) == {
        "specversion": "1.0",
        "id": event.id,
        "source": "/esms-exporter/accounts/main",
        "type": "esms-exporter.call.finished",
        "subject": "505139D7-54f8",
        "time": "2023-11-14T22:14:20.500Z",
        "datacontenttype": "application/json",
        "data": {
            "account": "main",
            "reference_id": "505139D7-54f8",
            "result": "success",
            "status": "answered",
            "duration": 13.0,
            "key": "1",
            "labels": {"campaign": "cấp cứu"},
            "first_watched": "2023-11-14T22:13:20.250Z",
            "finished_at": "2023-11-14T22:14:20.500Z",
        },
    }


def test_what_there_is_not_is_null() -> None:
    busy = Finished(Result.SUCCESS, Status.BUSY)
    data = json.loads(finished_event("main", CALL, busy, AT, {}).body)["data"]
    assert (data["duration"], data["key"], data["labels"]) == (None, None, {})


def test_the_id_is_that_of_the_call_whoever_tells_of_it_and_when() -> None:
    first = finished_event("main", CALL, ANSWERED, AT, {}).id
    again = WatchedCall(99, reference_id("505139d7-54F8"), 5.0)
    other = WatchedCall(7, reference_id("505139d7-54F9"), 5.0)
    unknown = Finished(Result.UNKNOWN, Status.EXPIRED)
    assert finished_event("main", again, unknown, 6.0, {"a": "b"}).id == first
    assert finished_event("other", CALL, ANSWERED, AT, {}).id != first
    assert finished_event("main", other, ANSWERED, AT, {}).id != first
    # What is signed is joined with full stops.
    assert "." not in first


def test_the_signature_is_that_of_the_standard() -> None:
    signed = headers(
        signing_key(Secret(VECTOR_SECRET)), VECTOR["webhook-id"], 1614265330.9, VECTOR_BODY
    )
    assert signed == VECTOR


def test_the_signature_is_what_openssl_computes() -> None:
    openssl = program("openssl", "Debian's openssl")
    key = signing_key(Secret(VECTOR_SECRET))
    body = finished_event("main", CALL, ANSWERED, AT, {"campaign": "cấp cứu"}).body.encode()
    signed = headers(key, "id-1", AT, body)
    command = [openssl, "dgst", "-sha256", "-mac", "HMAC", "-macopt", f"hexkey:{key.hex()}"]
    done = subprocesses.run(*command, input=f"id-1.{int(AT)}.{body.decode()}", check=True)
    signature = base64.b64encode(bytes.fromhex(done.stdout.split()[-1])).decode()
    assert signed["webhook-signature"] == f"v1,{signature}"


@pytest.mark.parametrize(
    "text",
    [
        "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "whsec_",
        "whsec_c2hvcnQ=",
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS",
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2La La",
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLa-_",
        "whsec_" + base64.b64encode(bytes(65)).decode(),
    ],
)
def test_a_key_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"^[A-Za-z0-9 ,-]*$") as caught:
        signing_key(Secret(text))
    assert text[6:] not in str(caught.value) or text == "whsec_"
