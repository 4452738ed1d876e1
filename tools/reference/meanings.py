"""The meanings of label values."""

from __future__ import annotations

from typing import Final

USER_LABEL: Final = "LABELS"
"""Stands for the user's labels."""

OPEN_LABELS: Final = {
    "account": "the `name` of an account in the configuration.",
    "reference_id": "the id of a call or message, as its source wrote it; only in exemplars.",
    "source": "a source of calls: `config`, `files`, `api`, `callback`, or `sql:NAME` for an "
    "entry of `watch.sql`. Only configured sources have series.",
    "target": "the `name` of a target of notifications in the configuration, or `Home Assistant`.",
    "canary": "the `name` of an entry of `canaries`.",
    "version": "the exporter's version.",
    "python_version": "the version of Python.",
}
"""Labels with values from the configuration or the environment."""

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
"""Metrics whose labels have their own values, and the heading that explains these."""

# By label and value. `make docs` fails where one is missing, or has no series any more.
MEANINGS: Final[dict[str, dict[str, str]]] = {
    "result": {
        "success": "the carrier delivered the call, whether the callee answered or not",
        "failure": "the carrier did not deliver the call, or the provider rejected it",
        "unknown": "the provider reported no result",
    },
    "status": {
        "answered": "the callee answered",
        "no_answer": "the phone rang and was not answered",
        "busy": "the line was busy",
        "failed": "the carrier could not connect the call",
        "none": "the provider reported nothing about the callee",
        "other": "the provider reported a value that this version does not know",
        "rejected": "the provider rejected the call; it was not placed",
        "not_found": "the provider did not find the call for `polling.not_found_grace`",
        "expired": "the call did not finish within `polling.give_up_after`",
    },
    "key": {**_KEYS, "star": "the key *", "hash": "the key #", "other": "anything else"},
    "state": {
        "new": "not polled yet, or no good answer yet",
        "awaiting_approval": "the provider has not approved the call yet (`SendStatus` 1)",
        "queued": "the call is waiting to be placed (`SendStatus` 2)",
        "awaiting_report": "the call was placed; the carrier has not reported yet (`SendStatus` 7)",
        "unknown": "the provider answers with an undocumented state",
        "not_found": "the provider does not find the call, or does not find it yet",
    },
    CANARY_RESULT: {
        "success": "the call finished as expected",
        "failure": "the call finished differently: not answered, rejected, or with another key",
        "late": "the call was placed, but did not finish within the time `within`",
        "refused": "the provider refused to place the call, with a result code",
        "unreachable": "the connection to the provider failed, so the call was not placed",
        "unsure": "it is not known whether the call was placed: the answer was lost, or the"
        " exporter was killed; it is not placed again",
        "missed": "the call was not placed in time: no exporter was running, the ledger could not"
        " be written, or the account was paused",
        "limited": "`max_per_day` was reached",
    },
    "stage": {
        "accepted": "from the request to place the call until the provider accepted it",
        "finished": "from the acceptance to the poll or callback that reported the end of the call",
    },
    "operation": {
        "get_balance": "request the balance of an account",
        "get_send_status": "poll a call",
        "get_message_status": "poll a message; only for accounts with messages",
        "make_call": "place a canary call; only for accounts with canaries",
    },
    "outcome": {
        "ok": "a good answer",
        "auth": "the credentials, the IP address or the account were refused",
        "not_found": "the provider does not find the call",
        "throttled": "too many requests per second",
        "api_error": "another error code of the provider",
        "bad_response": "an unreadable answer, or an answer about another call",
        "timeout": "no complete answer within `polling.timeout`",
        "connection": "no connection, or a broken connection",
        "tls": "the certificate could not be verified, or the handshake failed",
        "http_error": "an HTTP status other than success",
    },
    CALLBACK_OUTCOME: {
        "hint": "the call is polled at once",
        "accepted": "the callback finished the call",
        "watched": "the call was unknown; it is added and polled at once",
        "ignored": "the call is not watched",
        "repeated": "the call had finished before",
        "malformed": "the callback names no call",
        "forbidden": "the token is not the account's token",
        "error": "the callback could not be stored; the provider sends it again",
    },
    NOTIFICATION_OUTCOME: {
        "delivered": "the target answered with a 2xx status",
        "gave_up": "not delivered within `give_up_after`, or the target answered with status 410",
    },
    POST_OUTCOME: {
        "ok": "a 2xx status",
        "gone": "status 410: the notification is given up",
        "throttled": "status 429 or 503; `Retry-After` is respected, up to 15 minutes",
        "http_error": "any other status; redirects are not followed",
        "timeout": "no answer within the target's `timeout`",
        "connection": "no connection, or a broken connection",
        "tls": "the certificate could not be verified, or the handshake failed",
        "bad_response": "an answer that is not HTTP",
        "forbidden": "the host name of the target resolves to a link-local or metadata address",
    },
    "kind": {
        "device": "the device of an account or of the exporter, with its entities",
        "state": "the state of all entities of an account, or the availability of the exporter",
        "event": "a finished call",
    },
    MQTT_OUTCOME: {
        "published": "the broker has acknowledged the message",
        "failed": "the broker has not acknowledged the message; it is sent again",
    },
    "reason": {
        "client_refused": "the client refused the certificate or the parameters of the server, with"
        " a TLS alert; the log shows the reason",
        "no_certificate": "the client sent no certificate, and one is required",
        "bad_certificate": "the certificate of the client could not be verified: its authority is"
        " unknown, or it has expired",
        "not_allowed": "the certificate of the client matches none of `client_allowed_sans`",
        "unsupported": "client and server have no common version, cipher or curve",
        "not_tls": "the client does not use TLS, but for example plain HTTP",
        "closed": "the client closed the connection early, as port checks do",
        "timeout": "the handshake took more than 10 s",
        "other": "anything else; the log shows the reason",
    },
    "code": {
        "100": "success",
        "99": "the number is blocked",
        "101": "the ApiKey or the SecretKey is wrong",
        "102": "there is no price list",
        "103": "the balance is too low",
        "104": "the call code or the template does not exist",
        "105": "the id is not found, or is not found yet",
        "106": "the recording does not exist",
        "108": "the phone number is malformed",
        "118": "the type is not supported",
        "124": "the RequestId was used before",
        "140": "the IP address is not whitelisted",
        "143": "the account is not active, or is locked",
        "160": "too many requests per second",
        "851": "the id is missing",
        "854": "no data was found",
        "other": "an undocumented code",
    },
    "field": {
        "sent_result": "`SentResult`: whether the carrier delivered the call",
        "call_duration": "`CallDuration`: the duration of the call; an invalid one is not counted",
        "send_success": "`SendSuccess` and `SendFailed`: the numbers of receivers of a message;"
        " without valid ones, all receivers count as failed",
    },
}
