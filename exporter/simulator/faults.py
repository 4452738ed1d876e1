"""Faults of the simulated API, which can be turned on and off while it runs."""

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
# WCF's error page, which replaces the JSON response.
ERROR_PAGE: Final = (
    "<!DOCTYPE html><html><head><title>Request Error</title></head><body>"
    "<p>The server encountered an error processing the request.</p></body></html>"
)

Header = Annotated[str, StringConstraints(pattern="^[ -~]*$")]


class FaultKind(StrEnum):
    """Kind of a fault; in brackets, the parameters of `Fault` that it uses."""

    LATENCY = "latency"  # a late response (seconds); may be combined with another fault
    HANG = "hang"  # no response; the connection stays open
    RESET = "reset"  # the connection is reset (RST)
    STATUS = "status"  # an HTTP status with an HTML body (status, retry_after, date, body)
    HTML = "html"  # an HTML page with HTTP 200 (body)
    EMPTY = "empty"  # HTTP 200 with an empty body
    TRUNCATED = "truncated"  # the first half of the real response, with a matching length
    WRONG_TYPES = "wrong_types"  # the real response with values of wrong types
    NOT_OBJECT = "not_object"  # JSON that is not an object (body, else `[]`)
    NAN = "nan"  # the real response with NaN as CallDuration and Price
    HUGE = "huge"  # the real response with `size` bytes of padding, still valid JSON
    TRICKLE = "trickle"  # the real response in small pieces (seconds, for the whole body)
    GZIP_BOMB = "gzip_bomb"  # a small gzip body that decompresses to `size` bytes
    WRONG_ID = "wrong_id"  # the real response for another ReferenceId
    REDIRECT = "redirect"  # a redirect (location, status)
    RAW = "raw"  # any body with any status (body, status, retry_after, date)


@dataclass(frozen=True, slots=True, config=CONFIG)
class Fault:
    """A fault, and the requests that it affects; None matches all requests."""

    kind: FaultKind
    probability: Annotated[float, Field(ge=0, le=1)] = 1.0  # share of the matching requests
    account: str | None = None
    operation: str | None = None  # such as `GetSendStatus`
    reference_id: str | None = None  # in upper case
    count: Annotated[int, Field(ge=1)] | None = None  # remaining requests to affect
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    status: Annotated[int, Field(ge=200, le=599)] | None = None
    retry_after: Header | None = None
    date: Header | None = None  # None for the current time
    body: str | None = None
    size: Annotated[int, Field(ge=0, le=256 << 20)] = 1_000_000  # bytes
    location: Header | None = None  # None for an endless redirect to the same URL


def to_json(fields: Mapping[str, object]) -> bytes:
    """Return the body of a response, compact like WCF's."""
    return json.dumps(fields, separators=(",", ":")).encode()


Fields = Mapping[str, object]
Answer = Callable[[], Fields]
"""Returns the real response."""


def _wrong_types(fields: Fields) -> Fields:
    return {k: {"value": v} if isinstance(v, str) else [v] for k, v in fields.items()}


_OTHER_ID: Final = "00000000-0000-4000-8000-000000000000"
# Bodies of faults, and their status if it is not 200.
_PAGES: Final = {FaultKind.STATUS: 500, FaultKind.HTML: 200, FaultKind.REDIRECT: 302}
_BODIES: Final = {FaultKind.NOT_OBJECT: "[]", FaultKind.RAW: "", FaultKind.EMPTY: ""}
_CHANGES: Final[Mapping[FaultKind, Callable[[Fields, Fault], Fields]]] = {
    FaultKind.WRONG_TYPES: lambda fields, _: _wrong_types(fields),
    FaultKind.NAN: lambda fields, _: {**fields, "CallDuration": math.nan, "Price": math.nan},
    FaultKind.HUGE: lambda fields, fault: {**fields, "Padding": "x" * fault.size},
    FaultKind.WRONG_ID: lambda fields, _: {**fields, "ReferenceId": _OTHER_ID},
}


async def respond(fault: Fault, request: web.Request, answer: Answer) -> web.StreamResponse:
    """Respond to a request with a fault."""
    kind, headers = fault.kind, {"Content-Type": JSON}
    if kind in {FaultKind.HANG, FaultKind.RESET}:
        if kind is FaultKind.RESET:
            _reset(request)
        # Until the client disconnects or the server stops, which cancels the request.
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
    """Send a body in small pieces over some seconds."""
    response = web.StreamResponse(headers={"Content-Type": JSON})
    response.content_length = len(body)
    await response.prepare(request)
    step = max(1, -(-len(body) // 50))
    for at in range(0, len(body), step):
        await asyncio.sleep(seconds * step / len(body))
        await response.write(body[at : at + step])
    return response


def _reset(request: web.Request) -> None:
    """Reset the connection: the client gets a RST instead of a FIN."""
    if request.transport is not None:
        connection: socket.socket = request.transport.get_extra_info("socket")
        # With a linger time of 0, the kernel sends a RST.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()


class Faults:
    """The active faults by name."""

    def __init__(self, seed: int = 0) -> None:
        self.active: dict[str, Fault] = {}
        # Seeded, so that runs are repeatable; not used for secrets.
        self._rng = random.Random(f"faults:{seed}")  # noqa: S311

    def set(self, name: str, fault: Fault) -> None:
        """Turn on a fault, replacing one of the same name."""
        self.active[name] = fault

    def clear(self, name: str | None = None) -> None:
        """Turn off a fault, or all of them."""
        for each in [name] if name else list(self.active):
            self.active.pop(each, None)

    def draw(
        self, account: str, operation: str, reference_id: str = ""
    ) -> tuple[Fault | None, Fault | None]:
        """Return the faults of a request: at most one latency and one other, the oldest first."""
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
