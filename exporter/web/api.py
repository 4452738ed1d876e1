"""The HTTP API under `/api/v1`: calls, notifications, and the status of the exporter."""

from __future__ import annotations

import asyncio
import zlib
from codecs import BOM_UTF8
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import Final, TypeAlias, TypeVar

from aiohttp import HttpVersion11, web
from aiohttp.typedefs import Handler
from pydantic import BaseModel
from pydantic_core import to_json

import exporter
from exporter.app import App
from exporter.config import TokenConfig
from exporter.errors import CapacityError, LedgerError
from exporter.ids import ReferenceId, reference_id
from exporter.ledger.calls import FINISHED, find_call, list_calls
from exporter.ledger.engine import Database
from exporter.ledger.history import CallHistory, EventKind, call_history
from exporter.ledger.ledger import Ledger
from exporter.ledger.notifications import (
    NotificationRecord,
    drop_notifications,
    find_notifications,
    list_notifications,
)
from exporter.ledger.types import DELETED, CallRecord, NewCall
from exporter.secrets import Secret
from exporter.web import schemas
from exporter.web.access import BEARER, Slots, configuration, credentials, refusal
from exporter.web.schemas import MAX_CALLS, ProblemError, Scope, validate

PREFIX: Final = "/api/v1"

MAX_BODY: Final = 16 << 20
"""Bytes, both as sent and decompressed: room for 10,000 calls with five long labels each."""

MAX_LISTINGS: Final = 4
"""Concurrent listings per token."""

# Seconds until clients should retry while the ledger fails.
_LEDGER_RETRY: Final = 5
# Larger bodies are parsed in a thread, because parsing them would delay polls.
_INLINE: Final = 64 << 10
# The largest valid request has a third as many values; a value takes some 100 bytes of memory.
_MAX_SEPARATORS: Final = 500_000
_ENCODINGS: Final = frozenset({"gzip", "x-gzip", "deflate"})
# Time limit of a listing in seconds, including the wait for the thread.
_LISTING_TIMEOUT: Final = 10.0
# Newer versions may write others into a shared ledger.
_EVENTS: Final = frozenset(map(str, EventKind))
_KEPT_HEADERS: Final = ("Allow", "Retry-After", "WWW-Authenticate")

Q = TypeVar("Q", bound=schemas.ListQuery)
FoundCall: TypeAlias = tuple[CallRecord, CallHistory]


class Api:
    """Handlers of the API. `external_path` is the prefix of the paths for clients."""

    def __init__(
        self, app: App, body_timeout: float, route_prefix: str = "", external_path: str = ""
    ) -> None:
        self._app = app
        self._body_timeout = body_timeout  # seconds
        self._prefix = f"{route_prefix}{PREFIX}/"
        self._external_path = external_path
        self._parsing = asyncio.Lock()  # one large body at a time
        # Keyed by the name of the token.
        self._listings = defaultdict[str, Slots](lambda: Slots(MAX_LISTINGS))

    def routes(self) -> list[web.RouteDef]:
        calls, notifications = f"{PREFIX}/calls", f"{PREFIX}/notifications"
        # Explicit patterns: by default, aiohttp's do not match braces.
        one = f"{calls}/{{account:[^/]+}}/{{reference_id:[^/]+}}"
        notification = f"{notifications}/{{id:[0-9]{{1,18}}}}"
        return [
            web.post(calls, self._authorized(self._watch)),
            web.get(calls, self._authorized(partial(self._list, schemas.CallsQuery, _calls))),
            web.get(one, self._authorized(self._show)),
            web.delete(one, self._authorized(self._delete)),
            web.get(
                notifications,
                self._authorized(partial(self._list, schemas.NotificationsQuery, _notifications)),
            ),
            web.post(f"{notification}/retry", self._authorized(self._retry)),
            web.delete(notification, self._authorized(self._drop)),
            web.get(f"{PREFIX}/status", self._authorized(self._status)),
            web.get(f"{PREFIX}/openapi.json", self._authorized(self._openapi)),
        ]

    @web.middleware
    async def problems(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer failed requests; those to the API with problem details."""
        failure: web.HTTPException
        try:
            return await handler(request)
        except ProblemError as error:
            return error.response
        except CapacityError as error:
            failure = refusal(web.HTTPTooManyRequests, str(error), error.retry_after)
        except LedgerError as error:
            failure = refusal(web.HTTPServiceUnavailable, str(error), _LEDGER_RETRY)
        except web.HTTPException as error:
            failure = error
        if not request.path.startswith(self._prefix):
            raise failure
        detail = (failure.text or "").strip()
        if failure.status in {404, 405}:
            detail = f"see {self._prefix}openapi.json for the paths and methods"
        headers = {name: failure.headers[name] for name in _KEPT_HEADERS if name in failure.headers}
        return ProblemError(failure.status, detail, headers=headers).response

    def _authorized(
        self, handler: Callable[[Scope, web.Request], Awaitable[web.Response]]
    ) -> Handler:
        async def authorized(request: web.Request) -> web.StreamResponse:
            config = configuration(self._app)
            if not config.watch.api.tokens:
                raise ProblemError(404, "the API is off; `watch.api.tokens` turns it on")
            if (token := token_of(self._app, request)) is None:
                raise ProblemError(
                    401,
                    "expected a valid token in the header `Authorization: Bearer TOKEN`",
                    headers={"WWW-Authenticate": BEARER},
                )
            names = (account.name for account in config.accounts)
            accounts = [name for name in names if token.accounts is None or name in token.accounts]
            scope = Scope(tuple(accounts), config.watch.labels, token.name)
            return await handler(scope, request)

        return authorized

    # Calls.

    async def _watch(self, scope: Scope, request: web.Request) -> web.Response:
        source = self._app.sources.api
        try:
            calls = await self._read_calls(scope, request)
        except (ProblemError, web.HTTPException):
            source.refused()
            raise
        count = await source.push(calls)
        return _json(schemas.Accepted(added=count.added, known=count.known), 202)

    async def _read_calls(self, scope: Scope, request: web.Request) -> list[NewCall]:
        header = ",".join(request.headers.getall("Content-Encoding", ()))
        encodings = [part.strip().lower() for part in header.split(",")]
        encodings = [encoding for encoding in encodings if encoding not in {"", "identity"}]
        if len(encodings) > 1 or not _ENCODINGS.issuperset(encodings):
            raise ProblemError(
                415,
                "expected a Content-Encoding of `gzip` or `deflate`, or none",
                headers={"Accept-Encoding": "gzip, deflate"},
            )
        body = await self._receive(request)
        if len(body) <= _INLINE and not encodings:
            return parse_calls(scope, body)
        async with self._parsing:
            if encodings:
                body = await asyncio.to_thread(_decompress, body)
            return await asyncio.to_thread(parse_calls, scope, body)

    async def _receive(self, request: web.Request) -> bytes:
        if (request.content_length or 0) > MAX_BODY:
            raise _too_large()
        expects = request.headers.get("Expect", "").lower()
        if expects == "100-continue" and request.version >= HttpVersion11:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0  # not the start of the response
        try:
            async with asyncio.timeout(self._body_timeout):
                return await request.read()
        except (web.RequestPayloadError, ConnectionError):
            raise ProblemError(400, "the body cannot be read") from None
        except TimeoutError:
            raise ProblemError(408, "the body was not received in time") from None

    async def _list(
        self,
        model: type[Q],
        read: Callable[[Ledger, Collection[str], Q], bytes],
        scope: Scope,
        request: web.Request,
    ) -> web.Response:
        """Return a page of a listing, which `read` reads in the thread of listings."""
        if len(request.query) > len(set(request.query)):
            raise ProblemError(400, "expected each parameter once")
        query = validate(model, dict(request.query), scope)
        ledger = self._app.ledger
        accounts = [query.account] if query.account else scope.accounts

        async def page() -> bytes:
            # The thread keeps running if the client disconnects: hold the slot until it is done.
            async with self._listings[scope.token]:
                return await ledger.read(read, ledger, accounts, query)

        try:
            async with asyncio.timeout(_LISTING_TIMEOUT):
                return _json(await asyncio.shield(page()))
        except TimeoutError:
            raise LedgerError("the listing took too long") from None

    async def _show(self, scope: Scope, request: web.Request) -> web.Response:
        return _json(call_details(self._app, *await self._find(scope, request)))

    async def _delete(self, scope: Scope, request: web.Request) -> web.Response:
        record, _ = await self._find(scope, request)
        if record.state != FINISHED and await self._app.calls.delete(record.id):
            return web.Response(status=204)
        await self._find(scope, request)  # raises 404 if another request deleted the call
        raise ProblemError(409, "the call has finished")

    async def _find(self, scope: Scope, request: web.Request) -> FoundCall:
        try:
            found = await find_named(self._app, scope.accounts, request)
        except ValueError as error:
            raise ProblemError(400, str(error)) from None
        if found is None:
            raise ProblemError(404, "no such call")
        return found

    # Notifications.

    async def _retry(self, scope: Scope, request: web.Request) -> web.Response:
        record = await self._find_notification(scope, request)
        if await self._app.notify.retry(record.id):
            return web.Response(status=204)
        await self._find_notification(scope, request)  # raises 404 if it was delivered now
        if record.target not in (target.name for target in self._app.notify.statuses):
            raise ProblemError(409, "the target is not configured")
        raise ProblemError(409, "the notification is being sent now")

    async def _drop(self, scope: Scope, request: web.Request) -> web.Response:
        record, ledger = await self._find_notification(scope, request), self._app.ledger
        if await ledger.execute(drop_notifications, ledger.clock, [record.id]):
            return web.Response(status=204)
        await self._find_notification(scope, request)  # raises 404 if it was delivered now
        raise ProblemError(409, "the notification is being sent now")

    async def _find_notification(self, scope: Scope, request: web.Request) -> NotificationRecord:
        row, ledger = int(request.match_info["id"]), self._app.ledger
        found = await ledger.execute(find_notifications, ledger.clock, [row])
        if (record := found.get(row)) is None or record.account not in scope.accounts:
            raise ProblemError(404, "no such notification")
        return record

    # The exporter.

    async def _status(self, scope: Scope, _request: web.Request) -> web.Response:
        app, names = self._app, scope.accounts
        problems = app.not_ready()
        accounts = (app.accounts[name].status for name in names if name in app.accounts)
        return _json(
            schemas.ExporterStatus(
                version=exporter.__version__,
                ready=not problems,
                problems=problems,
                watched=app.calls.count,
                accounts=[schemas.AccountStatus.model_validate(status) for status in accounts],
                standby={name: held for name, held in app.standby.items() if name in names},
            )
        )

    async def _openapi(self, scope: Scope, _request: web.Request) -> web.Response:
        return _json(to_json(schemas.openapi(scope, self._external_path), indent=2))


async def find_named(app: App, accounts: Collection[str], request: web.Request) -> FoundCall | None:
    """Return the call that a path names; None if these accounts have none, or it was deleted.

    Calls of canaries are left out. Raises `ValueError` if the path contains no id.
    """
    account, name = request.match_info["account"], reference_id(request.match_info["reference_id"])
    if account not in accounts:
        return None
    return await app.ledger.call(_find_call, app.ledger.database, account, name)


def _find_call(database: Database, account: str, name: str) -> FoundCall | None:
    # In one snapshot: otherwise the call may finish or be pruned between the queries.
    with database.read() as connection:
        found = find_call(connection, account, name, canaries=False)
        if found is None or found.state == DELETED:
            return None
        return found, call_history(connection, found.id)


def call_details(app: App, record: CallRecord, history: CallHistory) -> schemas.CallDetails:
    """Return a call of the ledger with its history, and how it is polled if it is polled here."""
    ahead = app.ledger.clock.ahead
    fields = {
        **app.ledger.to_machine_time(record)._asdict(),
        "price": history.price,
        "history": [
            event._replace(at=event.at - ahead)
            for event in history.events
            if event.event in _EVENTS
        ],
    }
    account = app.accounts.get(record.account)
    if account is not None and (call := account.poller.calls.get(record.id)):
        fields["polls"] = call.polls
        if call.last_polled:
            fields["last_polled"] = call.last_polled - ahead
        fields["next_due"] = account.poller.next_due(call)
    return schemas.CallDetails.model_validate(fields)


def token_of(app: App, request: web.Request) -> TokenConfig | None:
    """Return the configured token that a request sends, or None."""
    secret = Secret(credentials(request, "bearer"))
    # Compare with every token, so that the response time reveals nothing. Tokens are never empty.
    tokens = app.config.watch.api.tokens if app.config else ()
    found = [token for token in tokens if token.token == secret]
    return found[0] if found else None


def _decompress(body: bytes) -> bytes:
    """Decompress gzip or zlib, detected by the first bytes, up to `MAX_BODY`."""
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
    return ProblemError(413, f"expected at most {MAX_BODY >> 20} MiB, as sent and decompressed")


def parse_calls(scope: Scope, body: bytes) -> list[NewCall]:
    """Return the calls in the body of `POST /calls`; raise `ProblemError` if it is invalid."""
    # Check the number of values first, because the parser holds the GIL until it is done.
    if sum(map(body.count, (b",", b":", b"[", b"{"))) > _MAX_SEPARATORS:
        raise ProblemError(413, f"expected no more values than in {MAX_CALLS} calls")
    calls = validate(schemas.NewCalls, body.removeprefix(BOM_UTF8), scope).calls
    return [
        NewCall(call.account, ReferenceId(call.reference_id), call.labels, call.kind)
        for call in calls
    ]


def _calls(ledger: Ledger, accounts: Collection[str], query: schemas.CallsQuery) -> bytes:
    # Run in the thread of listings, because a thousand calls take 10 ms.
    filters = query.state or None, query.result or None
    records, last = list_calls(ledger.database, accounts, *filters, query.after, query.limit)
    calls = [schemas.Call.model_validate(ledger.to_machine_time(record)) for record in records]
    return to_json(schemas.Page(calls=calls, next=None if last is None else str(last)))


def _notifications(
    ledger: Ledger, accounts: Collection[str], query: schemas.NotificationsQuery
) -> bytes:
    filters = query.target or None, query.state or None
    with ledger.database.read() as connection:
        found = list_notifications(
            connection, ledger.clock, accounts, *filters, query.after, query.limit
        )
    records = [schemas.Notification.model_validate(record) for record in found.records]
    last = None if found.next is None else str(found.next)
    return to_json(schemas.NotificationPage(notifications=records, next=last))


def _json(body: BaseModel | bytes, status: int = 200) -> web.Response:
    return web.Response(
        status=status,
        body=(body if isinstance(body, bytes) else to_json(body)) + b"\n",
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )
