"""Control over HTTP, under `/_simulator/`: faults, accounts and calls while the stand-in runs."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING
from urllib.parse import unquote

from aiohttp import web

from exporter.simulator.accounts import Account
from exporter.simulator.faults import Fault, FaultKind
from exporter.simulator.life import Plan
from exporter.simulator.reading import InputError, mapping, parse, read

if TYPE_CHECKING:
    from exporter.simulator.server import Simulator

PREFIX = "/_simulator"
MAX_BODY = 64 << 20
MAX_BULK = 100_000

# What can be asked for, for people.
PATHS = (
    "GET    /_simulator/state",
    "GET    /_simulator/calls[?account=NAME]",
    "POST   /_simulator/calls",
    "PUT    /_simulator/calls/{reference_id}",
    "PUT    /_simulator/accounts/{name}",
    "PUT    /_simulator/faults/{name}",
    "DELETE /_simulator/faults[/{name}]",
)


async def answer(sim: Simulator, request: web.BaseRequest) -> web.Response:
    """Do what a control request asks for; 400 with a reason where that cannot be."""
    # The raw path, so that a name may hold a slash.
    _, _, thing, *rest = request.rel_url.raw_path.split("/", 3)
    name = unquote(rest[0]) if rest else ""
    try:
        done = await _do(sim, request, thing, name)
    except InputError as error:
        return _json({"error": str(error)}, status=400)
    if done is None:
        return _json({"error": "no such path or method", "paths": PATHS}, status=404)
    return _json(done)


async def _do(sim: Simulator, request: web.BaseRequest, thing: str, name: str) -> object:
    """The JSON to answer with; None where there is nothing like that."""
    done: object = None
    match request.method, thing, name:
        case "GET", "state", "":
            done = state(sim)
        case "GET", "calls", "":
            done = truth(sim, request.query.get("account"))
        case "POST", "calls", "":
            done = {"added": _add_calls(sim, await _sent(request))}
        case "PUT", "calls", str() if name:
            call = {**mapping(await _sent(request)), "reference_id": name}
            done = {"added": _add_calls(sim, [call])}
        case "PUT", "accounts", str() if name:
            done = _put_account(sim, name, await _sent(request))
        case "PUT", "faults", str() if name:
            # A fault that is named like a kind is of that kind.
            given = {"kind": FaultKind(name)} if name in list(FaultKind) else {}
            sim.faults.set(name, read(Fault, await _sent(request), **given))
            done = {"fault": name}
        case "DELETE", "faults", _:
            done = {"cleared": sim.faults.clear(name or None)}
    return done


def state(sim: Simulator) -> dict[str, object]:
    """Accounts (without their secrets), faults, calls and traffic."""
    accounts = {
        name: {key: value for key, value in asdict(account).items() if not key.endswith("_key")}
        for name, account in sim.provider.accounts.items()
    }
    return {
        "accounts": accounts,
        "faults": sim.faults.state(),
        "calls": len(sim.provider.calls),
        **sim.traffic.state(),
    }


def truth(sim: Simulator, account: str | None = None) -> list[dict[str, object]]:
    """What every call, or every call of one account, ends with."""
    now = sim.provider.now
    return [
        call.truth(now)
        for call in sim.provider.calls.values()
        if account is None or call.account == account
    ]


def _add_calls(sim: Simulator, value: object) -> int:
    """Add calls, all or none."""
    if not isinstance(value, list):
        raise InputError("expected a list of calls")
    if len(value) > MAX_BULK:
        raise InputError(f"expected at most {MAX_BULK} calls at a time")
    only = next(iter(sim.provider.accounts)) if len(sim.provider.accounts) == 1 else None
    read_calls = []
    for number, item in enumerate(value):
        try:
            read_calls.append(_call(sim, item, only))
        except InputError as error:
            raise InputError(f"[{number}] {error}") from None
    for account, reference_id, plan in read_calls:
        try:
            sim.add_call(account, reference_id, plan)
        except ValueError as error:
            raise InputError(str(error)) from None
    return len(read_calls)


def _call(sim: Simulator, item: object, only: str | None) -> tuple[str, str, Plan | None]:
    fields = dict(mapping(item))
    account, reference_id = fields.pop("account", only), fields.pop("reference_id", None)
    if not isinstance(account, str) or account not in sim.provider.accounts:
        names = ", ".join(sim.provider.accounts)
        raise InputError(f"account: expected one of {names}")
    if not isinstance(reference_id, str) or not reference_id.strip():
        raise InputError("reference_id: expected a text that is not blank")
    # Without any word about its life, a call gets a plan drawn from the seed.
    return account, reference_id, read(Plan, fields) if fields else None


def _put_account(sim: Simulator, name: str, value: object) -> dict[str, str]:
    old = sim.provider.accounts.get(name)
    given: dict[str, object] = {} if old is None else asdict(old)
    try:
        sim.put_account(read(Account, {**mapping(value), "name": name}, **given))
    except ValueError as error:
        raise InputError(str(error)) from None
    return {"account": name}


async def _sent(request: web.BaseRequest) -> object:
    """The JSON of the body, which may be larger than aiohttp's own limit would have it."""
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > MAX_BODY:
            raise InputError(f"expected at most {MAX_BODY} bytes")
    return parse(bytes(body or b"{}"))


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(
        status=status, body=json.dumps(value).encode(), content_type="application/json"
    )
