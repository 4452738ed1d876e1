"""Devices and states as Home Assistant gets them, against what its documentation accepts."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

import exporter
from exporter.account import AccountStatus
from exporter.call_totals import MessageTotals
from exporter.calls import CallState, Result, Status
from exporter.canaries.canaries import CanaryNumbers, CanaryStatus
from exporter.esms.codes import Outcome
from exporter.home_assistant.entities import (
    AccountView,
    ExporterView,
    account_entities,
    exporter_entities,
    topic_level,
)
from exporter.home_assistant.payloads import (
    Descriptions,
    Topics,
    device,
    press_time,
    removal,
    state,
)
from exporter.ledger.canary_runs import CanaryResult
from exporter.ledger.types import FinishedCall
from exporter.recent_results import Minute, Recent

TOPICS = Topics("homeassistant", "voice/one")
COMMON = Descriptions(TOPICS.availability, home_page="https://example.com/esms")

# From the documentation of the MQTT integration: what each platform takes.
EVERYWHERE = {
    *("platform", "name", "unique_id", "default_entity_id", "icon", "entity_category"),
    *("device_class", "enabled_by_default"),
}
STATES = {"value_template", "json_attributes_topic", "json_attributes_template"}
TAKES = {
    "binary_sensor": EVERYWHERE | STATES,
    "sensor": EVERYWHERE
    | STATES
    | {"state_class", "unit_of_measurement", "suggested_display_precision", "options"},
    "event": EVERYWHERE | {"state_topic", "event_types"},
    "button": EVERYWHERE | {"command_topic", "command_template", "qos"},
}
DEVICE_CLASSES = {
    "binary_sensor": {"problem", "connectivity", "running"},
    "sensor": {"timestamp", "monetary", "enum"},
    "event": set[str](),
    "button": set[str](),
}
STATE_CLASSES = {"measurement", "total", "total_increasing"}

STATUS = AccountStatus("main", None, {CallState.NEW: 3}, 0, 0.0, None, None)
NEVER = CanaryNumbers("main", success=False, last_success=0.0, stages={}, runs={})
LATE = CanaryNumbers(
    *("main", False, 1.0, {}, {CanaryResult.LATE: 1}, 1_700_000_000.0, CanaryResult.LATE)
)
PLAIN = AccountView(STATUS, Recent())
FULL = AccountView(
    STATUS,
    Recent(),
    1_500.5,
    MessageTotals(100, 69, 42.0),
    (
        CanaryStatus("hot.line", LATE, math.inf),
        CanaryStatus("b", NEVER, 1.0),
    ),
)


def described(view: AccountView = FULL, common: Descriptions = COMMON) -> Any:  # Any: JSON
    return json.loads(device(TOPICS.account("main"), account_entities(view), common))


def exporter_described(view: ExporterView) -> Any:  # Any: JSON
    return json.loads(device(TOPICS.exporter, exporter_entities(view), COMMON))


def published_state(view: AccountView) -> Any:  # Any: JSON
    return json.loads(state(account_entities(view)))


def test_a_device_is_described_as_documented() -> None:
    found = described()
    assert found.keys() == {
        *("device", "origin", "components", "state_topic", "availability_topic", "qos")
    }
    assert found["origin"] == {
        "name": "esms-exporter",
        "sw_version": exporter.__version__,
        "support_url": "https://example.com/esms",
    }
    assert found["device"] == {
        "identifiers": ["voice_one_main"],
        "name": "eSMS main",
        "manufacturer": "eSMS",
        "model": "Account",
        "sw_version": exporter.__version__,
        "via_device": "voice_one",
    }
    assert found["state_topic"] == "voice/one/main/state"
    assert found["availability_topic"] == "voice/one/availability"
    page = COMMON._replace(status_page="https://example.com/")
    assert described(common=page)["device"]["configuration_url"] == "https://example.com/"
    bridge = exporter_described(ExporterView())
    assert bridge["device"]["identifiers"] == [found["device"]["via_device"]]
    assert "via_device" not in bridge["device"]


def test_topics_are_as_home_assistant_takes_them_apart() -> None:
    pattern = r"homeassistant/(\w+)/(?:([a-zA-Z0-9_-]+)/)?([a-zA-Z0-9_-]+)/config"
    topics = [TOPICS.account("main").config, TOPICS.exporter.config]
    parts = [(found := re.fullmatch(pattern, topic)) and found.groups() for topic in topics]
    assert parts == [("device", "voice_one", "main"), ("device", None, "voice_one")]


ENTITIES = [
    *(("voice_one_main", key, entity) for key, entity in described()["components"].items()),
    *(
        ("voice_one", key, entity)
        for key, entity in exporter_described(ExporterView(holders={}))["components"].items()
    ),
]


@pytest.mark.parametrize(("unique", "key", "entity"), ENTITIES)
def test_an_entity_is_described_as_documented(unique: str, key: str, entity: Any) -> None:
    platform = entity["platform"]
    assert entity.keys() <= TAKES[platform]
    assert entity["unique_id"] == f"{unique}_{key}"
    assert re.fullmatch(
        f"{platform}\\.esms_(main|exporter)_[a-z0-9_]+", entity["default_entity_id"]
    )
    assert not entity["name"].startswith("eSMS"), "Home Assistant puts the device's name before it"
    assert entity.get("device_class") in DEVICE_CLASSES[platform] | {None}
    assert entity.get("state_class") in STATE_CLASSES | {None}
    assert ("json_attributes_topic" in entity) == ("json_attributes_template" in entity)
    if entity.get("device_class") == "monetary":
        assert entity["state_class"] == "total"  # none but this is taken
    if entity.get("device_class") in {"timestamp", "enum"}:
        assert not {"state_class", "unit_of_measurement"} & entity.keys()
    assert (entity.get("device_class") == "enum") == ("options" in entity)
    if platform == "button":
        assert entity["command_topic"].startswith(("voice/one/main/place/", "voice/one/reload"))
    elif platform != "event":
        assert entity["value_template"] == f"{{{{ value_json['{key}'] | default(none) }}}}"


def test_entities_are_told_apart() -> None:
    for what in ("unique_id", "default_entity_id"):
        found = [entity[what] for _, _, entity in ENTITIES]
        assert len(set(found)) == len(found)


# Home Assistant knows entities by these ids; the ids of entities are those of the first version.
KEPT = {
    "binary_sensor.esms_main_credentials": "credentials",
    "binary_sensor.esms_main_provider": "connectivity",
    "sensor.esms_main_success_ratio_of_the_last_hour": "success_ratio",
    "sensor.esms_main_calls_watched": "watched",
    "sensor.esms_main_calls_delivered_today": "success_today",
    "sensor.esms_main_calls_failed_today": "failure_today",
    "sensor.esms_main_calls_without_a_result_today": "unknown_today",
    "sensor.esms_main_last_failure": "last_failure",
    "sensor.esms_main_balance": "balance",
    "event.esms_main_call_finished": "finished",
}


@pytest.mark.parametrize("language", ["en", "vi"])
def test_ids_stay_whatever_the_language(language: Any) -> None:
    found = described(common=COMMON._replace(language=language))["components"]
    ids = {entity["default_entity_id"]: key for key, entity in found.items()}
    assert KEPT.items() <= ids.items()
    assert len(ids) == len(found)


def test_names_are_in_the_language_of_the_configuration() -> None:
    english, vietnamese = (
        described(common=COMMON._replace(language=language))["components"]
        for language in ("en", "vi")
    )
    assert english.keys() == vietnamese.keys()
    same = [key for key in english if english[key]["name"] == vietnamese[key]["name"]]
    assert all(key.startswith("canary_") for key in same)
    assert vietnamese["balance"]["name"] == "Số dư"


def test_what_may_change_every_second_is_not_enabled_by_default() -> None:
    off = {key for _, key, entity in ENTITIES if entity.get("enabled_by_default") is False}
    assert off == {"watched", "messages_watched"}


def test_the_state_has_what_entities_ask_for() -> None:
    def asked(entities: Any) -> set[str]:
        with_state = {k: e for k, e in entities.items() if "value_template" in e}
        about = {
            f"{key}_attributes" for key, e in with_state.items() if "json_attributes_topic" in e
        }
        return with_state.keys() | about

    for view in (PLAIN, FULL):
        assert published_state(view).keys() == asked(described(view)["components"])
    for shared in (ExporterView(), ExporterView(holders={"a:1": ["main"], "": ["b"]})):
        found = json.loads(state(exporter_entities(shared)))
        assert found.keys() == asked(exporter_described(shared)["components"])


def test_entities_are_there_for_what_an_account_has() -> None:
    more = {key for key in described()["components"] if key not in described(PLAIN)["components"]}
    level = topic_level("hot.line")
    assert more == {
        *("balance", "messages_watched", "messages_delivered", "messages_failed", "messages_price"),
        *(f"canary_{level}", f"place_canary_{level}", "canary_b", "place_canary_b"),
    }
    found = published_state(FULL)
    numbers = [found[f"messages_{what}"] for what in ("watched", "delivered", "failed", "price")]
    assert numbers == [0, 100, 69, 42.0]
    assert found["balance"] == 1_500.5
    assert (found[f"canary_{level}"], found["canary_b"]) == ("ON", None)
    assert found[f"canary_{level}_attributes"] == {
        "result": "late",
        "started_at": "2023-11-14T22:13:20+00:00",
        "last_success": "1970-01-01T00:00:01+00:00",
        "next_due": None,
    }


def test_without_buttons() -> None:
    found = described(common=COMMON._replace(buttons=False))["components"]
    assert "button" not in {entity["platform"] for entity in found.values()}


def test_the_exporter() -> None:
    view = ExporterView(
        ["no ledger"], (1.0, "ledger write failed"), 7, {"a:1": ["main"], "": ["b"]}
    )
    assert json.loads(state(exporter_entities(view))) == {
        "ready": "OFF",
        "ready_attributes": {"reasons": ["no ledger"]},
        "version": exporter.__version__,
        "last_error": "1970-01-01T00:00:01+00:00",
        "last_error_attributes": {"event": "ledger write failed"},
        "notifications_pending": 7,
        "exporters": 1,
        "exporters_attributes": {"accounts": {"a:1": ["main"], "": ["b"]}},
    }
    nothing = json.loads(state(exporter_entities(ExporterView())))
    assert (nothing["ready"], nothing["last_error"]) == ("ON", None)
    assert "exporters" not in nothing


def test_entities_that_go_are_removed() -> None:
    old, new = (
        device(TOPICS.account("main"), account_entities(view), COMMON) for view in (FULL, PLAIN)
    )
    found = json.loads(removal(old, new) or b"null")
    gone = found["components"].keys() - described(PLAIN)["components"].keys()
    assert "balance" in gone
    assert {key: found["components"][key] for key in gone} == {
        key: {"platform": described()["components"][key]["platform"]} for key in gone
    }
    assert removal(json.dumps(found).encode(), new) is not None  # it was not completed
    for kept in (None, b"", b"?", b"[]", b"null", b'{"components": 1}', new, b"\xff", b'{"a": 1}'):
        assert removal(kept, new) is None
    for odd in ('{"x": 1}', '{"x": {}}', '{"x": {"platform": 1}}', "[1]"):
        assert removal(f'{{"components": {odd}}}'.encode(), new) is None


@pytest.mark.parametrize(
    ("payload", "retained", "expected"),
    [
        (b"1000", False, 1000),
        (b"1060", False, 1060),
        (b"951", False, 951),
        (b"939", False, "late"),
        (b"1061", False, "late"),
        (b"999999999999", False, "late"),
        (b"1000", True, "retained"),
        (b"950", False, "repeated"),
        *((odd, False, "malformed") for odd in (b"", b"PRESS", b"1e3", b"-1", b"1" * 13, b"\xff")),
        ("\u0661\u0660\u0660\u0660".encode(), False, "malformed"),
    ],
)
def test_presses(payload: bytes, *, retained: bool, expected: int | str) -> None:
    if isinstance(expected, int):
        assert press_time(payload, 1000.0, 950, retained=retained) == expected
    else:
        with pytest.raises(ValueError, match=expected):
            press_time(payload, 1000.0, 950, retained=retained)


def test_accounts_are_told_apart() -> None:
    names = ["a.b", "a_b", "a-b", "a..b", "ab", "A.b"]
    levels = [topic_level(name) for name in names]
    assert len(set(levels)) == len(names)
    assert levels[1:3] == ["a_b", "a-b"]
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]+", level) for level in levels)


@pytest.mark.parametrize(
    ("authorized", "paused", "last_success", "credentials", "connectivity"),
    [
        (None, None, 0.0, None, None),
        (True, None, 1.0, "OFF", "ON"),
        (False, Outcome.AUTH, 0.0, "ON", "ON"),
        (True, Outcome.THROTTLED, 1.0, "OFF", "ON"),
        (True, Outcome.TIMEOUT, 1.0, "OFF", "OFF"),
        (None, Outcome.CONNECTION, 0.0, None, "OFF"),
        (None, Outcome.TLS, 0.0, None, "OFF"),
        (True, Outcome.HTTP_ERROR, 1.0, "OFF", "OFF"),
        (None, None, 1.0, None, "ON"),
    ],
)
def test_how_an_account_stands(
    authorized: bool | None,  # noqa: FBT001 - a column of the table
    paused: Outcome | None,
    last_success: float,
    credentials: str | None,
    connectivity: str | None,
) -> None:
    status = replace(STATUS, authorized=authorized, paused=paused, last_success=last_success)
    found = published_state(PLAIN._replace(status=status))
    assert (found["credentials"], found["connectivity"]) == (credentials, connectivity)
    assert found["polling"] == (paused or "active")
    options = described()["components"]["polling"]["options"]
    assert found["polling"] in options


@pytest.mark.parametrize(
    ("minutes", "ratio"),
    [
        ((), None),
        ((Minute(0, unknown=3),), None),
        ((Minute(0, success=2, failure=1, unknown=5),), 66.67),
        ((Minute(0, success=1), Minute(60, success=1)), 100.0),
        ((Minute(0, failure=1),), 0.0),
    ],
)
def test_the_success_ratio(minutes: tuple[Minute, ...], ratio: float | None) -> None:
    assert published_state(PLAIN._replace(recent=Recent(minutes=minutes)))["success_ratio"] == ratio


def test_the_last_failure() -> None:
    failures = tuple(
        FinishedCall("main", name, Result.FAILURE, Status.BUSY, None, None, {}, 0.0, at)
        for name, at in (("new", 1_700_000_000.9), ("old", 1.0))
    )
    found = published_state(PLAIN._replace(recent=Recent(failures=failures)))
    assert found["last_failure"] == "2023-11-14T22:13:20+00:00"
    assert found["last_failure_attributes"] == {
        "reference_id": "new",
        "kind": "call",
        "result": "failure",
        "status": "busy",
    }


def test_messages_are_no_calls() -> None:
    today = Counter[tuple[str, str | None]](
        {(Result.SUCCESS, Status.BUSY): 2, (Result.SUCCESS, None): 5}
    )
    found = published_state(PLAIN._replace(recent=Recent(today)))
    assert (found["success_today"], found["watched"]) == (2, 3)
