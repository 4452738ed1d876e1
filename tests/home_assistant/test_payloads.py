"""Devices and states as Home Assistant gets them, against what its documentation accepts."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from exporter.account import AccountStatus
from exporter.calls import CallState, Result, Status
from exporter.esms.codes import Outcome
from exporter.home_assistant.payloads import Topics, device, device_of, state
from exporter.ledger.types import FinishedCall
from exporter.recent_results import Minute, Recent

TOPICS = Topics("homeassistant", "voice/one")

# From the documentation of the MQTT integration: what each platform takes, as it abbreviates it.
EVERYWHERE = {"p", "name", "uniq_id", "ic", "ent_cat", "dev_cla"}
STATES = {"val_tpl", "json_attr_t", "json_attr_tpl"}
TAKES = {
    "binary_sensor": EVERYWHERE | STATES,
    "sensor": EVERYWHERE | STATES | {"state_class", "unit_of_meas", "sug_dsp_prc"},
    "event": EVERYWHERE | {"stat_t", "evt_typ"},
}
DEVICE_CLASSES = {
    "binary_sensor": {"problem", "connectivity"},
    "sensor": {"timestamp", "monetary"},
    "event": set[str](),
}
STATE_CLASSES = {"measurement", "total", "total_increasing"}


def described(account: str = "main", *, with_balance: bool = True) -> Any:  # Any: JSON
    return json.loads(device(TOPICS, account, with_balance=with_balance))


def test_a_device_is_described_as_documented() -> None:
    told = described()
    assert told.keys() == {"dev", "o", "cmps", "stat_t", "avty_t", "qos"}
    assert told["o"].keys() == {"name", "sw"}
    assert told["dev"] == {
        "ids": ["voice_one_main"],
        "name": "eSMS main",
        "mf": "eSMS",
        "mdl": "Voice account",
    }
    assert told["stat_t"] == "voice/one/main/state"
    assert told["avty_t"] == "voice/one/availability"
    # How Home Assistant takes a topic apart.
    topic = re.fullmatch(
        r"homeassistant/(\w+)/(?:([a-zA-Z0-9_-]+)/)?([a-zA-Z0-9_-]+)/config", TOPICS.device("main")
    )
    assert topic
    assert topic.groups() == ("device", "voice_one", "main")


@pytest.mark.parametrize("key", described()["cmps"])
def test_an_entity_is_described_as_documented(key: str) -> None:
    entity = described()["cmps"][key]
    platform = entity["p"]
    assert entity.keys() <= TAKES[platform]
    assert entity["uniq_id"] == f"voice_one_main_{key}"
    assert not entity["name"].startswith("eSMS"), "Home Assistant puts the device's name before it"
    assert entity.get("dev_cla") in DEVICE_CLASSES[platform] | {None}
    assert entity.get("state_class") in STATE_CLASSES | {None}
    assert entity.get("json_attr_t") in {None, "voice/one/main/state"}
    assert ("json_attr_t" in entity) == ("json_attr_tpl" in entity)
    if entity.get("dev_cla") == "monetary":
        assert entity["state_class"] == "total"  # none but this is taken
    if entity.get("dev_cla") == "timestamp":
        assert not {"state_class", "unit_of_meas"} & entity.keys()
    assert platform == "event" or entity["val_tpl"] == f"{{{{ value_json.{key} }}}}"


def test_names_of_entities_are_told_apart() -> None:
    names = [entity["name"] for entity in described()["cmps"].values()]
    assert len(names) == len(set(names))


def test_the_state_has_what_entities_ask_for() -> None:
    told = json.loads(state(STATUS, Recent(), 0, 1.0))
    asked = {key for key, entity in described()["cmps"].items() if entity["p"] != "event"}
    assert told.keys() == asked | {"failure"}


def test_a_balance_is_there_where_it_is_known() -> None:
    assert "balance" not in described(with_balance=False)["cmps"]
    assert "balance" not in json.loads(state(STATUS, Recent(), 0, None))
    assert json.loads(state(STATUS, Recent(), 0, 1_500.5))["balance"] == 1_500.5


def test_accounts_are_told_apart() -> None:
    names = ["a.b", "a_b", "a-b", "a..b", "ab", "A.b"]
    levels = [device_of(name) for name in names]
    assert len(set(levels)) == len(names)
    assert levels[1:3] == ["a_b", "a-b"]
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]+", level) for level in levels)


STATUS = AccountStatus("main", None, {CallState.NEW: 3}, 0, 0.0, None, None)


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
    told = json.loads(state(status, Recent(), 3, None))
    assert (told["credentials"], told["connectivity"]) == (credentials, connectivity)


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
    told = json.loads(state(STATUS, Recent(minutes=minutes), 3, None))
    assert told["success_ratio"] == ratio


def test_the_last_failure() -> None:
    failures = tuple(
        FinishedCall("main", name, Result.FAILURE, Status.BUSY, 0.0, at)
        for name, at in (("new", 1_700_000_000.9), ("old", 1.0))
    )
    told = json.loads(state(STATUS, Recent(failures=failures), 3, None))
    assert told["last_failure"] == "2023-11-14T22:13:20+00:00"
    assert told["failure"] == {"reference_id": "new", "result": "failure", "status": "busy"}
