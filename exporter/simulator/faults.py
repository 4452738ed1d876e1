"""Faults that are switched on and off while the stand-in runs, and how each looks on the wire."""

from __future__ import annotations

import asyncio
import functools
import gzip
import json
import math
import random
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import StrEnum
from typing import Annotated, Final

from aiohttp import web
from pydantic import Field, StringConstraints
from pydantic.dataclasses import dataclass

from exporter.simulator.provider import CONFIG

JSON: Final = "application/json; charset=utf-8"
HTML: Final = "text/html; charset=utf-8"
# The page that a WCF service shows in place of an answer in JSON.
ERROR_PAGE: Final = (
    "<!DOCTYPE html><html><head><title>Request Error</title></head><body>"
    "<p>The server encountered an error processing the request.</p></body></html>"
)

Header = Annotated[str, StringConstraints(pattern="^[ -~]*$")]


class FaultKind(StrEnum):
    """What goes wrong; in brackets, the parameters of `Fault` that matter."""

    LATENCY = "latency"  # the answer comes late (seconds); may be combined with another fault
    HANG = "hang"  # no answer ever comes; the connection stays open
    RESET = "reset"  # the connection is reset (RST)
    STATUS = "status"  # an HTTP status with an HTML body (status, retry_after, date, body)
    HTML = "html"  # an HTML page with HTTP 200 (body)
    EMPTY = "empty"  # HTTP 200 with an empty body
    TRUNCATED = "truncated"  # the first half of the real answer, as if it were all
    WRONG_TYPES = "wrong_types"  # the real answer's fields, each with a value of another type
    NOT_OBJECT = "not_object"  # JSON that is no object (body, else `[]`)
    NAN = "nan"  # the real answer with NaN for its CallDuration, and a Price that is NaN
    HUGE = "huge"  # the real answer with padding of `size` bytes: correct JSON
    TRICKLE = "trickle"  # the real answer in small pieces (seconds, for the whole body)
    GZIP_BOMB = "gzip_bomb"  # a small gzip body that grows to `size` bytes
    WRONG_ID = "wrong_id"  # the real answer for another ReferenceId
    REDIRECT = "redirect"  # a redirect (location, status)
    RAW = "raw"  # any body with any status (body, status, retry_after, date)


@dataclass(frozen=True, slots=True, config=CONFIG)
class Fault:
    """What goes wrong, and with which requests: None for all of them."""

    kind: FaultKind
    probability: Annotated[float, Field(ge=0, le=1)] = 1.0  # share of the matching requests
    account: str | None = None
    operation: str | None = None  # such as `GetSendStatus`
    reference_id: str | None = None  # in upper case
    count: Annotated[int, Field(ge=1)] | None = None  # of requests that it still hits
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    status: Annotated[int, Field(ge=200, le=599)] | None = None
    retry_after: Header | None = None
    date: Header | None = None  # None for the right one
    body: str | None = None
    size: Annotated[int, Field(ge=0, le=256 << 20)] = 1_000_000  # bytes
    location: Header | None = None  # None for the same address again, for ever


def to_json(fields: Mapping[str, object]) -> bytes:
    """Return the body of an answer, compact as WCF writes it."""
    return json.dumps(fields, separators=(",", ":")).encode()


Fields = Mapping[str, object]
Answer = Callable[[], Fields]
"""Makes the real answer, where it is sent."""


def _wrong_types(fields: Fields) -> Fields:
    return {k: {"value": v} if isinstance(v, str) else [v] for k, v in fields.items()}


_OTHER_ID: Final = "00000000-0000-4000-8000-000000000000"
# The bodies of faults, and the status where it is not 200.
_PAGES: Final = {FaultKind.STATUS: 500, FaultKind.HTML: 200, FaultKind.REDIRECT: 302}
_BODIES: Final = {FaultKind.NOT_OBJECT: "[]", FaultKind.RAW: "", FaultKind.EMPTY: ""}
_CHANGES: Final[Mapping[FaultKind, Callable[[Fields, Fault], Fields]]] = {
    FaultKind.WRONG_TYPES: lambda fields, _: _wrong_types(fields),
    FaultKind.NAN: lambda fields, _: {**fields, "CallDuration": math.nan, "Price": math.nan},
    FaultKind.HUGE: lambda fields, fault: {**fields, "Padding": "x" * fault.size},
    FaultKind.WRONG_ID: lambda fields, _: {**fields, "ReferenceId": _OTHER_ID},
}


async def respond(fault: Fault, request: web.Request, answer: Answer) -> web.StreamResponse:
    """Answer a request as the fault says."""
    kind, headers = fault.kind, {"Content-Type": JSON}
    if kind in {FaultKind.HANG, FaultKind.RESET}:
        if kind is FaultKind.RESET:
            _reset(request)
        # Until the client has gone or the server stops: either cancels the request.
        await asyncio.Event().wait()
    if kind is FaultKind.TRICKLE:
        return await _trickle(request, to_json(answer()), fault.seconds)
    if kind in _PAGES:
        headers["Content-Type"], body = HTML, (fault.body or ERROR_PAGE).encode()
        if kind is FaultKind.REDIRECT:
            headers["Location"] = fault.location or request.path_qs
    elif kind in _BODIES:
        body = (fault.body or _BODIES[kind]).encode()
    elif kind is FaultKind.GZIP_BOMB:
        headers["Content-Encoding"], body = "gzip", _gzip_bomb(fault.size)
    elif kind is FaultKind.TRUNCATED:
        body = to_json(answer())
        body = body[: len(body) // 2]
    else:
        body = to_json(_CHANGES[kind](answer(), fault))
    more = {"Retry-After": fault.retry_after, "Date": fault.date}
    headers |= {name: value for name, value in more.items() if value is not None}
    status = fault.status or _PAGES.get(kind, 200)
    return web.Response(status=status, headers=headers, body=body)


@functools.lru_cache(maxsize=2)
def _gzip_bomb(size: int) -> bytes:
    return gzip.compress(to_json({"CodeResponse": "100", "Padding": "x" * size}))


async def _trickle(request: web.Request, body: bytes, seconds: float) -> web.StreamResponse:
    """Send a body in small pieces, spread over so many seconds."""
    response = web.StreamResponse(headers={"Content-Type": JSON})
    response.content_length = len(body)
    await response.prepare(request)
    step = max(1, -(-len(body) // 50))
    for at in range(0, len(body), step):
        await asyncio.sleep(seconds * step / len(body))
        await response.write(body[at : at + step])
    return response


def _reset(request: web.Request) -> None:
    """Reset the connection: the client gets an RST, not an orderly end."""
    if request.transport is not None:
        connection: socket.socket = request.transport.get_extra_info("socket")
        # A linger time of 0 is what makes the kernel send an RST.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()


class Faults:
    """The faults that are switched on, by name."""

    def __init__(self, seed: int = 0) -> None:
        self.active: dict[str, Fault] = {}
        # Not for secrets, but for the same run with the same seed.
        self._rng = random.Random(f"faults:{seed}")  # noqa: S311

    def set(self, name: str, fault: Fault) -> None:
        """Switch a fault on, in place of one of the same name."""
        self.active[name] = fault

    def clear(self, name: str | None = None) -> None:
        """Switch a fault off, or all of them."""
        for each in [name] if name else list(self.active):
            self.active.pop(each, None)

    def draw(
        self, account: str, operation: str, reference_id: str = ""
    ) -> tuple[Fault | None, Fault | None]:
        """Return the faults of a request: a latency, and another one, the first that was set."""
        hits: dict[bool, Fault] = {}
        for name, fault in tuple(self.active.items()):
            is_latency = fault.kind is FaultKind.LATENCY
            if is_latency in hits or not self._hits(fault, account, operation, reference_id):
                continue
            hits[is_latency] = fault
            if fault.count == 1:
                del self.active[name]
            elif fault.count is not None:
                self.active[name] = replace(fault, count=fault.count - 1)
        return hits.get(True), hits.get(False)

    def _hits(self, fault: Fault, account: str, operation: str, reference_id: str) -> bool:
        return (
            fault.account in (None, account)
            and fault.operation in (None, operation)
            and fault.reference_id in (None, reference_id)
            and (fault.probability >= 1 or self._rng.random() < fault.probability)
        )
