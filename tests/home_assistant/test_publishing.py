from __future__ import annotations

import asyncio

from aiomqtt import ProtocolVersion
from structlog.testing import capture_logs

from exporter.config import BalanceConfig
from exporter.home_assistant.entities import topic_level
from exporter.ids import Kind, reference_id
from exporter.ledger.types import NewCall
from exporter.simulator import Account, AccountState, Plan
from tests.brokers import Listener, Mosquitto, listening
from tests.notify.bench import Bench
from tests.samples import samples
from tests.waiting import until

CONFIG = "homeassistant/device/esms-exporter/main/config"
STATE = "esms-exporter/main/state"
EXPORTER = "esms-exporter/exporter"
OTHER = topic_level("b.1")
AVAILABILITY = "esms-exporter/availability"
EVENTS = "esms-exporter/main/finished"
FAILED = Plan(sent_result=0, call_status="FAILED")


async def tell(bench: Bench, **update: object) -> None:
    """Change the section `home_assistant`."""
    assert bench.config.home_assistant
    await bench.change(home_assistant=bench.config.home_assistant.model_copy(update=update))


async def test_an_account_is_a_device_and_a_call_an_event(
    bench: Bench, broker: Mosquitto, listener: Listener
) -> None:
    await until(lambda: CONFIG in listener.kept and STATE in listener.kept)
    assert listener.json(CONFIG)["device"]["name"] == "eSMS main"
    assert listener.kept[AVAILABILITY] == b"online"
    assert bench.value("esms_mqtt_connected") == 1
    assert listener.json(STATE)["credentials"] is None
    await bench.finish("a", plan=FAILED, campaign="emergency")
    await until(lambda: listener.json(STATE)["failure_today"] == 1)
    await until(lambda: bool(listener.said(EVENTS)))
    (event,) = listener.said(EVENTS)
    assert event["finished_at"] == listener.json(STATE)["last_failure"]
    assert (event["reference_id"], event["labels"]) == ("a", {"campaign": "emergency"})
    state = listener.json(STATE)
    assert (state["credentials"], state["connectivity"]) == ("OFF", "ON")
    assert state["success_ratio"] == 0
    assert state["last_failure_attributes"]["reference_id"] == "a"
    assert bench.value("esms_mqtt_messages_total", kind="event", outcome="published") == 1
    async with listening(broker.port) as later:
        await until(lambda: STATE in later.kept)
        assert EVENTS not in later.kept  # or each start of Home Assistant would tell it again
    bench.simulator.put_account(Account("main", "key", "s", state=AccountState.REVOKED))
    await bench.watch("b")
    await until(lambda: listener.json(STATE)["watched"] == 1)


async def test_what_has_not_changed_is_not_said_again(bench: Bench, listener: Listener) -> None:
    await until(lambda: STATE in listener.kept)
    await bench.finish("a")
    await until(lambda: listener.json(STATE)["success_today"] == 1)

    def heard() -> list[str]:
        # The number of pending notifications may change.
        return [topic for topic, _ in listener.heard if topic != EXPORTER]

    before = heard()
    await asyncio.sleep(2.5)
    assert heard() == before


async def test_all_is_said_again_when_home_assistant_has_started(
    bench: Bench, listener: Listener
) -> None:
    await until(lambda: STATE in listener.kept and CONFIG in listener.kept)
    await listener.say("homeassistant/status", "offline")
    await asyncio.sleep(1.5)
    listener.heard.clear()
    await listener.say("homeassistant/status", "online")
    topics = {CONFIG, STATE, AVAILABILITY, EXPORTER}
    await until(lambda: topics <= {topic for topic, _ in listener.heard})


async def test_what_is_left_of_accounts_that_have_gone_is_taken_back(
    bench: Bench, broker: Mosquitto, listener: Listener
) -> None:
    gone = "homeassistant/device/esms-exporter/gone/config"
    others = "homeassistant/device/another/gone/config", "another/gone/state"
    await until(lambda: STATE in listener.kept)
    broker_was = bench.config.home_assistant
    assert EXPORTER in listener.kept
    await bench.change(home_assistant=None)
    await until(lambda: not any("esms-exporter" in topic for topic in listener.kept))
    for topic in (gone, "esms-exporter/gone/state", *others):
        await listener.say(topic, "{}", retain=True)
    await until(lambda: others[1] in listener.kept)
    await bench.change(home_assistant=broker_was)
    await until(lambda: CONFIG in listener.kept)
    await until(lambda: "esms-exporter/gone/state" not in listener.kept)
    assert gone not in listener.kept
    assert set(others) <= listener.kept.keys()


async def test_accounts_may_be_chosen(bench: Bench, listener: Listener) -> None:
    await until(lambda: CONFIG in listener.kept)
    await tell(bench, accounts=("b.1",))
    await until(lambda: CONFIG not in listener.kept)
    await until(lambda: listener.kept[AVAILABILITY] == b"online")
    await bench.finish("a")
    await tell(bench, accounts=None)
    await until(lambda: CONFIG in listener.kept)
    assert listener.said(EVENTS) == []


async def test_other_topics_are_gone_over_to(bench: Bench, listener: Listener) -> None:
    await until(lambda: CONFIG in listener.kept)
    await tell(bench, topic_prefix="voice/one", discovery_prefix="ha")
    new = "ha/device/voice_one/main/config"
    await until(lambda: new in listener.kept)
    assert {CONFIG, STATE}.isdisjoint(listener.kept)
    assert listener.json(new)["state_topic"] == "voice/one/main/state"


async def test_without_a_broker_there_are_no_series(bench: Bench) -> None:
    assert samples(bench.service.metrics, "esms_mqtt_connected")
    await bench.change(home_assistant=None)
    assert not any(one.name.startswith("esms_mqtt_") for one in samples(bench.service.metrics))


async def test_calls_wait_for_a_broker_that_is_away(bench: Bench, broker: Mosquitto) -> None:
    await until(lambda: bench.value("esms_mqtt_connected") == 1)
    with capture_logs() as logs:
        broker.stop()
        await until(lambda: bench.value("esms_mqtt_connected") == 0)
        await bench.finish(*(f"call-{number:02}" for number in range(30)), plan=FAILED)
        broker.start()
        async with listening(broker.port) as listener:
            await until(lambda: len(listener.said(EVENTS)) == 30)
            await until(lambda: STATE in listener.kept)
            assert listener.json(STATE)["failure_today"] == 30
            told = [event["reference_id"] for event in listener.said(EVENTS)]
            # The device is described before, or Home Assistant would not listen yet.
            heard = [topic for topic, _ in listener.heard]
            assert heard.index(CONFIG) < heard.index(EVENTS)
    assert sorted(told) == [f"call-{number:02}" for number in range(30)]
    assert bench.value("esms_mqtt_messages_total", kind="event", outcome="published") == 30
    assert bench.value("esms_mqtt_connection_errors_total") >= 1
    problems = [line for line in logs if line["event"] == "MQTT connection failed"]
    assert 1 <= len(problems) <= 3  # each once: it broke, and then it is refused


async def test_the_last_will_of_another_is_contradicted(
    bench: Bench, broker: Mosquitto, listener: Listener
) -> None:
    await until(lambda: STATE in listener.kept)
    # As a connection leaves it that the broker finds broken after a new one was made.
    await listener.say(AVAILABILITY, "offline", retain=True)
    await until(lambda: listener.kept.get(AVAILABILITY) == b"offline")
    await until(lambda: listener.kept.get(AVAILABILITY) == b"online")


async def test_a_stop_says_goodbye_and_the_next_start_sends_what_is_left(
    bench: Bench, listener: Listener
) -> None:
    await until(lambda: STATE in listener.kept)
    await bench.finish("a")
    await bench.stop()
    await until(lambda: listener.kept[AVAILABILITY] == b"offline")
    assert CONFIG in listener.kept  # it comes back
    await bench.restart()
    await until(lambda: [one["reference_id"] for one in listener.said(EVENTS)] == ["a"])


async def test_a_balance_is_an_entity_once_it_is_known(bench: Bench, listener: Listener) -> None:
    await until(lambda: STATE in listener.kept and CONFIG in listener.kept)
    assert "balance" not in listener.json(CONFIG)["components"]
    bench.simulator.put_account(Account("main", "key", "s", balance=150_000))
    await bench.change(balance=BalanceConfig(interval=10.0))
    await until(lambda: listener.json(STATE).get("balance") == 150_000)
    assert listener.json(CONFIG)["components"]["balance"]["device_class"] == "monetary"
    await bench.change(balance=BalanceConfig(interval=0))
    await until(lambda: "balance" not in listener.json(CONFIG)["components"])
    # The description removes it in Home Assistant.
    removed = [one["components"].get("balance") for one in listener.said(CONFIG)]
    assert {"platform": "sensor"} in removed


async def test_messages_are_entities_of_accounts_that_have_some(
    bench: Bench, listener: Listener
) -> None:
    await until(lambda: CONFIG in listener.kept)
    assert "messages_delivered" not in listener.json(CONFIG)["components"]
    message = "0123456789abcdef0123456789abcdef1"
    bench.simulator.add_call("main", message, Plan(receivers=169, failed=69, price=100))
    new = NewCall("main", reference_id(message), {}, Kind.MESSAGE)
    await bench.service.calls.add(None, [new])
    await until(lambda: listener.json(STATE).get("messages_failed") == 69)
    state = listener.json(STATE)
    assert (state["messages_delivered"], state["success_today"]) == (100, 0)
    assert "messages_price" in listener.json(CONFIG)["components"]
    await until(lambda: bool(listener.said(EVENTS)))
    (event,) = listener.said(EVENTS)
    assert [event[key] for key in ("kind", "delivered", "failed")] == ["message", 100, 69]


async def test_events_expire_at_the_broker(bench: Bench, broker: Mosquitto) -> None:
    async with listening(broker.port, protocol=ProtocolVersion.V5) as listener:
        await bench.finish("a")
        await until(lambda: EVENTS in listener.expiry)
        assert 80_000 < listener.expiry[EVENTS] <= 86_400
        assert STATE not in listener.expiry
