from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from itertools import product
from pathlib import Path
from typing import Any

import pytest_asyncio
from structlog.testing import capture_logs
from yarl import URL

from exporter.calls import Finished, OddField, Result, Status, WatchedCall
from exporter.config import CallbackConfig, PollingConfig
from exporter.ids import Kind, reference_id
from exporter.ledger import canary_runs
from exporter.ledger.canary_runs import Intent
from exporter.ledger.types import NewCall, Observation
from exporter.secrets import Secret
from exporter.simulator import Plan
from exporter.web.callback import callback_url
from tests.samples import samples, value
from tests.waiting import until
from tests.web.bench import CALLBACK_TOKEN
from tests.web.bench import Bench as WebBench

TOKEN = CALLBACK_TOKEN
OTP = {"campaign": "otp"}
# As the provider's page shows it.
DOCUMENTED = {
    "ReferenceId": "a",
    "CallDuration": "13",
    "CallStatus": "ANSWERED",
    "Ivr": "1",
    "Price": "350.5000",
    "SentResult": "1",
    "CID": "02871002454",
    "SendStatus": "5",
}
LIVE = Plan(queued=10_000)


class Bench(WebBench):
    """An exporter that is called back; it polls so seldom that only a callback explains a poll."""

    retry_after: str | None

    async def trust(self, trust: str = "verify", unknown: str = "watch") -> None:
        callback = CallbackConfig.model_validate({"trust": trust, "unknown": unknown})
        await self.configure(callback=callback)

    @property
    def polls(self) -> float:
        """Number of polls so far."""
        return sum(self.app.accounts["main"].stats.polls.durations.counts)

    async def watch(self, name: str, plan: Plan) -> None:
        """Watch a call, and wait until it was polled once."""
        self.simulator.add_call("main", name, plan)
        await self.app.calls.push([[NewCall("main", reference_id(name), OTP)]])
        await until(lambda: any(call.last_polled for call in self.calls.values()))

    def end(self, name: str, plan: Plan) -> None:
        """Let a call have ended, for the provider."""
        assert not plan.ends_after
        self.simulator.add_call("main", name, plan)

    async def call_back(self, token: str = TOKEN, account: str = "main", **fields: str) -> int:
        url = callback_url(self.url, account, Secret(token))
        query = {**DOCUMENTED, **fields}
        async with self.http.get(URL(url, encoded=True).with_query(query)) as answer:
            self.retry_after = answer.headers.get("Retry-After")
            return answer.status

    async def call_back_meanwhile(self, change: Coroutine[Any, Any, object]) -> int:
        """Have a callback find its call, and something change before it goes on."""
        async with self.ledger_held():
            calling = asyncio.create_task(self.call_back())
            await until(lambda: any(one.busy for one in self.server.connections.open))
            # The ledger does one after the other: the callback's search comes first.
            changing = asyncio.create_task(change)
        await changing
        return await calling

    @property
    def calls(self) -> dict[int, WatchedCall]:
        return dict(self.app.accounts["main"].poller.calls)

    @property
    def outcomes(self) -> dict[str, float]:
        counted = samples(self.app.metrics, "esms_callbacks_total", account="main")
        return {sample.labels["outcome"]: sample.value for sample in counted if sample.value}

    def counted(self, status: str) -> float:
        return value(self.app.metrics, "esms_calls_total", account="main", status=status)

    @property
    def price(self) -> dict[str, float]:
        prices = samples(self.app.metrics, "esms_call_price_vnd_total", account="main")
        return {sample.labels["campaign"]: sample.value for sample in prices if sample.value}


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with Bench(tmp_path) as bench:
        polling = PollingConfig(interval=600, max_interval=600)
        bench.config = bench.config.model_copy(update={"polling": polling})
        await bench.app.open()
        await bench.serve()
        # Not 404: the provider is to try again.
        assert (await bench.call_back(), bench.retry_after) == (503, "1")
        await bench.app.start()
        yield bench


async def test_a_callback_is_a_hint(bench: Bench) -> None:
    await bench.watch("a", LIVE)
    # Its word is not taken: the call has not ended for the provider.
    assert await bench.call_back() == 200
    await until(lambda: bench.polls == 2)
    assert bench.counted("answered") == 0
    bench.end("a", Plan(call_status="BUSY", sent_result=0))
    assert await bench.call_back(Signature="x" * 1000) == 200  # an unknown field of any length
    await until(lambda: bench.counted("busy") == 1)
    assert bench.outcomes == {"hint": 2}
    assert bench.price == {"otp": 350.5}


async def test_repeated_and_late(bench: Bench) -> None:
    await bench.watch("a", LIVE)
    bench.end("a", Plan())
    await asyncio.gather(*(bench.call_back(ReferenceId=" A ") for _ in range(5)))
    await until(lambda: not bench.calls)
    before = bench.outcomes.get("repeated", 0)
    for _ in range(3):
        assert await bench.call_back(Price="999") == 200
    assert bench.counted("answered") == 1
    # The price that was known at its end stays, and is added once.
    assert bench.price == {"otp": 350.5}
    assert bench.outcomes["repeated"] == before + 3


async def test_a_price_beside_the_result(bench: Bench) -> None:
    going_on = {"SendStatus": "2", "SentResult": "", "CallStatus": ""}
    await bench.watch("a", LIVE)
    assert await bench.call_back(Price="0", **going_on) == 200
    bench.end("a", Plan())
    assert await bench.call_back(Price="350") == 200
    await until(lambda: not bench.calls)
    assert bench.price == {"otp": 350}
    await bench.watch("b", LIVE)
    bench.end("b", Plan())
    assert await bench.call_back(ReferenceId="b", Price="") == 200
    await until(lambda: not bench.calls)
    assert bench.price == {"otp": 350}
    # The documented 0.0000 adds nothing; the first price that does is the last.
    for price in ("nan", "-1", "1e300", "x", "0.0000", "12", "13"):
        assert await bench.call_back(ReferenceId="b", Price=price) == 200
    assert bench.price == {"otp": 362}
    assert bench.counted("answered") == 2


async def test_a_callback_that_is_trusted(bench: Bench) -> None:
    await bench.trust("accept")
    await bench.watch("a", LIVE)
    # One that ends nothing is a hint.
    assert await bench.call_back(SendStatus="2") == 200
    # A byte order mark may stand before the parameters.
    assert await bench.call_back(**{"\ufeffReferenceId": "a", "ReferenceId": ""}) == 200
    assert not bench.calls
    assert bench.counted("answered") == 1
    # A contradiction changes nothing.
    assert await bench.call_back(CallStatus="BUSY", SentResult="0", Price="1") == 200
    assert (bench.counted("busy"), bench.price) == (0, {"otp": 350.5})
    assert bench.outcomes == {"hint": 1, "accepted": 1, "repeated": 1}
    intervals = bench.app.accounts["main"].poller.intervals[Kind.CALL]
    assert intervals.durations.calls == 1
    labels = {"account": "main", "key": "1", "campaign": "otp"}
    assert value(bench.app.metrics, "esms_call_keypresses_total", **labels) == 1
    await bench.configure(max_label_values=7)  # shows the totals of the ledger anew
    assert bench.price == {"otp": 350.5}
    for name, sent, result in (("b", "TRUE", "success"), ("c", "false", "failure")):
        await bench.watch(name, LIVE)
        assert await bench.call_back(ReferenceId=name, CallStatus="BUSY", SentResult=sent) == 200
        found = await bench.app.calls.find("main", reference_id(name))
        assert found is not None
        assert found.result == result


async def test_a_canary_call_that_is_called_back_before_it_is_polled(bench: Bench) -> None:
    await bench.trust("accept")
    ledger, now = bench.app.ledger, time.time()
    day = now - 1, now + 1
    intent = Intent("c", int(now), "main", "r", "answered", None, now, now + 60, 1, day)
    run = await ledger.execute(canary_runs.begin, intent)
    assert isinstance(run, int)
    assert await ledger.execute(canary_runs.accept, run, reference_id("a"), now, 0.1)
    # It is none of the programs' that hand calls over: deleting it would end the run as late.
    assert (await bench.ask("GET", "/calls")) == (200, {"calls": [], "next": None})
    for method in ("GET", "DELETE"):
        assert (await bench.ask(method, "/calls/main/a"))[0] == 404
    assert await bench.call_back() == 200
    found = await bench.app.calls.find("main", reference_id("a"))
    assert found is not None
    assert found.result == "success"
    assert bench.outcomes == {"accepted": 1}
    assert (bench.counted("answered"), bench.price) == (0, {})


async def test_messages(bench: Bench) -> None:
    await bench.trust("accept")
    message = {"SMSID": "", "SendFailed": "1", "SendSuccess": "2", "TotalPrice": "940.0000"}
    message |= {**dict.fromkeys(DOCUMENTED, ""), "SendStatus": "5", "TotalReceiver": "3"}
    known = [NewCall("main", reference_id(name), OTP, Kind.MESSAGE) for name in ("known", "open")]
    await bench.app.calls.push([known, [NewCall("main", reference_id("call"), OTP)]])
    # The third names no message, the fourth ends nothing, and the last is of the other kind.
    for name, status in (("KNOWN", "5"), ("new", "5"), ("call", "5"), ("open", "2")):
        for _ in range(2):  # the provider repeats it
            assert await bench.call_back(**message | {"SMSID": name, "SendStatus": status}) == 200
    assert await bench.call_back(ReferenceId="open") == 200
    assert await bench.call_back(**message) == 400
    told = samples(bench.app.metrics, "esms_messages_total", account="main")
    counted = {
        tuple(one.labels[name] for name in ("campaign", "result")): one.value
        for one in told
        if one.value
    }
    assert counted == {
        ("otp", "success"): 2,
        ("otp", "failure"): 1,
        ("", "success"): 2,
        ("", "failure"): 1,
    }
    assert value(bench.app.metrics, "esms_message_price_vnd_total") == 2 * 940
    assert value(bench.app.metrics, "esms_calls_total") == 0


async def test_contradictory_callbacks_at_once(bench: Bench) -> None:
    await bench.trust("accept")
    await bench.watch("a", LIVE)
    busy = {"CallStatus": "BUSY", "SentResult": "0"}
    await asyncio.gather(*(bench.call_back(**(busy if n % 2 else {})) for n in range(20)))
    assert bench.counted("busy") + bench.counted("answered") == 1
    assert sum(bench.price.values()) == 350.5


async def test_a_call_that_nobody_watches(bench: Bench) -> None:
    bench.simulator.add_call("main", "a", Plan(call_status="BUSY", sent_result=0))
    await bench.trust(unknown="ignore")
    assert await bench.call_back() == 200
    assert not bench.calls
    await bench.trust()
    assert await bench.call_back() == 200
    await until(lambda: bench.counted("busy") == 1)
    assert bench.outcomes == {"ignored": 1, "watched": 1}
    await bench.trust("accept")
    assert await bench.call_back(ReferenceId="new") == 200
    assert bench.counted("answered") == 1


async def test_forged(bench: Bench) -> None:
    await bench.watch("a", LIVE)
    for token in ("", "made", f"{TOKEN}x", "Made/up token", "key"):
        assert await bench.call_back(token) == 404
    # An account without a token cannot be told from one that does not exist.
    for account, token in product(("b", "nobody"), (TOKEN, "")):
        assert await bench.call_back(token, account) == 404
    assert bench.outcomes == {"forbidden": 4}  # the path of an empty token leads nowhere
    assert bench.price == {}
    # Any token has its path.
    main, other = bench.config.accounts
    for token in ("{token}", "a%2Fb?c#d", "{token:.*}"):
        accounts = (main.model_copy(update={"callback_token": Secret(token)}), other)
        bench.config = bench.config.model_copy(update={"accounts": accounts})
        await bench.app.reload()
        assert await bench.call_back(token) == 200
        assert await bench.call_back(f"{token}x") == 404


async def test_malformed(bench: Bench) -> None:
    await bench.trust("accept")
    for name, text in (
        ("ReferenceId", ""),
        ("ReferenceId", "a b"),
        ("ReferenceId", "x" * 129),
        ("ReferenceId", "a\x00"),
        ("CallStatus", "x" * 201),
    ):
        assert await bench.call_back(**{name: text}) == 400
    assert bench.outcomes == {"malformed": 5}
    assert [s.errors for s in bench.app.sources.statuses if s.name == "callback"] == [5]
    assert not bench.calls


async def test_odd_values_end_a_call_as_they_would_in_an_answer(bench: Bench) -> None:
    await bench.trust("accept")
    await bench.watch("a", LIVE)
    odd = {"CallDuration": "-5", "SentResult": "x", "CallStatus": "?", "Ivr": "", "Price": "x"}
    with capture_logs() as logs:
        assert await bench.call_back(**odd) == 200
    assert bench.counted("other") == 1
    told = [line for line in logs if line["event"] == "unexpected value in answer"]
    assert [(line["reference_id"], line["field"]) for line in told] == [
        ("a", "sent_result"),
        ("a", "call_duration"),
    ]
    counted = bench.app.accounts["main"].stats.odd_values
    assert (counted[OddField.SENT_RESULT], counted[OddField.CALL_DURATION]) == (1, 1)


async def test_a_poll_that_was_first(bench: Bench) -> None:
    await bench.trust("accept")
    await bench.watch("a", LIVE)
    ((_, call),) = bench.calls.items()
    busy = Observation("main", call, Finished(Result.SUCCESS, Status.BUSY), time.time())
    store = bench.app.ledger.store
    assert await bench.call_back_meanwhile(bench.app.ledger.call(store.commit, [busy])) == 200
    assert bench.outcomes == {"repeated": 1}
    assert not bench.calls


async def test_a_call_of_a_file_that_goes_stays_once_it_is_called_back(bench: Bench) -> None:
    named = [NewCall("main", reference_id(name), OTP) for name in "abc"]
    await bench.app.calls.add("calls.txt", named)
    assert await bench.call_back(ReferenceId="B") == 200
    await bench.app.calls.keep_only("calls.txt", set())
    assert [call.reference_id for call in bench.calls.values()] == ["b"]


async def test_a_call_that_is_let_go_meanwhile_is_watched_anew(bench: Bench) -> None:
    await bench.app.calls.add("calls.txt", [NewCall("main", reference_id("a"), OTP)])
    ((row, _),) = bench.calls.items()
    store = bench.app.ledger.store
    removing = bench.app.ledger.call(store.keep_only, "calls.txt", set())
    assert await bench.call_back_meanwhile(removing) == 200
    assert bench.outcomes == {"watched": 1}
    # The poller of the removed one may already have noticed.
    assert bench.calls.keys() - {row}


async def test_a_ledger_that_fails_or_has_no_room(bench: Bench) -> None:
    await bench.trust("accept")
    await bench.watch("a", LIVE)
    async with bench.ledger_failing("calls", "UPDATE"):
        # Not 200, so that the provider sends it again.
        assert (await bench.call_back(), bench.retry_after) == (503, "5")
    assert bench.counted("answered") == 0
    assert await bench.call_back() == 200
    assert (bench.counted("answered"), bench.price) == (1, {"otp": 350.5})
    await bench.configure(max_calls=1)
    await bench.watch("b", LIVE)
    assert (await bench.call_back(ReferenceId="c"), bench.retry_after) == (429, "60")
    assert bench.outcomes == {"error": 2, "accepted": 1}


async def test_callbacks_are_in_the_history_of_their_call(bench: Bench) -> None:
    await bench.trust("accept")
    going_on = {"SendStatus": "2"}
    for fields in (going_on, {}, {}):
        assert await bench.call_back(**fields) == 200
    _, call = await bench.ask("GET", "/calls/main/a")
    told = [one["subject"] for one in call["history"] if one["event"] == "callback"]
    assert told == ["watched", "accepted", "repeated"]
    assert call["price"] == 350.5
    await bench.trust("verify")
    await bench.watch("b", LIVE)
    async with bench.ledger_failing("history"):
        # Not 200: the provider sends a lost callback again.
        assert await bench.call_back(ReferenceId="b") == 503
    assert await bench.call_back(ReferenceId="b") == 200
    _, call = await bench.ask("GET", "/calls/main/b")
    assert [one["subject"] for one in call["history"] if one["event"] == "callback"] == ["hint"]
