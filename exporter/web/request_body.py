"""Reading requests at a bounded cost: the body, as sent and as decompressed, and its validation.

What is wrong with a request is answered with problem details (RFC 9457).
"""

from __future__ import annotations

import asyncio
import zlib
from codecs import BOM_UTF8
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from aiohttp import HttpVersion11, web
from pydantic import ValidationError
from pydantic_core import from_json, to_json

from exporter.ids import ReferenceId
from exporter.ledger.types import NewCall
from exporter.web import schemas
from exporter.web.schemas import MAX_CALLS, ItemProblem, Scope

MAX_BODY: Final = 16 << 20
"""Bytes, as sent and as decompressed; 10,000 calls with five long labels each."""

MAX_PROBLEMS: Final = 100
"""Problems of a request that are listed one by one."""

_ENCODINGS: Final = frozenset({"gzip", "x-gzip", "deflate"})

# Larger bodies are parsed in a thread: that takes long enough to delay polls.
_INLINE: Final = 64 << 10

# The largest request has a third of it; each value takes some 100 bytes of memory.
_MAX_SEPARATORS: Final = 500_000

_MESSAGES: Final = {
    "missing": "missing required key",
    "extra_forbidden": "unknown key",
    "model_type": "expected an object",
    "dict_type": "expected an object",
    "list_type": "expected a list",
    "string_type": "expected text",
    "string_too_long": "expected at most {max_length} characters",
    "string_pattern_mismatch": "expected text without control characters",
    "too_long": "expected at most {max_length} items",
    "int_parsing": "expected a whole number",
    "greater_than_equal": "expected at least {ge}",
    "less_than_equal": "expected at most {le}",
}


class ProblemError(Exception):
    """Ends a request with problem details.

    Args:
        status: the HTTP status.
        detail: what happened.
        errors: what is wrong with parts of the request.
        retry_after: seconds after which the request may succeed.
        headers: more headers.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        errors: Sequence[ItemProblem] = (),
        *,
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        title = HTTPStatus(status).phrase
        self._details = schemas.ProblemDetails(
            title=title, status=status, detail=detail, errors=list(errors) or None
        )
        self._headers = dict(headers or {})
        if retry_after is not None:
            self._headers["Retry-After"] = str(retry_after)

    def response(self) -> web.Response:
        """Return the response to the request."""
        return web.Response(
            status=self._details.status,
            body=to_json(self._details, exclude_none=True) + b"\n",
            content_type="application/problem+json",
            headers=self._headers,
        )


class CallsReader:
    """Reads the calls of `POST /calls`: small bodies inline, large ones one by one in a thread.

    Args:
        timeout: seconds in which a body has to be received.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._turn = asyncio.Lock()

    async def read(self, request: web.Request, scope: Scope) -> list[NewCall]:
        """Return the calls of a request.

        Raises:
            ProblemError: the request is invalid, too large or too slow.
        """
        compressed = _is_compressed(request)
        body = await self._receive(request)
        if len(body) <= _INLINE and not compressed:
            return parse_calls(scope, body)
        async with self._turn:
            if compressed:
                body = await asyncio.to_thread(_decompress, body)
            return await asyncio.to_thread(parse_calls, scope, body)

    async def _receive(self, request: web.Request) -> bytes:
        if (request.content_length or 0) > MAX_BODY:
            raise _too_large()
        expects = request.headers.get("Expect", "").lower()
        if expects == "100-continue" and request.version >= HttpVersion11:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0  # the answer has not begun
        body = bytearray()
        try:
            async with asyncio.timeout(self._timeout):
                async for piece in request.content.iter_any():
                    body += piece
                    if len(body) > MAX_BODY:
                        raise _too_large()
        except (web.RequestPayloadError, ConnectionError):
            raise ProblemError(400, "the body cannot be read") from None
        except TimeoutError:
            raise ProblemError(408, "the body was not received in time") from None
        return bytes(body)


def _decompress(body: bytes) -> bytes:
    """Decompress gzip or zlib, as the first bytes tell, up to the size that a body may have."""
    stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    try:
        decompressed = stream.decompress(body, MAX_BODY + 1)
    except zlib.error:
        decompressed = b""
    if len(decompressed) > MAX_BODY:
        raise _too_large()
    if not stream.eof or stream.unused_data:
        raise ProblemError(400, "the body is not a single stream of gzip or zlib")
    return decompressed


def _too_large() -> ProblemError:
    return ProblemError(413, f"expected at most {MAX_BODY >> 20} MiB, as sent and as decompressed")


def _is_compressed(request: web.Request) -> bool:
    header = ",".join(request.headers.getall("Content-Encoding", ()))
    encodings = [part.strip().lower() for part in header.split(",")]
    encodings = [encoding for encoding in encodings if encoding not in {"", "identity"}]
    if len(encodings) > 1 or not _ENCODINGS.issuperset(encodings):
        raise ProblemError(
            415,
            "expected a body without Content-Encoding, or one of `gzip` and `deflate`",
            headers={"Accept-Encoding": "gzip, deflate"},
        )
    return bool(encodings)


def parse_calls(scope: Scope, body: bytes) -> list[NewCall]:
    """Return the calls of the body of `POST /calls`.

    Raises:
        ProblemError: with the first of its problems, if it has any.
    """
    # The parser holds the interpreter's lock until it is done: not with millions of values.
    if sum(map(body.count, (b",", b":", b"[", b"{"))) > _MAX_SEPARATORS:
        raise ProblemError(413, f"expected no more values than {MAX_CALLS} calls have")
    try:
        document: Any = from_json(body.removeprefix(BOM_UTF8))  # Any: JSON
    except ValueError as error:
        raise ProblemError(400, f"the body is not JSON: {error}") from None
    try:
        items = schemas.NewCalls.model_validate(document, context=scope).calls
    except ValidationError as error:
        too_long = any(detail["type"] == "too_long" for detail in error.errors())
        raise _invalid(_problems_of(error), 413 if too_long else 400) from None
    calls: list[NewCall] = []
    problems: list[ItemProblem] = []
    for index, item in enumerate(items):
        try:
            call = schemas.NewCall.model_validate(item, context=scope)
            calls.append(NewCall(call.account, ReferenceId(call.reference_id), call.labels))
        except ValidationError as error:
            problems += _problems_of(error, ("calls", index))
            if len(problems) >= MAX_PROBLEMS:
                raise _invalid(problems[:MAX_PROBLEMS], more=True) from None
    if problems:
        raise _invalid(problems)
    return calls


def parse_query(request: web.Request, scope: Scope) -> schemas.CallsQuery:
    """Return the parameters of `GET /calls`.

    Raises:
        ProblemError: they are invalid.
    """
    for name in request.query:
        if len(request.query.getall(name)) > 1:
            raise ProblemError(400, f"expected `{name[:64]}` once")
    try:
        return schemas.CallsQuery.model_validate(dict(request.query), context=scope)
    except ValidationError as error:
        raise _invalid(_problems_of(error)) from None


def _problems_of(error: ValidationError, place: Sequence[str | int] = ()) -> list[ItemProblem]:
    """Return what is wrong with the part of a request that is at `place`."""
    problems = []
    for detail in error.errors(include_url=False, include_input=False):
        message = _MESSAGES.get(detail["type"], detail["msg"]).format_map(detail.get("ctx", {}))
        # Behind a key that is wrong, pydantic puts a mark of its own.
        parts = (*place, *(part for part in detail["loc"] if part != "[key]"))
        # A JSON pointer (RFC 6901); keys are what the client sent.
        pointer = "".join(
            f"/{str(part)[:64].replace('~', '~0').replace('/', '~1')}" for part in parts
        )
        problems.append(ItemProblem(pointer=pointer, detail=message))
    return problems


def _invalid(
    problems: Sequence[ItemProblem], status: int = 400, *, more: bool = False
) -> ProblemError:
    count = f"{'at least ' if more else ''}{len(problems)} problem{'s' * (len(problems) != 1)}"
    detail = f"{count} in the request; nothing is added"
    return ProblemError(status, detail, problems[:MAX_PROBLEMS])
