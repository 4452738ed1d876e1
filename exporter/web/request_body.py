"""Reading the body of a request, whose cost is bounded whatever it holds."""

from __future__ import annotations

import asyncio
import re
import zlib
from codecs import BOM_UTF8
from typing import Any, Final

from aiohttp import HttpVersion11, web
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from exporter.config.watch import MAX_LABELS
from exporter.ledger.records import NewCall
from exporter.web.problems import SHOWN, ItemProblem, ProblemError, invalid, problems_of
from exporter.web.schemas import MAX_CALLS, Envelope, Requests

MAX_BODY: Final = 16 << 20
"""Bytes, as sent and as unpacked; 10,000 calls with five long labels each."""

BODY_TIMEOUT: Final = 30.0
"""Seconds that the body of a request may take."""

_ENCODINGS: Final = frozenset({"gzip", "x-gzip", "deflate"})

# Reading more than this takes long enough to be felt by the polls: it is done in a thread.
_INLINE: Final = 64 << 10

# A call with three keys, and with the names and values of all its labels; the mapping around them.
_MAX_VALUES: Final = 3 + MAX_CALLS * (1 + 3 * 2 + MAX_LABELS * 2)

_BETWEEN: Final = b" \t\r\n\f\v,:]}"
# A value or a key, with what stands between it and the one before. Where the text does not end in
# such, it fits anywhere, so that no byte is looked at twice.
_VALUE: Final = re.compile(
    rb"""[\s,:\]}]*+ (?: " [^"\\]*+ (?: \\. [^"\\]*+ )*+ "? | [\[{] | [^\s"\[\]{},:]++ )""",
    re.DOTALL | re.VERBOSE,
)


class Reader:
    """Reads bodies: small ones at once, large ones one after the other in a thread."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def calls(self, request: web.Request, requests: Requests) -> list[NewCall]:
        """Return the calls of a request.

        Raises:
            ProblemError: it is not as it should be.
        """
        compressed = _is_compressed(request)
        body = await _body(request)
        if len(body) <= _INLINE and not compressed:
            return read_calls(requests, body)
        async with self._turn:
            if compressed:
                body = await asyncio.to_thread(_decompress, body)
            return await asyncio.to_thread(read_calls, requests, body)


def _is_compressed(request: web.Request) -> bool:
    header = ",".join(request.headers.getall("Content-Encoding", ()))
    encodings = [name for part in header.split(",") if (name := part.strip().lower())]
    encodings = [name for name in encodings if name != "identity"]
    if len(encodings) > 1 or not _ENCODINGS.issuperset(encodings):
        raise ProblemError(
            415,
            "expected a body without Content-Encoding, or one of `gzip` and `deflate`",
            headers={"Accept-Encoding": "gzip, deflate"},
        )
    return bool(encodings)


async def _body(request: web.Request) -> bytes:
    if (request.content_length or 0) > MAX_BODY:
        raise _too_large()
    expects = request.headers.get("Expect", "").lower()
    if expects == "100-continue" and request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer has not begun
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            async for piece in request.content.iter_any():
                body += piece
                if len(body) > MAX_BODY:
                    raise _too_large()
    except (web.RequestPayloadError, ConnectionError):
        raise ProblemError(400, "the body cannot be read") from None
    except TimeoutError:
        raise ProblemError(408, "the body did not come in time") from None
    return bytes(body)


def _decompress(body: bytes) -> bytes:
    """Unpack a body of gzip or of zlib, as its first bytes tell; no further than `MAX_BODY`."""
    stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    try:
        unpacked = stream.decompress(body, MAX_BODY + 1)
    except zlib.error:
        unpacked = b""
    if len(unpacked) > MAX_BODY:
        raise _too_large()
    if not stream.eof or stream.unused_data:
        raise ProblemError(400, "the body is not a single stream of gzip or zlib")
    return unpacked


def _too_large() -> ProblemError:
    return ProblemError(413, f"expected at most {MAX_BODY >> 20} MiB, as sent and as unpacked")


def read_calls(requests: Requests, body: bytes) -> list[NewCall]:
    """Return the calls of the body of `POST /calls`.

    Raises:
        ProblemError: with the first of its problems, if it has any.
    """
    # The parser lets nobody else have a turn until it is done: not with millions of values.
    if len(body) > _INLINE and _has_too_many_values(body):
        raise ProblemError(413, f"expected no more values than {MAX_CALLS} calls have")
    try:
        document: Any = from_json(body.removeprefix(BOM_UTF8))  # Any: JSON
    except ValueError as error:
        raise ProblemError(400, f"the body is not JSON: {error}") from None
    try:
        told = Envelope.model_validate(document).calls
    except ValidationError as error:
        too_long = any(detail["type"] == "too_long" for detail in error.errors())
        raise invalid(problems_of(error), 413 if too_long else 400) from None
    calls: list[NewCall] = []
    problems: list[ItemProblem] = []
    for index, item in enumerate(told):
        try:
            calls.append(_new_call(requests.call.model_validate(item)))
        except ValidationError as error:
            problems += problems_of(error, ("calls", index))
            if len(problems) >= SHOWN:
                raise invalid(problems[:SHOWN], more=True) from None
    if problems:
        raise invalid(problems)
    return calls


def _new_call(call: Any) -> NewCall:  # Any: of a model that is made at run time
    return NewCall(call.account, call.reference_id, call.labels)


def read_query(model: type[BaseModel], request: web.Request) -> Any:  # Any: made at run time
    """Return the parameters of a request.

    Raises:
        ProblemError: they are not as they should be.
    """
    parameters: dict[str, str] = {}
    for name, value in request.query.items():
        if name in parameters:
            raise ProblemError(400, f"expected `{name[:64]}` once")
        parameters[name] = value
    try:
        return model.model_validate(parameters)
    except ValidationError as error:
        raise invalid(problems_of(error)) from None


def _has_too_many_values(body: bytes) -> bool:
    values = _VALUE.finditer(body.rstrip(_BETWEEN))
    # Step by step, so that others get their turn.
    return any(number > _MAX_VALUES for number, _ in enumerate(values, 1))
