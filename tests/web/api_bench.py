"""A service behind its HTTP server, for tests of its API."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from yarl import URL

from exporter.app import App
from exporter.config import (
    AccountConfig,
    ApiConfig,
    BalanceConfig,
    Config,
    LedgerConfig,
    PollingConfig,
    TokenConfig,
    WatchConfig,
)
from exporter.secrets import Secret
from exporter.simulator import Account, Simulator
from exporter.web.server import WebOptions, WebServer
from exporter.web.sockets import ListenAddress
from tests.waiting import DEADLINE

TOKENS = (
    TokenConfig(name="all", token=Secret("token-all")),
    TokenConfig(name="b", token=Secret("token-b"), accounts=("b",)),
)


class Bench:
    """A service behind its HTTP server, and a client."""

    def __init__(self, folder: Path, simulator: Simulator, http: aiohttp.ClientSession) -> None:
        self.http = http
        self.simulator = simulator
        self.config = Config(
            accounts=tuple(
                AccountConfig(
                    name=name,
                    api_key=Secret(f"key-{name}"),
                    secret_key=Secret("s"),
                    base_url=simulator.url,
                )
                for name in ("main", "b")
            ),
            polling=PollingConfig(interval=0.1, max_interval=0.1),
            balance=BalanceConfig(interval=0.0),
            watch=WatchConfig(labels=("campaign",), api=ApiConfig(tokens=TOKENS)),
            ledger=LedgerConfig(url=f"sqlite:///{folder / 'ledger.db'}"),
            shutdown_timeout=1,
        )
        self.service = App(lambda: self.config)
        self.url = ""

    async def ask(
        self, method: str, path: str, body: object = None, token: str | None = "all", **more: Any
    ) -> tuple[int, Any]:
        if token:
            more.setdefault("headers", {})["Authorization"] = f"Bearer token-{token}"
        if body is not None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            more["data"] = io.BytesIO(data)
        url = URL(f"{self.url}/api/v1{path}", encoded=True)
        async with self.http.request(method, url, **more) as answer:
            text = await answer.text()
            if answer.status >= 400:
                assert answer.content_type == "application/problem+json"
            return answer.status, json.loads(text) if text else None

    async def status(self, method: str, path: str, *authorization: str) -> int:
        """Return the status of a request with headers that no client would send."""
        headers = "".join(f"Authorization: {value}\r\n" for value in authorization)
        head = f"{method} /api/v1{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", URL(self.url).port)
        writer.write(head.encode(errors="surrogateescape"))
        answer = await reader.read()
        writer.close()
        return int(answer.split()[1])

    async def watch(self, *names: str, account: str = "main", **labels: str) -> tuple[int, Any]:
        calls = [{"reference_id": n, "account": account, "labels": labels} for n in names]
        return await self.ask("POST", "/calls", {"calls": calls})

    def configure(self, **watch: object) -> None:
        changed = self.config.watch.model_copy(update=watch)
        self.config = self.config.model_copy(update={"watch": changed})

    def ledger_held(self) -> AbstractAsyncContextManager[None]:
        """Let the ledger's thread do nothing until the end of the block."""
        return self._held(self.service.ledger.call)

    def listings_held(self) -> AbstractAsyncContextManager[None]:
        """Let the thread that reads listings do nothing until the end of the block."""
        return self._held(self.service.ledger.read)

    @asynccontextmanager
    async def _held(
        self, run: Callable[[Callable[[], None]], Coroutine[Any, Any, None]]
    ) -> AsyncIterator[None]:
        held, free = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def hold() -> None:
            loop.call_soon_threadsafe(held.set)
            assert free.wait(DEADLINE)

        holding = asyncio.create_task(run(hold))
        await held.wait()
        try:
            yield
        finally:
            free.set()
            await holding


@asynccontextmanager
async def serving(folder: Path, **config: object) -> AsyncIterator[Bench]:
    """Run a service with its server and the stand-in for the provider."""
    accounts = [Account("main", "key-main", "s"), Account("b", "key-b", "s")]
    async with Simulator(accounts=accounts) as simulator, aiohttp.ClientSession() as http:
        bench = Bench(folder, simulator, http)
        bench.config = bench.config.model_copy(update=config)
        server = WebServer(bench.service, WebOptions([ListenAddress("127.0.0.1", 0)]))
        await bench.service.open()
        (bench.url,) = await server.start()
        assert (await bench.ask("GET", "/status"))[0] == 503  # not yet
        await bench.service.start()
        yield bench
        await bench.service.stop()
        await server.stop()
