"""The stand-in provider as an HTTP server."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from aiohttp import web

from exporter.simulator import api, control
from exporter.simulator.accounts import Account
from exporter.simulator.faults import Faults
from exporter.simulator.life import Call, Plan
from exporter.simulator.mix import Mix
from exporter.simulator.provider import Provider, UnknownIds
from exporter.simulator.traffic import Traffic

# Requests that are still under way when the server stops get so many seconds to end by themselves.
_DRAIN = 0.05
# Where to reach a server that listens on every interface.
_REACHED = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - not bound here


class Simulator:
    """A stand-in for the eSMS voice API on a socket of its own.

    Use it as `async with Simulator(...) as sim`, and poll `sim.url`.

    Args:
        accounts: the accounts at the start.
        seed: the same seed and the same requests bring the same calls and faults.
        host: the address to listen on; empty for every interface.
        port: 0 for any that is free.
        ssl_context: speak HTTPS with it.
        unknown_ids: what GetSendStatus says of ids that nobody has placed.
        mix: what becomes of calls that have no explicit plan.
        speed: how much faster than the clock the calls live.
        clock: seconds; only differences count.
        templates: ids of templates and of recordings that exist.

    Attributes:
        provider: accounts and calls.
        faults: the faults that are switched on.
        traffic: what the clients did.
    """

    def __init__(  # noqa: PLR0913 - each is a choice of its own, and named at the call
        self,
        *,
        accounts: Iterable[Account] = (),
        seed: int = 0,
        host: str = "127.0.0.1",
        port: int = 0,
        ssl_context: ssl.SSLContext | None = None,
        unknown_ids: UnknownIds = UnknownIds.NOT_FOUND,
        mix: Mix | None = None,
        speed: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        templates: Iterable[str] = ("1", "2", "3"),
    ) -> None:
        self.provider = Provider(
            accounts,
            seed=seed,
            clock=clock,
            today=lambda: datetime.now(UTC),
            speed=speed,
            unknown_ids=unknown_ids,
            mix=mix,
            templates=templates,
        )
        self.faults = Faults(seed)
        self.traffic = Traffic(clock)
        self._host = host
        self._port = port
        self._ssl = ssl_context
        self._runner: web.ServerRunner | None = None

    @property
    def origin(self) -> str:
        """Scheme, host and port, such as `http://127.0.0.1:10376`; known once it has started."""
        scheme = "http" if self._ssl is None else "https"
        host = _REACHED.get(self._host, self._host)
        host = f"[{host}]" if ":" in host else host
        return f"{scheme}://{host}:{self._port}"

    @property
    def url(self) -> str:
        """The `base_url` of the API."""
        return self.origin + api.BASE_PATH

    @property
    def control_url(self) -> str:
        """Where it is controlled over HTTP, such as `.../_simulator`."""
        return self.origin + control.PREFIX

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: the address cannot be listened on.
        """
        # The plain server spares each request the router, the middlewares and the access log of an
        # application. A client that goes away ends its request, so that none hangs on for nobody.
        server = web.Server(self._answer, handler_cancellation=True, access_log=None)
        runner = web.ServerRunner(server, handle_signals=False, shutdown_timeout=_DRAIN)
        await runner.setup()
        site = web.TCPSite(runner, self._host or None, self._port, ssl_context=self._ssl)
        try:
            await site.start()
        except OSError:
            await runner.cleanup()
            raise
        self._runner = runner
        # An IPv4 address has two parts, an IPv6 one four. Port 0 is a port for each of them, and
        # `origin` names the first family.
        self._port = min(runner.addresses, key=len)[1]

    async def stop(self) -> None:
        """Stop listening, and cut off whatever is still under way."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    def put_account(self, account: Account) -> None:
        """Create an account, or alter the one of the same name: see `Provider.put_account`."""
        self.provider.put_account(account)

    def add_call(self, account: str, reference_id: str, plan: Plan | None = None) -> Call:
        """Place a call now: see `Provider.add_call`."""
        return self.provider.add_call(account, reference_id, plan)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path.startswith(control.PREFIX + "/"):
            return await control.answer(self, request)
        return await api.answer(self, request)
