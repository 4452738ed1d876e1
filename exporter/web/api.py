"""The HTTP API under `/api/v1`: programs hand calls over, and ask what became of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import web
from aiohttp.typedefs import Middleware
from pydantic import BaseModel
from pydantic_core import to_json

import exporter
from exporter.calls import reference_id
from exporter.config import ApiConfig, TokenConfig
from exporter.errors import LedgerError, NoRoomError
from exporter.ledger.ledger import Ledger
from exporter.ledger.listing import FINISHED, page
from exporter.ledger.records import DELETED, CallRecord
from exporter.secrets import Secret
from exporter.sources.api import ApiSource
from exporter.web import schemas
from exporter.web.access import credentials
from exporter.web.openapi import openapi
from exporter.web.problems import (
    LEDGER_RETRY,
    STARTING_RETRY,
    ProblemError,
    retry_later,
)
from exporter.web.request_body import Reader, read_query
from exporter.web.status import App

PREFIX: Final = "/api/v1"

MAX_LISTINGS: Final = 4
"""Listings of one token at a time."""

# Seconds that a listing may wait and take.
_LISTING_TIMEOUT: Final = 10.0
_KEPT: Final = ("Allow", "Retry-After", "WWW-Authenticate")

_Handler = Callable[["_Client", web.Request], Awaitable[web.Response]]


class _Client:
    """Who asks, and what it may see."""

    def __init__(self, token: TokenConfig, accounts: tuple[str, ...], models: _Models) -> None:
        self.name = token.name
        self.accounts = accounts
        self._models = models

    @property
    def requests(self) -> schemas.Requests:
        return self._models.of(self.accounts)


class _Models:
    """The models of requests, for as long as the configuration has these accounts and labels."""

    def __init__(self, accounts: tuple[str, ...] = (), labels: tuple[str, ...] = ()) -> None:
        self._made_for = accounts, labels
        self._made: dict[tuple[str, ...], schemas.Requests] = {}

    def for_(self, accounts: tuple[str, ...], labels: tuple[str, ...]) -> _Models:
        """Return these, or new ones where accounts or labels have changed."""
        return self if self._made_for == (accounts, labels) else _Models(accounts, labels)

    def of(self, accounts: tuple[str, ...]) -> schemas.Requests:
        """Return the models for a token of these accounts."""
        if accounts not in self._made:
            self._made[accounts] = schemas.requests(accounts, self._made_for[1])
        return self._made[accounts]


class Api:
    """Answers the requests of programs that hold a token.

    Args:
        app: takes calls in, and knows them.
        external_path: what the paths begin with for clients.
    """

    def __init__(self, app: App, external_path: str = "") -> None:
        self._app = app
        self._external_path = external_path
        self._reader = Reader()
        self._listings = Counter[str]()  # those under way, by the name of the token
        self._models = _Models()

    def routes(self) -> list[web.RouteDef]:
        """Return the paths and their handlers."""
        calls = f"{PREFIX}/calls"
        # Patterns of their own: without, braces would be left out.
        one = f"{calls}/{{account:[^/]+}}/{{reference_id:[^/]+}}"
        return [
            web.post(calls, self._guarded(self._watch)),
            web.get(calls, self._guarded(self._list)),
            web.get(one, self._guarded(self._show)),
            web.delete(one, self._guarded(self._delete)),
            web.get(f"{PREFIX}/status", self._guarded(self._status)),
            web.get(f"{PREFIX}/openapi.json", self._guarded(self._openapi)),
        ]

    def _guarded(self, handler: _Handler) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def guarded(request: web.Request) -> web.Response:
            try:
                return await handler(self._client(request), request)
            except ProblemError as error:
                return error.response()
            except LedgerError as error:
                return retry_later(503, str(error), LEDGER_RETRY).response()

        return guarded

    def _client(self, request: web.Request) -> _Client:
        config = self._app.config
        if config is None:
            raise retry_later(503, "the exporter is starting", STARTING_RETRY)
        if not config.watch.api.tokens:
            raise ProblemError(404, "there is no API; `watch.api.tokens` turns it on")
        token = token_of(config.watch.api, request)
        if token is None:
            raise ProblemError(
                401,
                "expected a token that is known, in the header `Authorization: Bearer TOKEN`",
                headers={"WWW-Authenticate": 'Bearer realm="esms-exporter"'},
            )
        accounts = tuple(account.name for account in config.accounts)
        self._models = self._models.for_(accounts, config.watch.labels)
        allowed = accounts if token.accounts is None else token.accounts
        mine = tuple(name for name in accounts if name in allowed)
        return _Client(token, mine, self._models)

    # Calls.

    async def _watch(self, client: _Client, request: web.Request) -> web.Response:
        source = self._app.sources[ApiSource]
        try:
            calls = await self._reader.calls(request, client.requests)
        except ProblemError:
            source.refused()
            raise
        try:
            count = await source.push(calls)
        except NoRoomError as error:
            raise retry_later(429, str(error), error.retry_after) from None
        return _json(schemas.Accepted(added=count.added, known=count.known), 202)

    async def _list(self, client: _Client, request: web.Request) -> web.Response:
        query = read_query(client.requests.query, request)
        if self._listings[client.name] >= MAX_LISTINGS:
            raise retry_later(429, f"expected at most {MAX_LISTINGS} listings at a time", 1)
        ledger = self._app.ledger
        listing = asyncio.create_task(
            ledger.read(
                _page,
                ledger,
                client.accounts if query.account is None else [query.account],
                query.state,
                query.result,
                query.after,
                query.limit,
            )
        )
        self._listings[client.name] += 1

        def end(listing: asyncio.Task[bytes]) -> None:
            self._listings[client.name] -= 1
            if not listing.cancelled():
                listing.exception()  # retrieved, also where the client is gone

        listing.add_done_callback(end)
        try:
            async with asyncio.timeout(_LISTING_TIMEOUT):
                # The thread goes on with it: until then, it counts.
                return _json(await asyncio.shield(listing))
        except TimeoutError:
            raise retry_later(503, "the listing takes too long", LEDGER_RETRY) from None

    async def _show(self, client: _Client, request: web.Request) -> web.Response:
        ledger = self._app.ledger
        record = await self._found(client, request)
        account = self._app.accounts.get(record.account)
        call = account.poller.calls.get(record.id) if account else None
        details: dict[str, Any] = {}  # Any: of several types
        if account is not None and call is not None:
            details = {
                "polls": call.polls,
                "last_polled": schemas.when(
                    (call.last_polled and call.last_polled - ledger.clock.ahead) or None
                ),
                "next_due": schemas.when(account.poller.next_due(call)),
            }
        return _json(schemas.CallDetails(**_without_id(ledger.shown(record)), **details))

    async def _delete(self, client: _Client, request: web.Request) -> web.Response:
        record = await self._found(client, request)
        if record.state != FINISHED and await self._app.calls.delete(record.id):
            return web.Response(status=204)
        await self._found(client, request)  # unless another request has just deleted it
        raise ProblemError(409, "the call has finished")

    async def _found(self, client: _Client, request: web.Request) -> CallRecord:
        account, text = request.match_info["account"], request.match_info["reference_id"]
        try:
            name = reference_id(text)
        except ValueError as error:
            raise ProblemError(400, f"expected an id; the text {error}") from None
        ledger = self._app.ledger
        if account in client.accounts:
            found = await ledger.call(ledger.store.find, account, name)
            if found and found.state != DELETED:
                return found
        raise ProblemError(404, "no such call")

    # The exporter.

    async def _status(self, client: _Client, _request: web.Request) -> web.Response:
        app = self._app
        problems = app.not_ready()
        status = schemas.ExporterStatus(
            version=exporter.__version__,
            ready=not problems,
            problems=problems,
            watched=app.calls.count,
            accounts=[
                schemas.AccountStatus(
                    name=line.name,
                    authorized=line.authorized,
                    paused=line.paused,
                    paused_until=schemas.when(line.paused_until),
                    watched=line.watched,
                    overdue=line.overdue,
                    lag_seconds=line.lag,
                )
                for line in (app.accounts[name].status for name in client.accounts)
            ],
        )
        return _json(status)

    async def _openapi(self, client: _Client, _request: web.Request) -> web.Response:
        return web.Response(
            body=to_json(openapi(client.requests, self._external_path), indent=2),
            content_type="application/json",
        )


def as_problems(route_prefix: str) -> Middleware:
    """Return what says in the API's own way what the HTTP server says of paths and methods."""
    api = f"{route_prefix}{PREFIX}"

    @web.middleware
    async def answer(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPException as error:
            if not request.path.startswith(f"{api}/"):
                raise
            kept = {name: error.headers[name] for name in _KEPT if name in error.headers}
            where = f"see {api}/openapi.json for what there is"
            if error.status not in {404, 405}:
                where = (error.text or "").strip()
            return ProblemError(error.status, where, headers=kept).response()

    return answer


def token_of(config: ApiConfig, request: web.Request) -> TokenConfig | None:
    """Return the token that a request shows, if it is known."""
    secret = Secret(credentials(request, "bearer"))
    # All of them, so that the time does not tell which one it was. None is empty.
    found = [token for token in config.tokens if token.token == secret]
    return found[0] if found else None


def _without_id(record: CallRecord) -> dict[str, Any]:  # Any: of several types
    fields = schemas.as_call(record)
    del fields["id"]
    return fields


def _page(ledger: Ledger, *query: Any) -> bytes:  # Any: as of `page`
    # Made here: a thousand calls take the event loop 10 ms.
    records, last = page(ledger.database, *query)
    calls = [schemas.Call(**_without_id(ledger.shown(record))) for record in records]
    return to_json(schemas.Page(calls=calls, next=None if last is None else str(last)))


def _json(body: BaseModel | bytes, status: int = 200) -> web.Response:
    return web.Response(
        status=status,
        body=(body if isinstance(body, bytes) else to_json(body)) + b"\n",
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )
