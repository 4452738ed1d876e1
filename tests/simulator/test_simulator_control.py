from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from exporter.simulator import Account, Fault, FaultKind, Plan, Simulator, control

ID = "505139D7-54F8-48A9-88FA-9460A78731DD"


class Client:
    def __init__(self, sim: Simulator, session: aiohttp.ClientSession) -> None:
        self.sim = sim
        self._session = session

    async def __call__(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body)
        async with self._session.request(method, self.sim.control_url + path, data=data) as answer:
            return answer.status, await answer.json()


@pytest_asyncio.fixture
async def do() -> AsyncIterator[Client]:
    async with (
        Simulator(accounts=(Account("main", "key", "secret"),)) as sim,
        aiohttp.ClientSession() as session,
    ):
        yield Client(sim, session)


async def test_state_holds_no_secret(do: Client) -> None:
    do.sim.add_call("main", ID)
    do.sim.faults.set("slow", Fault(FaultKind.LATENCY))
    code, state = await do("GET", "/state")
    assert code == 200
    assert state["calls"] == 1
    assert state["accounts"]["main"]["state"] == "ok"
    assert state["faults"]["slow"]["kind"] == "latency"
    assert not {"api_key", "secret_key"} & set(state["accounts"]["main"])
    assert state["requests"] == []


async def test_faults(do: Client) -> None:
    assert (await do("PUT", "/faults/a%2Fb", {"kind": "raw", "body": "x", "count": 3}))[0] == 200
    assert do.sim.faults.state().keys() == {"a/b"}
    assert (await do("PUT", "/faults/hang", b""))[0] == 200
    assert "hang" in do.sim.faults
    assert await do("DELETE", "/faults/a%2Fb") == (200, {"cleared": True})
    assert await do("DELETE", "/faults") == (200, {"cleared": True})
    assert await do("DELETE", "/faults") == (200, {"cleared": False})


async def test_accounts(do: Client) -> None:
    assert (await do("PUT", "/accounts/main", {"state": "revoked"}))[0] == 200
    main = do.sim.provider.accounts["main"]
    assert (main.state, main.api_key) == ("revoked", "key")
    new = {"api_key": "k2", "secret_key": "s2", "tps": 3, "name": "ignored"}
    assert (await do("PUT", "/accounts/second", new))[0] == 200
    assert do.sim.provider.accounts["second"] == Account("second", "k2", "s2", tps=3)
    assert (await do("PUT", "/accounts/third", new))[0] == 400


async def test_calls(do: Client) -> None:
    plan = {"queued": 0.3, "sent_result": 1, "duration": 13, "ivr": "1"}
    assert await do("PUT", f"/calls/{ID.lower()}", plan) == (200, {"added": 1})
    assert do.sim.provider.calls["main", ID].plan == Plan(queued=0.3, ivr="1")
    calls = [{"reference_id": f"id {number}", "rejected": True} for number in range(3)]
    assert await do("POST", "/calls", calls) == (200, {"added": 3})
    assert await do("POST", "/calls", [{"reference_id": "drawn"}]) == (200, {"added": 1})
    _, truth = await do("GET", "/calls")
    assert {call["reference_id"] for call in truth} == {ID, "ID0", "ID1", "ID2", "DRAWN"}
    assert [call["finished"] for call in truth[:2]] == [False, True]
    assert len((await do("GET", "/calls?account=main"))[1]) == 5
    assert await do("GET", "/calls?account=other") == (200, [])


async def test_many_calls_at_once(do: Client) -> None:
    calls = [{"reference_id": f"id{number}", "queued": 10} for number in range(20_000)]
    assert await do("POST", "/calls", calls) == (200, {"added": 20_000})


@pytest.mark.parametrize(
    ("method", "path", "body", "error"),
    [
        ("PUT", "/faults/x", b"{", "expected JSON"),
        ("PUT", "/faults/x", b"\xff", "expected JSON"),
        ("PUT", "/faults/x", {}, "kind: missing"),
        ("PUT", "/faults/x", {"kind": "hang", "count": 0}, "count: expected"),
        ("PUT", "/accounts/main", {"state": "gone"}, "state: expected one of ok"),
        ("PUT", "/accounts/main", [], "expected a JSON object"),
        ("PUT", "/accounts/new", {}, "api_key: missing"),
        ("PUT", "/calls/x", {"account": "nobody"}, "[0] account: expected one of main"),
        ("PUT", "/calls/x", {"queued": -1}, "[0] queued: expected"),
        ("PUT", "/calls/x", [], "expected a JSON object"),
        ("POST", "/calls", {}, "expected a list of calls"),
        ("POST", "/calls", [{"reference_id": "a"}, 1], "[1] expected a JSON object"),
        ("POST", "/calls", [{}], "[0] reference_id: expected"),
        ("POST", "/calls", [{"reference_id": " "}], "[0] reference_id: expected"),
        ("POST", "/calls", [{}] * 100_001, "expected at most 100000"),
    ],
)
async def test_input_that_cannot_be_used(
    do: Client, method: str, path: str, body: Any, error: str
) -> None:
    code, answer = await do(method, path, body)
    assert code == 400
    assert answer["error"].startswith(error)
    assert not do.sim.provider.calls


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/"), ("GET", "/other"), ("POST", "/state"), ("PUT", "/calls/"), ("PUT", "/faults/")],
)
async def test_paths_that_are_not_there(do: Client, method: str, path: str) -> None:
    code, answer = await do(method, path)
    assert code == 404
    assert "GET    /_simulator/state" in answer["paths"]


async def test_bounds(do: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "MAX_BODY", 10)
    code, answer = await do("POST", "/calls", [{"reference_id": "a"}])
    assert (code, answer) == (400, {"error": "expected at most 10 bytes"})


async def test_no_room(do: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporter.simulator.provider.MAX_CALLS", 0)
    code, answer = await do("PUT", "/calls/a", {})
    assert (code, answer) == (400, {"error": "no room for more than 0 calls"})
