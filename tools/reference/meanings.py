"""What the values of labels mean, in words."""

from __future__ import annotations

from typing import Final

USER_LABEL: Final = "LABELS"
"""Stands for the user's labels."""

OPEN_LABELS: Final = {
    "account": "the `name` of an account in the configuration.",
    "reference_id": "a call, as its source wrote it.",
    "source": "a watch source: `config`, `files`, `api`, `callback`, or `sql:NAME` for an entry of"
    " `watch.sql`; those that are configured.",
    "target": "the `name` of a target of notifications in the configuration, or `Home Assistant`.",
    "canary": "the `name` of an entry of `canaries`.",
    "version": "the exporter's version.",
    "python_version": "the version of Python that it runs on.",
}
"""Labels whose values the user's surroundings decide."""

_KEYS: Final = {str(digit): f"the key {digit}" for digit in range(10)}
CALLBACK_OUTCOME: Final = "outcome of callbacks"
MQTT_OUTCOME: Final = "outcome of messages"
NOTIFICATION_OUTCOME: Final = "outcome of notifications"
POST_OUTCOME: Final = "outcome of notification requests"

CANARY_RESULT: Final = "result of canary calls"

SPECIAL: Final = {
    ("esms_callbacks_total", "outcome"): CALLBACK_OUTCOME,
    ("esms_notifications_total", "outcome"): NOTIFICATION_OUTCOME,
    ("esms_notification_requests_total", "outcome"): POST_OUTCOME,
    ("esms_canary_runs_total", "result"): CANARY_RESULT,
    ("esms_mqtt_messages_total", "outcome"): MQTT_OUTCOME,
}
"""Labels of metrics that have values of their own, and where those are explained."""

# By label and value. `make docs` fails where one is missing, or has no series any more.
MEANINGS: Final[dict[str, dict[str, str]]] = {
    "result": {
        "success": "the carrier delivered the call; the callee need not have answered",
        "failure": "the carrier did not deliver it, or the provider rejected it",
        "unknown": "the provider never told",
    },
    "status": {
        "answered": "the callee answered",
        "no_answer": "it rang, and nobody answered",
        "busy": "the line was busy",
        "failed": "the carrier could not put the call through",
        "none": "the provider said nothing of the callee",
        "other": "the provider said something that is not known to this version",
        "rejected": "the provider rejected the call; it was never placed",
        "not_found": "the provider did not know the call for `polling.not_found_grace`",
        "expired": "the call did not finish within `polling.give_up_after`",
    },
    "key": {**_KEYS, "star": "the key *", "hash": "the key #", "other": "anything else"},
    "state": {
        "new": "not asked for yet, or no good answer yet",
        "awaiting_approval": "the provider has not approved it yet (`SendStatus` 1)",
        "queued": "it waits to be placed (`SendStatus` 2)",
        "awaiting_report": "it was placed, and the carrier has not reported yet (`SendStatus` 7)",
        "unknown": "the provider answers with a state that is not documented",
        "not_found": "the provider does not know it, or not yet",
    },
    CANARY_RESULT: {
        "success": "it finished as expected",
        "failure": "it finished otherwise: not answered, rejected, or with another key",
        "late": "it was placed, and had not finished when `within` had passed",
        "refused": "the provider refused to place it, and said so with a result code",
        "unreachable": "there was no connection to the provider, so that nothing was placed",
        "unsure": "nobody knows whether it was placed: the answer was lost, or the exporter ended"
        " before it came; it is not placed again",
        "missed": "nobody placed it in time: no exporter ran, the ledger could not be written, or"
        " the account was paused",
        "limited": "the calls of `max_per_day` had been placed",
    },
    "stage": {
        "accepted": "from the request that places it to the provider's acceptance",
        "finished": "from the acceptance to its end, as it was found by asking every 5 s",
    },
    "operation": {
        "get_balance": "asking for the balance of an account",
        "get_send_status": "asking what became of a call",
        "make_call": "placing a canary call; of accounts that place some",
    },
    "outcome": {
        "ok": "a good answer",
        "auth": "the credentials, the caller's address or the account were refused",
        "not_found": "the provider does not know the call",
        "throttled": "too many requests per second",
        "api_error": "another error that the provider told",
        "bad_response": "an answer that cannot be read, or is about another call",
        "timeout": "no whole answer within `polling.timeout`",
        "connection": "no connection, or one that broke",
        "tls": "the certificate could not be verified, or the handshake failed",
        "http_error": "an HTTP status that is not one of success",
    },
    CALLBACK_OUTCOME: {
        "hint": "the call is asked for now",
        "accepted": "the call has finished by it",
        "watched": "nobody watched the call; now it is asked for",
        "ignored": "nobody watches the call",
        "repeated": "the call has finished before",
        "malformed": "it names no call",
        "forbidden": "it does not hold the account's token",
        "error": "it could not be stored; the provider sends it again",
    },
    NOTIFICATION_OUTCOME: {
        "delivered": "the target answered with a status of the 200s",
        "gave_up": "it was not delivered within `give_up_after`, or the target answered with the "
        "status 410",
    },
    POST_OUTCOME: {
        "ok": "a status of the 200s",
        "gone": "the status 410: the notification is given up",
        "throttled": "the status 429 or 503; `Retry-After` is respected, up to 15 minutes",
        "http_error": "any other status; redirects are not followed",
        "timeout": "no answer within the target's `timeout`",
        "connection": "no connection, or one that broke",
        "tls": "the certificate could not be verified, or the handshake failed",
        "bad_response": "an answer that is not HTTP",
        "forbidden": "the name of the target leads to a link-local or metadata address",
    },
    "kind": {
        "device": "an account's device and its entities",
        "state": "the state of all entities of an account, or whether anybody tells of them",
        "event": "a call that has finished",
    },
    MQTT_OUTCOME: {
        "published": "the broker has it",
        "failed": "the broker is not known to have it; it is sent again",
    },
    "reason": {
        "client_refused": "the client refused the server's certificate or parameters, and said so;"
        " the log tells why",
        "no_certificate": "the client has no certificate, and one is required",
        "bad_certificate": "the client's certificate could not be verified: its authority is not"
        " known, or it has expired",
        "not_allowed": "the client's certificate holds none of `client_allowed_sans`",
        "unsupported": "client and server have no version, cipher or curve in common",
        "not_tls": "the client did not speak TLS, but plain HTTP for example",
        "closed": "the client closed the connection before the end, as checks of the port do",
        "timeout": "the handshake took more than 10 s",
        "other": "anything else; the log tells what",
    },
    "code": {
        "100": "good",
        "99": "the number is blocked",
        "101": "the ApiKey or the SecretKey is wrong",
        "102": "there is no price list",
        "103": "the balance is too low",
        "104": "the call code or the template does not exist",
        "105": "the id is not found, or not yet",
        "106": "the recording does not exist",
        "108": "the phone number is malformed",
        "118": "the type is not supported",
        "124": "the RequestId was used before",
        "140": "the caller's IP address is not whitelisted",
        "143": "the account is not active, or locked",
        "160": "too many requests per second",
        "851": "the id is missing",
        "854": "no data was found",
        "other": "a code that is not documented",
    },
    "field": {
        "sent_result": "`SentResult`: whether the carrier delivered the call",
        "call_duration": "`CallDuration`: for how long it was answered; no duration is counted",
    },
}
