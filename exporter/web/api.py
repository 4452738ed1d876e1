"""The HTTP API under `/api/v1`: programs push calls, and read and delete them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from typing import Final, NamedTuple

from aiohttp import web
from aiohttp.typedefs import Middleware
from pydantic import BaseModel
from pydantic_core import to_json

import exporter
from exporter.config import ApiConfig, TokenConfig
from exporter.errors import CapacityError, LedgerError
from exporter.ids import reference_id
from exporter.ledger.calls import FINISHED, find_call, list_calls
from exporter.ledger.ledger import Ledger
from exporter.ledger.types import DELETED, CallRecord
from exporter.secrets import Secret
from exporter.sources.api import ApiSource
from exporter.web import schemas
from exporter.web.access import credentials
from exporter.web.request_body import CallsReader, ProblemError, parse_query
from exporter.web.schemas import Scope
from exporter.web.status import App

PREFIX: Final = "/api/v1"

MAX_LISTINGS: Final = 4
"""Listings of one token at a time."""

STARTING_RETRY: Final = 1
LEDGER_RETRY: Final = 5
"""Seconds after which a client may retry while the exporter starts, or the ledger fails."""

# Seconds that a listing may wait and take.
_LISTING_TIMEOUT: Final = 10.0
_KEPT_HEADERS: Final = ("Allow", "Retry-After", "WWW-Authenticate")


class _Client(NamedTuple):
    token: str
    scope: Scope


_Handler = Callable[[_Client, web.Request], Awaitable[web.Response]]


class Api:
    """Answers the requests of programs that hold a token.

    Args:
        app: where calls are watched.
        reader: reads the bodies of requests.
        external_path: what the paths begin with for clients.
    """

    def __init__(self, app: App, reader: CallsReader, external_path: str = "") -> None:
        self._app = app
        self._reader = reader
        self._external_path = external_path
        self._listings = Counter[str]()  # those under way, by the name of the token

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
                return ProblemError(503, str(error), retry_after=LEDGER_RETRY).response()

        return guarded

    def _client(self, request: web.Request) -> _Client:
        config = self._app.config
        if config is None:
            raise ProblemError(503, "the exporter is starting", retry_after=STARTING_RETRY)
        if not config.watch.api.tokens:
            raise ProblemError(404, "there is no API; `watch.api.tokens` turns it on")
        token = token_of(config.watch.api, request)
        if token is None:
            raise ProblemError(
                401,
                "expected a known token, in the header `Authorization: Bearer TOKEN`",
                headers={"WWW-Authenticate": 'Bearer realm="esms-exporter"'},
            )
        names = (account.name for account in config.accounts)
        accounts = [name for name in names if token.accounts is None or name in token.accounts]
        return _Client(token.name, Scope(tuple(accounts), config.watch.labels))

    # Calls.

    async def _watch(self, client: _Client, request: web.Request) -> web.Response:
        source = self._app.sources[ApiSource]
        try:
            calls = await self._reader.read(request, client.scope)
        except ProblemError:
            source.refused()
            raise
        try:
            count = await source.push(calls)
        except CapacityError as error:
            raise ProblemError(429, str(error), retry_after=error.retry_after) from None
        return _json(schemas.Accepted(added=count.added, known=count.known), 202)

    async def _list(self, client: _Client, request: web.Request) -> web.Response:
        query = parse_query(request, client.scope)
        if self._listings[client.token] >= MAX_LISTINGS:
            raise ProblemError(429, f"expected at most {MAX_LISTINGS} listings", retry_after=1)
        ledger = self._app.ledger
        accounts = [query.account] if query.account else client.scope.accounts
        listing = asyncio.create_task(ledger.read(_page, ledger, accounts, query))
        self._listings[client.token] += 1

        def end(listing: asyncio.Task[bytes]) -> None:
            self._listings[client.token] -= 1
            if not listing.cancelled():
                listing.exception()  # retrieved, also where the client is gone

        listing.add_done_callback(end)
        try:
            async with asyncio.timeout(_LISTING_TIMEOUT):
                # The thread goes on with it: until then, it counts.
                return _json(await asyncio.shield(listing))
        except TimeoutError:
            raise ProblemError(
                503, "the listing takes too long", retry_after=LEDGER_RETRY
            ) from None

    async def _show(self, client: _Client, request: web.Request) -> web.Response:
        ledger = self._app.ledger
        record = await self._found(client, request)
        fields = ledger.to_machine_time(record)._asdict()
        account = self._app.accounts.get(record.account)
        if account is not None and (call := account.poller.calls.get(record.id)):
            fields["polls"] = call.polls
            if call.last_polled:
                fields["last_polled"] = call.last_polled - ledger.clock.ahead
            fields["next_due"] = account.poller.next_due(call)
        return _json(schemas.CallDetails.model_validate(fields))

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
        if account in client.scope.accounts:
            ledger = self._app.ledger
            found = await ledger.execute(find_call, account, name, canaries=False)
            if found and found.state != DELETED:
                return found
        raise ProblemError(404, "no such call")

    # The exporter.

    async def _status(self, client: _Client, _request: web.Request) -> web.Response:
        app = self._app
        problems = app.not_ready()
        names = client.scope.accounts
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

    async def _openapi(self, client: _Client, _request: web.Request) -> web.Response:
        document = schemas.openapi(client.scope, self._external_path)
        return _json(to_json(document, indent=2))


def problem_middleware(route_prefix: str) -> Middleware:
    """Return what answers with problem details where aiohttp refuses a request to the API."""
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
            kept = {name: error.headers[name] for name in _KEPT_HEADERS if name in error.headers}
            detail = (error.text or "").strip()
            if error.status in {404, 405}:
                detail = f"see {api}/openapi.json for what there is"
            return ProblemError(error.status, detail, headers=kept).response()

    return answer


def token_of(config: ApiConfig, request: web.Request) -> TokenConfig | None:
    """Return the token that a request shows, if it is known."""
    secret = Secret(credentials(request, "bearer"))
    # All of them, so that the time does not tell which one it was. None is empty.
    found = [token for token in config.tokens if token.token == secret]
    return found[0] if found else None


def _page(ledger: Ledger, accounts: Collection[str], query: schemas.CallsQuery) -> bytes:
    # In the thread of listings: a thousand calls take 10 ms.
    filters = query.state or None, query.result or None
    records, last = list_calls(ledger.database, accounts, *filters, query.after, query.limit)
    calls = [schemas.Call.model_validate(ledger.to_machine_time(record)) for record in records]
    return to_json(schemas.Page(calls=calls, next=None if last is None else str(last)))


def _json(body: BaseModel | bytes, status: int = 200) -> web.Response:
    return web.Response(
        status=status,
        body=(body if isinstance(body, bytes) else to_json(body)) + b"\n",
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )
