"""Answers that went wrong: how each kind of fault looks on the wire."""

from __future__ import annotations

import asyncio
import functools
import json
import socket
import struct
import zlib
from collections.abc import Mapping
from typing import NoReturn

from aiohttp import web

from exporter.simulator.faults import Fault, FaultKind

JSON = "application/json; charset=utf-8"
HTML = "text/html; charset=utf-8"
# The page that a WCF service shows where it cannot even refuse properly.
ERROR_PAGE = (
    "<!DOCTYPE html><html><head><title>Request Error</title></head><body>"
    "<p>The server encountered an error processing the request.</p></body></html>"
)
OTHER_ID = "00000000-0000-4000-8000-000000000000"

# These need the real answer; all others take its place.
ALTERING = frozenset(
    {
        FaultKind.TRUNCATED,
        FaultKind.WRONG_TYPES,
        FaultKind.NAN,
        FaultKind.HUGE,
        FaultKind.TRICKLE,
        FaultKind.WRONG_ID,
    }
)
_DEFAULT_STATUS = {FaultKind.STATUS: 500, FaultKind.REDIRECT: 302}
_TRICKLE_STEPS = 50


def written(fields: Mapping[str, object]) -> bytes:
    """The body of an answer, compact as WCF writes it."""
    return json.dumps(fields, separators=(",", ":")).encode()


def altered(fault: Fault, fields: Mapping[str, object]) -> bytes:
    """The real answer, damaged."""
    match fault.kind:
        case FaultKind.TRUNCATED:
            body = written(fields)
            return body[: len(body) // 2]
        case FaultKind.WRONG_TYPES:
            return written({name: _other_type(value) for name, value in fields.items()})
        case FaultKind.NAN:
            nan = float("nan")
            return written({**fields, "CallDuration": nan, "Price": nan})
        case FaultKind.HUGE:
            return written({**fields, "Padding": "x" * fault.size})
        case FaultKind.WRONG_ID:
            return written({**fields, "ReferenceId": OTHER_ID})
        case _:
            return written(fields)


def replaced(fault: Fault, url: str) -> web.Response:
    """An answer that takes the place of the real one.

    Args:
        fault: neither one of `ALTERING`, nor one that brings no answer at all.
        url: what was asked for, path and query.
    """
    headers = {"Content-Type": HTML}
    body = (ERROR_PAGE if fault.body is None else fault.body).encode()
    match fault.kind:
        case FaultKind.EMPTY:
            headers["Content-Type"], body = JSON, b""
        case FaultKind.NOT_OBJECT:
            headers["Content-Type"] = JSON
            body = (fault.body or "[]").encode()
        case FaultKind.GZIP_BOMB:
            headers |= {"Content-Type": JSON, "Content-Encoding": "gzip"}
            body = _bomb(fault.size)
        case FaultKind.REDIRECT:
            headers["Location"] = fault.location or url
        case FaultKind.RAW:
            headers["Content-Type"] = fault.content_type
            body = (fault.body or "").encode()
    if fault.retry_after is not None:
        headers["Retry-After"] = fault.retry_after
    if fault.date is not None:
        headers["Date"] = fault.date
    status = fault.status if fault.kind in {*_DEFAULT_STATUS, FaultKind.RAW} else 200
    return web.Response(
        status=status or _DEFAULT_STATUS.get(fault.kind, 200), headers=headers, body=body
    )


async def trickle(request: web.BaseRequest, body: bytes, seconds: float) -> web.StreamResponse:
    """Send a body in small pieces, spread over so many seconds."""
    response = web.StreamResponse(headers={"Content-Type": JSON})
    response.content_length = len(body)
    await response.prepare(request)
    step = max(1, -(-len(body) // _TRICKLE_STEPS))
    pieces = [body[at : at + step] for at in range(0, len(body), step)]
    for piece in pieces:
        await asyncio.sleep(seconds / len(pieces))
        await response.write(piece)
    return response


async def reset(request: web.BaseRequest) -> NoReturn:
    """Reset the connection: the peer gets an RST, not an orderly end."""
    transport = request.transport
    if transport is not None:
        connection: socket.socket = transport.get_extra_info("socket")
        # A linger time of 0 is what makes the kernel send an RST.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    await hang()


async def hang() -> NoReturn:
    """Wait until the client has gone, or the server stops: either cancels the request."""
    await asyncio.Event().wait()
    raise AssertionError("nobody sets this event")


@functools.lru_cache(maxsize=2)
def _bomb(size: int) -> bytes:
    """A gzip body of correct JSON with so many bytes of padding, made without holding them."""
    gzip = zlib.compressobj(wbits=31)
    parts = [gzip.compress(b'{"CodeResponse":"100","Padding":"')]
    chunk = b"x" * (1 << 16)
    parts += [gzip.compress(chunk) for _ in range(size // len(chunk))]
    parts += [gzip.compress(chunk[: size % len(chunk)] + b'"}'), gzip.flush()]
    return b"".join(parts)


def _other_type(value: object) -> object:
    return {"value": value} if isinstance(value, str) else [value]
