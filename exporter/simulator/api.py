"""The API's own paths: from a request to its answer, damaged where a fault says so."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING

from aiohttp import web

from exporter.simulator import damage, reading
from exporter.simulator.faults import Fault, FaultKind
from exporter.simulator.life import shown_id
from exporter.simulator.replies import Operation, Reply
from exporter.simulator.traffic import NOBODY

if TYPE_CHECKING:
    from exporter.simulator.server import Simulator

BASE_PATH = "/MainService.svc/json"
_OPERATIONS = {f"{BASE_PATH}/{operation}": operation for operation in Operation}
_COOKIE = "ASP.NET_SessionId"


async def answer(  # noqa: PLR0911 - the way of a request, with its exits in order
    sim: Simulator, request: web.BaseRequest
) -> web.StreamResponse:
    """Answer one request as the provider does: HTTP 200, with the error in the body."""
    operation = _OPERATIONS.get(request.path)
    if operation is None:
        return _page(404)
    if request.method != ("POST" if operation is Operation.GET_BALANCE else "GET"):
        return _page(405)
    params = request.query if request.method == "GET" else await _credentials(request)
    if params is None:
        return _page(400)
    account = sim.provider.account_of(params.get("ApiKey", ""))
    name = account.name if account is not None else NOBODY
    reference_id = shown_id(params.get("ReferenceId", ""))
    with sim.traffic.request(name, reference_id):
        late, fault = sim.faults.draw(name, operation, reference_id)
        if late is not None:
            await asyncio.sleep(late.seconds)
        if fault is not None and fault.kind not in damage.ALTERING:
            sim.traffic.count(name, operation, fault.kind)
            return await _replaced(request, fault)
        # Looked up anew, because a late request must not undo what was altered meanwhile.
        account = sim.provider.account_of(params.get("ApiKey", ""))
        reply = sim.provider.answer(operation, account, params)
        sim.traffic.count(name, operation, reply.code if fault is None else fault.kind)
        if fault is None:
            return _sent(request, reply, damage.written(reply.fields))
        body = damage.altered(fault, reply.fields)
        if fault.kind is FaultKind.TRICKLE:
            return await damage.trickle(request, body, fault.seconds)
        return _sent(request, reply, body)


def _sent(request: web.BaseRequest, reply: Reply, body: bytes) -> web.Response:
    headers = {"Content-Type": damage.JSON}
    if _COOKIE not in request.headers.get("Cookie", ""):
        headers["Set-Cookie"] = f"{_COOKIE}={uuid.uuid4().hex[:24]}; path=/; HttpOnly"
    if reply.retry_after is not None:
        headers["Retry-After"] = reply.retry_after
    return web.Response(status=reply.status, headers=headers, body=body)


async def _credentials(request: web.BaseRequest) -> Mapping[str, str] | None:
    """The body of GetBalance; None where it is none, to which WCF answers with a page."""
    try:
        fields = reading.mapping(reading.parse(await request.read()))
    except reading.InputError:
        return None
    return {name: value for name, value in fields.items() if isinstance(value, str)}


async def _replaced(request: web.BaseRequest, fault: Fault) -> web.StreamResponse:
    if fault.kind is FaultKind.HANG:
        await damage.hang()
    if fault.kind is FaultKind.RESET:
        await damage.reset(request)
    return damage.replaced(fault, request.path_qs)


def _page(status: int) -> web.Response:
    return web.Response(
        status=status, headers={"Content-Type": damage.HTML}, body=damage.ERROR_PAGE.encode()
    )
