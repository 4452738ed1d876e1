"""What log events mean and what to do, in words."""

from __future__ import annotations

from typing import Final

# By event. `make docs` fails where one is missing, or is not logged any more.
MEANINGS: Final[dict[str, str]] = {
    # error
    "accepting connections failed": "The process has too many open files. Raise its limit, or find"
    " the clients that open many connections.",
    "configuration reload failed": "The last valid configuration stays in use. Correct the"
    " `problems`; the file is read again when it changes.",
    "lease renewal failed": "The database that exporters share cannot be used. Check the database"
    " and the network; see [scaling](scaling.md).",
    "ledger flush timed out": "At shutdown, the last results were not stored in time. Nothing is"
    " lost: the calls are polled again after the next start.",
    "ledger write failed": "Results cannot be stored, and no call is counted. Follow the runbook"
    " [EsmsLedgerErrors](runbooks/EsmsLedgerErrors.md).",
    "log lines dropped": "Standard error was blocked or failed. Check the program that reads the"
    " log, and the disk.",
    "uncaught exception": "Report this defect with `error` and `frames`.",
    "web configuration reload failed": "The last valid web configuration stays in use. Correct the"
    " `problems` of the file, or of the certificates that it names.",
    # warning
    "TLS certificate needs renewal": "The certificate of the web server has expired or expires"
    " soon. Renew it; the new file is read within 2 s.",
    "TLS handshake failed": "A client could not connect. Its [reason](metrics.md#reason) says"
    " which side to correct; logged once a minute for each reason.",
    "MQTT connection failed": "Home Assistant receives nothing. Check the broker, its address and"
    " its password; the exporter connects again by itself.",
    "account paused": "Polling of the account stops for `seconds`. See"
    " [troubleshooting](troubleshooting.md) for the `reason`.",
    "unknown result code": "The provider answered with an undocumented code. The calls are polled"
    " again, with back-off. If the code means something else, set its class in `codes` of the"
    " account. Logged once for each code.",
    "balance request failed": "The balance is unknown, and polling continues. See"
    " [balance](balance.md).",
    "canary call accepted too late": "The run had ended before the provider accepted the call. Its"
    " result does not change.",
    "canary call ended": "A canary call has a `result`; see"
    " [the values](metrics.md#result-of-canary-calls). If they are known, the fields `status`,"
    " `code`, `message` and `seconds` follow. Every result except `success` is a warning.",
    "button press ignored": "A press of a button in Home Assistant was retained, late, repeated or"
    " malformed. If it is late, synchronize the clocks; logged once a minute.",
    "canary call not placed": "With the `reason` `max_per_day`, raise the limit if you need more"
    " calls. With `account_busy`, the account was paused when a button was pressed, or its rate"
    " limit left no request for the call within 30 s.",
    "canary call not started": "The ledger could not record the call, so it was not placed. The"
    " exporter tries again; see `ledger write failed`.",
    "canary calls missed": "No exporter placed the calls in time. Check whether exporters ran, and"
    " whether the account was paused.",
    "clock differs from database server": "The exporter uses the time of the database server."
    " Synchronize the clocks of both machines.",
    "clock jump detected": "The system clock was changed by `seconds`. The ages of calls"
    " are not affected. If it repeats, check time synchronization.",
    "configured calls exceed watch.max_calls": "Some calls of `watch.calls` are not watched. Raise"
    " `watch.max_calls`, or wait until other calls finish.",
    "delivery results not recorded": "At shutdown, deliveries could not be recorded. Some"
    " notifications are sent again after the next start.",
    "lease lost": "Another exporter has taken over the account. If it repeats, see"
    " [EsmsReplicaEvicted](runbooks/EsmsReplicaEvicted.md).",
    "leases expired": "This exporter was blocked or disconnected for too long, and others may take"
    " its accounts. See [EsmsReplicaEvicted](runbooks/EsmsReplicaEvicted.md).",
    "leases not released": "At shutdown, the leases could not be released. Other exporters take the"
    " accounts when the leases expire.",
    "ledger may be incomplete": "The ledger was copied without its `-wal` file, or beside an old"
    " one. See [backup](backup.md#warnings-at-the-start).",
    "library message": "A library logged a warning or an error. Its text is left out, because it"
    " may contain a URL. Report it if it repeats.",
    "metrics collection failed": "Some metrics are missing from the scrape. Report this defect"
    " with `collector` and `kind`.",
    "missing ledger file recreated": "The ledger file was deleted while it was in use. Nothing is"
    " lost; find out what deleted it.",
    "notification failed": "The target did not accept a notification, which is sent again; logged"
    " once a minute. Check the target.",
    "notifications given up": "The notifications were not delivered within `give_up_after`, or the"
    " target answered 410. They can be sent again by hand: see"
    " [EsmsNotificationsLost](runbooks/EsmsNotificationsLost.md).",
    "notifications of removed targets given up": "Notifications of targets that are not configured"
    " any more have expired. No action is needed if the targets were removed on purpose.",
    "pruning of old calls failed": "Finished calls stay in the ledger for longer. The exporter"
    " tries again; see `ledger write failed`.",
    "secret file is world-readable": "Every user of the machine can read the secret. Run `chmod"
    " o-r` on the file.",
    "source problem": "A source of calls failed, or some of its calls were refused. Correct the"
    " `problem`; see [troubleshooting](troubleshooting.md).",
    "systemd notification failed": "systemd does not receive the state of the exporter. Check"
    " `NOTIFY_SOCKET` and the unit's sandbox.",
    "target paused": "The target failed several times in a row; only single notifications are tried"
    " until it works. Check the target.",
    "unexpected value in answer": "A finished call has a `field` with no usable value. Ask the"
    " provider what the value means.",
    # info
    "MQTT connection established": "Accounts and calls are published to Home Assistant.",
    "accepting connections recovered": "New connections are accepted again.",
    "account resumed": "The account is polled again.",
    "balance requests recovered": "The balance is known again.",
    "call file removed": "A file of `watch.files` was deleted, and its open calls are no longer"
    " watched. No action is needed if it was deleted on purpose.",
    "button pressed": "A button was pressed in Home Assistant; `topic` identifies it.",
    "canary call accepted": "The provider has accepted a canary call.",
    "canary call delayed": "The account cannot place the call now. It is tried again for as long as"
    " the schedule allows.",
    "configuration reloaded": "The new configuration is in use.",
    "lease renewal recovered": "The shared database can be used again.",
    "ledger writes recovered": "Results are stored again.",
    "listening": "The web server accepts connections at `addresses`.",
    "ready": "The start is complete, and calls are polled.",
    "source recovered": "The source, or the `item` of it, works again.",
    "stopped": "The process ends.",
    "stopping": "The exporter received a signal to stop. It completes open requests and writes.",
    "target resumed": "Notifications are delivered to the target again.",
    "web configuration reloaded": "The new web configuration is in use.",
    # debug
    "call file read": "A file of `watch.files` was read.",
    "call updated": "The state or the result of a call was stored.",
    "connection setup failed": "A client disconnected before its connection was set up.",
}
