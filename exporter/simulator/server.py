"""HTTP server of the simulated API, with a control API."""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any, Final, Self

from aiohttp import web
from aiohttp.typedefs import Handler
from pydantic import TypeAdapter, ValidationError
from yarl import URL

from exporter.simulator.faults import ERROR_PAGE, JSON, Fault, Faults, respond, to_json
from exporter.simulator.provider import (
    Account,
    Operation,
    Plan,
    Provider,
    Reply,
    count_recent,
    draw_plan,
    normalize_id,
)

BASE_PATH: Final = "/MainService.svc/json"
CONTROL_PATH: Final = "/_simulator"
# Seconds for open requests to finish when the server stops.
SHUTDOWN_TIMEOUT: Final = 0.05
# Host in URLs of a server that listens on all interfaces.
_REACHABLE: Final = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - not bound
SESSION_COOKIE: Final = "ASP.NET_SessionId=1m2a3d4e5u6p; path=/; HttpOnly"

ACCOUNT: Final = TypeAdapter(Account)
_FAULT: Final = TypeAdapter(Fault)
_PLAN: Final = TypeAdapter(Plan)
_OBJECT: Final = TypeAdapter(dict[str, Any])  # a JSON object with fields of the models above
_OBJECTS: Final = TypeAdapter(list[dict[str, Any]])
_CREDENTIALS: Final = TypeAdapter(dict[str, str])

# Operation, account name or `-`, parameters, response.
Listener = Callable[[Operation, str, Mapping[str, str], Reply], None]


class Traffic:
    """Counters of requests.

    Attributes:
        requests: number by account, operation and outcome: the result code, or the kind of the
            fault that changed the response.
        peak_rate: maximum number of requests within one second, by account.
        peak_open: maximum number of concurrent requests, by account.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.requests: Counter[tuple[str, str, str]] = Counter()
        self.peak_rate: Counter[str] = Counter()
        self.peak_open: Counter[str] = Counter()
        self._open: Counter[str] = Counter()
        self._recent: defaultdict[str, deque[float]] = defaultdict(deque)

    @property
    def open(self) -> int:
        """Number of open requests."""
        return self._open.total()

    @contextmanager
    def request(self, account: str) -> Iterator[None]:
        """Count a request of an account, which is open for the duration of the block."""
        now, recent = self._clock(), self._recent[account]
        recent.append(now)
        self._open[account] += 1
        self.peak_rate[account] = max(self.peak_rate[account], count_recent(recent, now))
        self.peak_open[account] = max(self.peak_open[account], self._open[account])
        try:
            yield
        finally:
            self._open[account] -= 1

    def total(self, account: str | None = None, outcome: str | None = None) -> int:
        """Return the number of requests of an account (None: all) with an outcome (None: any)."""
        return sum(
            count
            for (name, _, result), count in self.requests.items()
            if account in (None, name) and outcome in (None, result)
        )


class Simulator:
    """A simulated eSMS API on its own socket.

    Use it as `async with Simulator(...) as simulator`, and poll `simulator.url`.

    Args:
        accounts: the initial accounts.
        seed: the same seed and requests cause the same calls and faults.
        host: the address to listen on; empty for all interfaces.
        port: 0 for any free port.
        ssl_context: for HTTPS.
        find_unknown_ids: whether GetSendStatus treats unknown, well-formed ids as calls, placed at
            the first request with a plan derived from seed and id; otherwise it returns 105.
        draw: returns the plans of calls without one.
        speed: speed of the clock of calls, as a multiple of real time.

    Attributes:
        origin: scheme, host and port; set after the start.
        url: the `base_url` of the API.
        control_url: the base URL of the control API.
        provider: accounts and calls.
        put_account, add_call: methods of the provider.
        faults: the active faults.
        traffic: counters of requests.
    """

    def __init__(
        self,
        *,
        accounts: Iterable[Account] = (),
        seed: int = 0,
        host: str = "127.0.0.1",
        port: int = 0,
        ssl_context: ssl.SSLContext | None = None,
        find_unknown_ids: bool = False,
        draw: Callable[[random.Random], Plan] = draw_plan,
        speed: float = 1.0,
    ) -> None:
        self.provider = Provider(
            accounts, seed=seed, speed=speed, find_unknown_ids=find_unknown_ids, draw=draw
        )
        self.put_account = self.provider.put_account
        self.add_call = self.provider.add_call
        self.faults = Faults(seed)
        self.traffic = Traffic()
        self.origin = self.url = self.control_url = ""
        self._host = host
        self._port = port
        self._ssl = ssl_context
        self._runner: web.AppRunner | None = None
        self._listeners: list[Listener] = []
        self._control_routes = [
            web.get(f"{CONTROL_PATH}/state", self._get_state),
            web.get(f"{CONTROL_PATH}/calls", self._get_calls),
            web.post(f"{CONTROL_PATH}/calls", self._add_calls),
            web.put(f"{CONTROL_PATH}/accounts/{{name}}", self._put_account),
            web.put(f"{CONTROL_PATH}/faults/{{name}}", self._put_fault),
            web.delete(f"{CONTROL_PATH}/faults/{{name}}", self._delete_faults),
            web.delete(f"{CONTROL_PATH}/faults", self._delete_faults),
        ]

    def subscribe(self, listener: Listener) -> None:
        """Call `listener` for each request that reaches the provider, with the response."""
        self._listeners.append(listener)

    @property
    def control_paths(self) -> list[str]:
        """Methods and paths of the control API."""
        return [f"{route.method:7}{route.path}" for route in self._control_routes]

    async def start(self) -> None:
        """Start to listen.

        Raises:
            OSError: the address is not available.
        """
        app = web.Application(middlewares=[self._errors], client_max_size=64 << 20)
        for operation in Operation:
            method = "POST" if operation is Operation.GET_BALANCE else "GET"
            handler = partial(self._answer, operation)
            app.router.add_route(method, f"{BASE_PATH}/{operation}", handler)
        app.router.add_routes(self._control_routes)
        # Cancel the request of a client that disconnects, so that none hangs forever.
        runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT
        )
        await runner.setup()
        site = web.TCPSite(runner, self._host or None, self._port, ssl_context=self._ssl)
        await site.start()
        self._runner = runner
        # An IPv4 address has two parts, an IPv6 one four. With port 0, each family gets a port;
        # `origin` uses the first one.
        self._port = min(runner.addresses, key=len)[1]
        host = _REACHABLE.get(self._host, self._host)
        scheme = "http" if self._ssl is None else "https"
        self.origin = str(URL.build(scheme=scheme, host=host, port=self._port))
        self.url, self.control_url = self.origin + BASE_PATH, self.origin + CONTROL_PATH

    async def stop(self) -> None:
        """Stop listening, and abort open requests."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    # The API.

    async def _answer(self, operation: Operation, request: web.Request) -> web.StreamResponse:
        """Respond like the provider: HTTP 200, with errors in the body."""
        if operation is Operation.GET_BALANCE:
            try:
                params = _CREDENTIALS.validate_json(await request.read())
            except ValidationError:
                raise web.HTTPBadRequest from None
        else:
            params = dict(request.query)
        reference_id = normalize_id(params.get("ReferenceId", ""))
        account = self.provider.account_of(params.get("ApiKey", ""))
        name = "-" if account is None else account.name
        with self.traffic.request(name):
            latency, fault = self.faults.draw(name, operation, reference_id)
            if latency is not None:
                await asyncio.sleep(latency.seconds)

            def answer() -> Reply:
                # Look up the account again, because it may have changed during the latency.
                account = self.provider.account_of(params.get("ApiKey", ""))
                reply = self.provider.answer(operation, account, params)
                for listener in self._listeners:
                    listener(operation, name, params, reply)
                return reply

            if fault is not None:
                self.traffic.requests[name, operation, fault.kind] += 1
                return await respond(fault, request, lambda: answer().fields)
            reply = answer()
            self.traffic.requests[name, operation, reply.code] += 1
            headers = {"Content-Type": JSON, "Set-Cookie": SESSION_COOKIE}
            return web.Response(headers=headers, body=to_json(reply.fields))

    @web.middleware
    async def _errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Return errors as JSON in the control API, and as WCF's error page otherwise."""
        is_control = request.path.startswith(CONTROL_PATH)
        try:
            return await handler(request)
        except web.HTTPException as error:
            status, reason = error.status, error.reason
        except ValueError as error:
            if not is_control:
                raise
            status, reason = 400, describe(error)
        if is_control:
            return web.json_response({"error": reason, "paths": self.control_paths}, status=status)
        return web.Response(status=status, text=ERROR_PAGE, content_type="text/html")

    # The control API.

    async def _get_state(self, _: web.Request) -> web.Response:
        accounts = {
            name: {key: value for key, value in asdict(account).items() if not key.endswith("_key")}
            for name, account in self.provider.accounts.items()
        }
        traffic = self.traffic
        return web.json_response(
            {
                "accounts": accounts,
                "faults": {name: asdict(fault) for name, fault in self.faults.active.items()},
                "calls": len(self.provider.calls),
                "requests": {" ".join(key): n for key, n in sorted(traffic.requests.items())},
                "peak_rate": traffic.peak_rate,
                "peak_open": traffic.peak_open,
                "open": traffic.open,
            }
        )

    async def _get_calls(self, request: web.Request) -> web.Response:
        now, account = self.provider.now, request.query.get("account")
        calls = [
            {
                "account": call.account,
                "finished": call.finished(now),
                "last_answer": call.answer(),
            }
            for call in self.provider.calls.values()
            if account in (None, call.account)
        ]
        return web.json_response(calls)

    async def _add_calls(self, request: web.Request) -> web.Response:
        calls = _OBJECTS.validate_json(await request.read())
        accounts = list(self.provider.accounts)
        default = accounts[0] if len(accounts) == 1 else ""
        for call in calls:
            account, reference_id = call.pop("account", default), call.pop("reference_id", "")
            # A call without a plan gets one derived from the seed.
            plan = _PLAN.validate_python(call) if call else None
            self.add_call(str(account), str(reference_id), plan)
        return web.json_response({"added": len(calls)})

    async def _put_account(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        old = self.provider.accounts.get(name)
        changes = _OBJECT.validate_json(await request.read())
        fields = {**(asdict(old) if old else {}), **changes, "name": name}
        self.put_account(ACCOUNT.validate_python(fields))
        return web.json_response({"account": name})

    async def _put_fault(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        # The name of a fault is its kind by default.
        fields = {"kind": name, **_OBJECT.validate_json(await request.read() or b"{}")}
        self.faults.set(name, _FAULT.validate_python(fields))
        return web.json_response({"fault": name})

    async def _delete_faults(self, request: web.Request) -> web.Response:
        self.faults.clear(request.match_info.get("name"))
        return web.json_response({"faults": list(self.faults.active)})


def describe(error: ValueError) -> str:
    """Describe an invalid input on one line, without quoting it."""
    if not isinstance(error, ValidationError):
        return str(error)
    problems = ((".".join(map(str, it["loc"])), it["msg"]) for it in error.errors())
    return "; ".join(f"{place}: {problem}" if place else problem for place, problem in problems)
