"""The entities of accounts, of their canaries and of the exporter, with their values. Pure.

Names are in English and Vietnamese. Keys are part of the ids of entities in Home Assistant: they
never change. Home Assistant shows `null` as unknown.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple

import exporter
from exporter.account import AccountStatus
from exporter.call_totals import MessageTotals
from exporter.calls import Result
from exporter.canaries.canaries import CanaryStatus
from exporter.esms.codes import Outcome
from exporter.recent_results import Recent

Platform = Literal["binary_sensor", "sensor", "event", "button"]

# Reasons of a pause that come from the provider's answers: the provider is reachable.
_REACHED: Final = frozenset({Outcome.AUTH, Outcome.THROTTLED})

_DIAGNOSTIC: Final = {"entity_category": "diagnostic"}
_PROBLEM: Final = {"device_class": "problem"}
_TIMESTAMP: Final = {"device_class": "timestamp"}
# For monetary values, Home Assistant has long-term statistics only as `total`.
_VND: Final = {"device_class": "monetary", "state_class": "total", "unit_of_measurement": "VND"}
_CALLS: Final = {"state_class": "measurement", "unit_of_measurement": "calls"}
# Counters of the current day: Home Assistant treats a decrease as a reset of the counter.
_CALLS_TODAY: Final = {"state_class": "total_increasing", "unit_of_measurement": "calls"}
# Not `total_increasing`: the totals decrease when label sets are evicted.
_MESSAGES: Final = {"state_class": "total", "unit_of_measurement": "messages"}

_POLLING: Final = {
    **_DIAGNOSTIC,
    "device_class": "enum",
    "options": ["active", *(outcome.value for outcome in Outcome)],
    "icon": "mdi:sync",
}
_FINISHED: Final = {
    "event_types": [result.value for result in Result],
    "icon": "mdi:phone-hangup",
}


class Names(NamedTuple):
    """The name of an entity, in each language of the configuration."""

    en: str
    vi: str


class Entity(NamedTuple):
    """An entity of a device."""

    key: str  # identifies it among the entities of the device
    platform: Platform
    names: Names
    # Options of the platform, as the documentation of the MQTT integration has them. Any: JSON.
    options: Mapping[str, Any]
    value: object = None  # the state of a sensor; True, False or None for a binary sensor
    attributes: Mapping[str, object] | None = None
    enabled: bool = True  # whether Home Assistant enables it when it is new
    topic: str = ""  # of presses or events, below that of the device


class AccountView(NamedTuple):
    """What Home Assistant shows of an account; the balance is in VND."""

    status: AccountStatus
    recent: Recent
    balance: float | None = None
    messages: MessageTotals | None = None
    canaries: Sequence[CanaryStatus] = ()


class ExporterView(NamedTuple):
    """What Home Assistant shows of the exporter, or of all that share a ledger."""

    not_ready: Sequence[str] = ()  # the reasons
    last_error: tuple[float, str] | None = None  # Unix time and name of the last error in the log
    pending: int = 0  # notifications
    # The accounts of each exporter; None if the ledger is not shared.
    holders: Mapping[str, Sequence[str]] | None = None


def account_entities(view: AccountView) -> list[Entity]:
    """Return the entities of an account, with those of its canaries."""
    status, recent, balance, messages, canaries = view
    authorized = status.authorized
    failure = next(iter(recent.failures), None)
    entities = [
        Entity(
            "credentials",
            "binary_sensor",
            Names("Credentials", "Xác thực"),
            {**_DIAGNOSTIC, **_PROBLEM},
            None if authorized is None else not authorized,
        ),
        Entity(
            "connectivity",
            "binary_sensor",
            Names("Provider", "Nhà cung cấp"),
            {**_DIAGNOSTIC, "device_class": "connectivity"},
            _reached(status),
        ),
        Entity(
            "polling",
            "sensor",
            Names("Polling", "Truy vấn"),
            _POLLING,
            status.paused or "active",
            {"code": status.code, "until": _time(status.paused_until or 0.0)},
        ),
        Entity(
            "success_ratio",
            "sensor",
            Names("Success ratio of the last hour", "Tỷ lệ thành công một giờ qua"),
            {
                "state_class": "measurement",
                "unit_of_measurement": "%",
                "suggested_display_precision": 1,
                "icon": "mdi:percent",
            },
            _success_ratio(recent),
        ),
        Entity(
            "watched",
            "sensor",
            Names("Calls watched", "Cuộc gọi đang theo dõi"),
            {**_CALLS, "icon": "mdi:phone-clock"},
            sum(status.watched.values()),
            enabled=False,  # changes with every poll
        ),
        Entity(
            "success_today",
            "sensor",
            Names("Calls delivered today", "Cuộc gọi thành công hôm nay"),
            {**_CALLS_TODAY, "icon": "mdi:phone-check"},
            _today(recent, Result.SUCCESS),
        ),
        Entity(
            "failure_today",
            "sensor",
            Names("Calls failed today", "Cuộc gọi thất bại hôm nay"),
            {**_CALLS_TODAY, "icon": "mdi:phone-remove"},
            _today(recent, Result.FAILURE),
        ),
        Entity(
            "unknown_today",
            "sensor",
            Names("Calls without a result today", "Cuộc gọi không rõ kết quả hôm nay"),
            {**_CALLS_TODAY, "icon": "mdi:phone-alert"},
            _today(recent, Result.UNKNOWN),
        ),
        Entity(
            "last_failure",
            "sensor",
            Names("Last failure", "Thất bại gần nhất"),
            _TIMESTAMP,
            failure and _time(failure.finished_at),
            {
                "reference_id": failure.reference_id,
                "kind": failure.kind,
                "result": failure.result,
                "status": failure.status,
            }
            if failure
            else {},
        ),
        Entity(
            "finished",
            "event",
            Names("Call finished", "Cuộc gọi kết thúc"),
            _FINISHED,
            topic="finished",
        ),
    ]
    if messages is not None:
        entities += [
            Entity(
                "messages_watched",
                "sensor",
                Names("Messages watched", "Tin nhắn đang theo dõi"),
                {**_MESSAGES, "state_class": "measurement", "icon": "mdi:message-processing"},
                sum(status.messages.values()),
                enabled=False,  # changes with every poll
            ),
            Entity(
                "messages_delivered",
                "sensor",
                Names("Messages delivered", "Tin nhắn đến người nhận"),
                {**_MESSAGES, "icon": "mdi:message-check"},
                messages.delivered,
            ),
            Entity(
                "messages_failed",
                "sensor",
                Names("Messages failed", "Tin nhắn thất bại"),
                {**_MESSAGES, "icon": "mdi:message-alert"},
                messages.failed,
            ),
            Entity(
                "messages_price",
                "sensor",
                Names("Spent on messages", "Chi phí tin nhắn"),
                _VND,
                messages.price,
            ),
        ]
    if balance is not None:
        entities.append(Entity("balance", "sensor", Names("Balance", "Số dư"), _VND, balance))
    return [*entities, *(entity for canary in canaries for entity in _canary(canary))]


def _canary(canary: CanaryStatus) -> tuple[Entity, ...]:
    name, numbers, due = canary
    level = topic_level(name)
    return (
        Entity(
            f"canary_{level}",
            "binary_sensor",
            Names(f"Canary {name}", f"Canary {name}"),
            _PROBLEM,
            not numbers.success if any(numbers.runs.values()) else None,
            {
                "result": numbers.result,
                "started_at": _time(numbers.started_at),
                "last_success": _time(numbers.last_success),
                "next_due": _time(due),
            },
        ),
        Entity(
            f"place_canary_{level}",
            "button",
            Names(f"Place canary call {name}", f"Gọi canary {name} ngay"),
            {"icon": "mdi:phone-outgoing"},
            topic=f"place/{level}",
        ),
    )


def exporter_entities(view: ExporterView) -> list[Entity]:
    error_at, error = view.last_error or (0.0, None)
    entities = [
        Entity(
            "ready",
            "binary_sensor",
            Names("Ready", "Sẵn sàng"),
            {**_DIAGNOSTIC, "device_class": "running"},
            not view.not_ready,
            {"reasons": view.not_ready},
        ),
        Entity(
            "version",
            "sensor",
            Names("Version", "Phiên bản"),
            {**_DIAGNOSTIC, "icon": "mdi:tag"},
            exporter.__version__,
        ),
        Entity(
            "last_error",
            "sensor",
            Names("Last error", "Lỗi gần nhất"),
            {**_DIAGNOSTIC, **_TIMESTAMP},
            _time(error_at),
            {"event": error},
        ),
        Entity(
            "notifications_pending",
            "sensor",
            Names("Notifications pending", "Thông báo chờ gửi"),
            {
                **_DIAGNOSTIC,
                "state_class": "measurement",
                "unit_of_measurement": "notifications",
                "icon": "mdi:tray-full",
            },
            view.pending,
        ),
        Entity(
            "reload",
            "button",
            Names("Reload configuration", "Nạp lại cấu hình"),
            {"entity_category": "config", "icon": "mdi:reload"},
            topic="reload",
        ),
    ]
    if view.holders is not None:
        exporters = Entity(
            "exporters",
            "sensor",
            Names("Exporters", "Số exporter"),
            {**_DIAGNOSTIC, "state_class": "measurement", "icon": "mdi:server"},
            sum(bool(name) for name in view.holders),
            {"accounts": view.holders},
        )
        entities.append(exporters)
    return entities


def topic_level(name: str) -> str:
    """Return the topic level of an account or a canary.

    Home Assistant allows letters, digits, `_` and `-`; names may also contain dots.
    """
    if "." not in name:
        return name
    suffix = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name.replace('.', '_')}-{suffix}"


def _today(recent: Recent, result: Result) -> int:
    """Return the number of today's calls with a result; messages have no status."""
    return sum(
        count for (ended, status), count in recent.today.items() if ended == result and status
    )


def _success_ratio(recent: Recent) -> float | None:
    success = sum(minute.success for minute in recent.minutes)
    # Without unknown results, as in the alerts: they do not show how calls ended.
    known = success + sum(minute.failure for minute in recent.minutes)
    return round(100 * success / known, 2) if known else None


def _reached(status: AccountStatus) -> bool | None:
    if status.paused is not None:
        return status.paused in _REACHED
    return True if status.authorized is not None or status.last_success else None


def _time(at: float) -> str | None:
    if not at or math.isinf(at):
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
