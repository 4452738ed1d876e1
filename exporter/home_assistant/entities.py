"""The entities of accounts, of their canaries and of the exporter: one table for each. Pure.

Names are in English and Vietnamese. Keys are part of the ids of entities in Home Assistant: they
never change. Home Assistant shows `null` as unknown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Generic, Literal, NamedTuple, TypeVar

import exporter
from exporter.account import AccountStatus
from exporter.call_totals import MessageTotals
from exporter.calls import Result
from exporter.canaries.canaries import CanaryNumbers
from exporter.esms.codes import Outcome
from exporter.recent_results import Recent

V = TypeVar("V")

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


class Names(NamedTuple):
    """The name of an entity, in each language of the configuration."""

    en: str
    vi: str


@dataclass(frozen=True, slots=True)
class Entity(Generic[V]):
    """An entity of a device that shows a view `V`.

    Attributes:
        key: identifies it among the entities of the device.
        options: options of the platform, as the documentation of the MQTT integration has them.
        value: its state; without it, the entity has none.
        attributes: its attributes.
        exists: whether the device has it.
        enabled: whether Home Assistant enables it when it is new.
        topic: the topic of presses or events, below that of the device.
    """

    key: str
    platform: Platform
    names: Names
    options: Mapping[str, Any] = field(default_factory=dict)  # Any: JSON
    value: Callable[[V], object] | None = None
    attributes: Callable[[V], Mapping[str, object]] | None = None
    exists: Callable[[V], bool] = lambda _: True
    enabled: bool = True
    topic: str = ""


class CanaryView(NamedTuple):
    """A canary, and when its next call is due (Unix time)."""

    name: str
    level: str  # the name as a level of topics
    numbers: CanaryNumbers
    due: float


class AccountView(NamedTuple):
    """What Home Assistant shows of an account; the balance is in VND."""

    status: AccountStatus
    recent: Recent
    balance: float | None = None
    messages: MessageTotals | None = None
    canaries: Sequence[CanaryView] = ()


class ExporterView(NamedTuple):
    """What Home Assistant shows of the exporter, or of all that share a ledger.

    Attributes:
        not_ready: the reasons why it is not ready.
        last_error: time (Unix time) and name of the last error in the log, if any.
        pending: number of pending notifications.
        holders: the accounts of each exporter; None if the ledger is not shared.
    """

    not_ready: Sequence[str] = ()
    last_error: tuple[float, str] | None = None
    pending: int = 0
    holders: Mapping[str, Sequence[str]] | None = None


def _today(result: Result) -> Callable[[AccountView], int]:
    return lambda view: sum(
        count for (ended, status), count in view.recent.today.items() if ended is result and status
    )


_ACCOUNT: Final[tuple[Entity[AccountView], ...]] = (
    Entity(
        "credentials",
        "binary_sensor",
        Names("Credentials", "Xác thực"),
        {**_DIAGNOSTIC, **_PROBLEM},
        value=lambda view: _switch(_not(view.status.authorized)),
    ),
    Entity(
        "connectivity",
        "binary_sensor",
        Names("Provider", "Nhà cung cấp"),
        {**_DIAGNOSTIC, "device_class": "connectivity"},
        value=lambda view: _switch(_reached(view.status)),
    ),
    Entity(
        "polling",
        "sensor",
        Names("Polling", "Truy vấn"),
        {
            **_DIAGNOSTIC,
            "device_class": "enum",
            "options": ["active", *(outcome.value for outcome in Outcome)],
            "icon": "mdi:sync",
        },
        value=lambda view: view.status.paused or "active",
        attributes=lambda view: {
            "code": view.status.code,
            "until": _time(view.status.paused_until or 0.0),
        },
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
        value=lambda view: _success_ratio(view.recent),
    ),
    Entity(
        "watched",
        "sensor",
        Names("Calls watched", "Cuộc gọi đang theo dõi"),
        {**_CALLS, "icon": "mdi:phone-clock"},
        value=lambda view: sum(view.status.watched.values()),
        enabled=False,  # changes with every poll
    ),
    Entity(
        "success_today",
        "sensor",
        Names("Calls delivered today", "Cuộc gọi thành công hôm nay"),
        {**_CALLS_TODAY, "icon": "mdi:phone-check"},
        value=_today(Result.SUCCESS),
    ),
    Entity(
        "failure_today",
        "sensor",
        Names("Calls failed today", "Cuộc gọi thất bại hôm nay"),
        {**_CALLS_TODAY, "icon": "mdi:phone-remove"},
        value=_today(Result.FAILURE),
    ),
    Entity(
        "unknown_today",
        "sensor",
        Names("Calls without a result today", "Cuộc gọi không rõ kết quả hôm nay"),
        {**_CALLS_TODAY, "icon": "mdi:phone-alert"},
        value=_today(Result.UNKNOWN),
    ),
    Entity(
        "messages_watched",
        "sensor",
        Names("Messages watched", "Tin nhắn đang theo dõi"),
        {**_MESSAGES, "state_class": "measurement", "icon": "mdi:message-processing"},
        value=lambda view: sum(view.status.messages.values()),
        exists=lambda view: view.messages is not None,
        enabled=False,  # changes with every poll
    ),
    Entity(
        "messages_delivered",
        "sensor",
        Names("Messages delivered", "Tin nhắn đến người nhận"),
        {**_MESSAGES, "icon": "mdi:message-check"},
        value=lambda view: view.messages and view.messages.delivered,
        exists=lambda view: view.messages is not None,
    ),
    Entity(
        "messages_failed",
        "sensor",
        Names("Messages failed", "Tin nhắn thất bại"),
        {**_MESSAGES, "icon": "mdi:message-alert"},
        value=lambda view: view.messages and view.messages.failed,
        exists=lambda view: view.messages is not None,
    ),
    Entity(
        "messages_price",
        "sensor",
        Names("Spent on messages", "Chi phí tin nhắn"),
        _VND,
        value=lambda view: view.messages and view.messages.price,
        exists=lambda view: view.messages is not None,
    ),
    Entity(
        "last_failure",
        "sensor",
        Names("Last failure", "Thất bại gần nhất"),
        _TIMESTAMP,
        value=lambda view: next((_time(one.finished_at) for one in view.recent.failures), None),
        attributes=lambda view: next(
            (
                {
                    "reference_id": failure.reference_id,
                    "kind": failure.kind.value,
                    "result": failure.result.value,
                    "status": failure.status.value,
                }
                for failure in view.recent.failures
            ),
            {},
        ),
    ),
    Entity(
        "balance",
        "sensor",
        Names("Balance", "Số dư"),
        _VND,
        value=lambda view: view.balance,
        exists=lambda view: view.balance is not None,
    ),
    Entity(
        "finished",
        "event",
        Names("Call finished", "Cuộc gọi kết thúc"),
        {"event_types": [result.value for result in Result], "icon": "mdi:phone-hangup"},
        topic="finished",
    ),
)

EXPORTER: Final[tuple[Entity[ExporterView], ...]] = (
    Entity(
        "ready",
        "binary_sensor",
        Names("Ready", "Sẵn sàng"),
        {**_DIAGNOSTIC, "device_class": "running"},
        value=lambda view: _switch(not view.not_ready),
        attributes=lambda view: {"reasons": list(view.not_ready)},
    ),
    Entity(
        "version",
        "sensor",
        Names("Version", "Phiên bản"),
        {**_DIAGNOSTIC, "icon": "mdi:tag"},
        value=lambda _: exporter.__version__,
    ),
    Entity(
        "last_error",
        "sensor",
        Names("Last error", "Lỗi gần nhất"),
        {**_DIAGNOSTIC, **_TIMESTAMP},
        value=lambda view: view.last_error and _time(view.last_error[0]),
        attributes=lambda view: {"event": view.last_error and view.last_error[1]},
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
        value=lambda view: view.pending,
    ),
    Entity(
        "exporters",
        "sensor",
        Names("Exporters", "Số exporter"),
        {**_DIAGNOSTIC, "state_class": "measurement", "icon": "mdi:server"},
        value=lambda view: sum(bool(name) for name in view.holders or ()),
        attributes=lambda view: {"accounts": view.holders or {}},
        exists=lambda view: view.holders is not None,
    ),
    Entity(
        "reload",
        "button",
        Names("Reload configuration", "Nạp lại cấu hình"),
        {"entity_category": "config", "icon": "mdi:reload"},
        topic="reload",
    ),
)


def account_entities(view: AccountView) -> list[Entity[AccountView]]:
    """Return the entities of an account, with those of its canaries."""
    return [*_ACCOUNT, *(entity for canary in view.canaries for entity in _canary(canary))]


def _canary(canary: CanaryView) -> tuple[Entity[AccountView], ...]:
    name, level, numbers, due = canary
    failed = not numbers.success if any(numbers.runs.values()) else None
    about = {
        "result": numbers.result and numbers.result.value,
        "started_at": _time(numbers.started_at),
        "last_success": _time(numbers.last_success),
        "next_due": _time(due),
    }
    return (
        Entity(
            f"canary_{level}",
            "binary_sensor",
            Names(f"Canary {name}", f"Canary {name}"),
            _PROBLEM,
            value=lambda _: _switch(failed),
            attributes=lambda _: about,
        ),
        Entity(
            f"place_canary_{level}",
            "button",
            Names(f"Place canary call {name}", f"Gọi canary {name} ngay"),
            {"icon": "mdi:phone-outgoing"},
            topic=f"place/{level}",
        ),
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


def _not(value: bool | None) -> bool | None:  # noqa: FBT001 - a value, not an option
    return None if value is None else not value


def _switch(on: bool | None) -> str | None:  # noqa: FBT001 - a value, not an option
    return None if on is None else "ON" if on else "OFF"


def _time(at: float) -> str | None:
    if not at or math.isinf(at):
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
