"""An exporter behind its real HTTP server, and the clients of tests."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import aiohttp
import bcrypt
from sqlalchemy import text
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
from exporter.sources.configuration import ConfigFile
from exporter.web.access import Passwords
from exporter.web.connections import Limits
from exporter.web.server import WebOptions, WebServer
from exporter.web.sockets import ListenAddress
from exporter.web.web_config import load_web_config
from tests.waiting import DEADLINE, deadline
from tests.web.certificates import Certificates

TLS = "tls_server_config: {cert_file: server.crt, key_file: server.key"
CALLBACK_TOKEN = "made/up token"
TOKENS = (
    TokenConfig(name="all", token=Secret("token-all")),
    TokenConfig(name="b", token=Secret("token-b"), accounts=("b",)),
)


def hashed(password: str) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()


def users(**passwords: str) -> str:
    lines = "".join(f"  {name}: {hashed(word)}\n" for name, word in passwords.items())
    return f"basic_auth_users:\n{lines}"


def basic(user: str, password: str) -> str:
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


class Stream(NamedTuple):
    """A raw connection to a server."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def answer(self) -> tuple[int, bytes]:
        """Return the status and the whole text of the next answer that has a length."""
        async with deadline():
            text = await self.reader.readuntil(b"\r\n\r\n")
            length = text.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            body = await self.reader.readexactly(int(length)) if length else b""
        return int(text.split()[1]), text + body

    async def ends(self) -> bytes:
        """Wait until the server closes; return what came before."""
        async with deadline():
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""
            finally:
                self.writer.close()


class Bench:
    """An exporter of the accounts `main` and `b`, its server, a client, and a provider."""

    def __init__(self, folder: Path, app: Callable[[Callable[[], Config]], App] = App) -> None:
        self.folder = folder
        self.web = folder / "web.yml"
        self.certificates = Certificates(folder)
        accounts = [Account("main", "key-main", "s"), Account("b", "key-b", "s")]
        self.simulator = Simulator(accounts=accounts)
        self.loading: Callable[[], None] = lambda: None
        self._app = app

    async def __aenter__(self) -> Self:
        await self.simulator.__aenter__()
        self.http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self.certificates.client())
        )
        self.config = Config(
            accounts=tuple(
                AccountConfig(
                    name=name,
                    api_key=Secret(f"key-{name}"),
                    secret_key=Secret("s"),
                    base_url=self.simulator.url,
                    message_url=self.simulator.url,
                    callback_token=Secret(CALLBACK_TOKEN) if name == "main" else None,
                )
                for name in ("main", "b")
            ),
            polling=PollingConfig(interval=0.1, max_interval=0.1),
            balance=BalanceConfig(interval=0.0),
            watch=WatchConfig(labels=("campaign",), api=ApiConfig(tokens=TOKENS)),
            ledger=LedgerConfig(url=f"sqlite:///{self.folder / 'ledger.db'}"),
            shutdown_timeout=1,
        )
        self.app = self._app(self.load)
        self.servers: list[WebServer] = []
        return self

    async def __aexit__(self, *ended: object) -> None:
        await self.stop()
        await self.http.close()
        await self.simulator.__aexit__(*ended)

    def load(self) -> Config:
        """Return the configuration, as the exporter has it read in a thread."""
        self.loading()
        return self.config

    async def start(self, web: str | None = None, **options: Any) -> str:
        """Start the exporter and its server; returns the URL."""
        await self.app.open()
        url = await self.serve(web, **options)
        await self.app.start()
        return url

    async def serve(
        self,
        web: str | None = None,
        *,
        limits: Limits = Limits(),  # noqa: B008 - it is immutable
        passwords: Passwords | None = None,
        host: str = "127.0.0.1",
        **options: Any,
    ) -> str:
        """Start a server, with a web configuration if there is one; returns its URL."""
        if web is not None:
            self.web.write_text(web)
            options["config"] = ConfigFile(self.web, load_web_config)
        options.setdefault("addresses", [ListenAddress(host, 0)])
        server = WebServer(self.app, WebOptions(**options), limits, passwords)
        self.servers.append(server)
        self.url, *_ = await server.start()
        return self.url

    @property
    def server(self) -> WebServer:
        return self.servers[-1]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    async def stop(self) -> None:
        for server in self.servers:
            await server.stop()
            assert not server.connections.open
        self.servers = []
        await self.app.stop()

    async def configure(self, **watch: object) -> None:
        """Change the section `watch`, and reload."""
        changed = self.config.watch.model_copy(update=watch)
        self.config = self.config.model_copy(update={"watch": changed})
        await self.app.reload()

    async def rewrite(self, web: str, *, reload: bool = True) -> None:
        """Replace the web configuration, and reload."""
        aside = self.web.with_suffix(".new")
        aside.write_text(web)
        aside.replace(self.web)
        if reload:
            await self.app.reload()

    async def get(
        self,
        path: str = "/",
        method: str = "GET",
        *,
        client: ssl.SSLContext | bool = True,
        data: bytes | None = None,
        **headers: str,
    ) -> tuple[aiohttp.ClientResponse, str]:
        """Send a request; returns the response and its text. `_` in a header's name is `-`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        url = URL(self.url + path, encoded=True)
        async with self.http.request(
            method,
            url,
            data=data and io.BytesIO(data),
            headers=named,
            ssl=client,
            allow_redirects=False,
        ) as response:
            return response, await response.text()

    async def status(self, path: str = "/metrics", method: str = "GET", **options: Any) -> int:
        return (await self.get(path, method, **options))[0].status

    async def connect(self, sent: bytes = b"", host: str = "127.0.0.1") -> Stream:
        """Open a connection from an address, and send what no client would."""
        at = "127.0.0.1", self.port
        stream = Stream(*await asyncio.open_connection(*at, local_addr=(host, 0)))
        stream.writer.write(sent)
        return stream

    # The HTTP API.

    async def ask(
        self, method: str, path: str, body: object = b"", token: str = "all"
    ) -> tuple[int, Any]:
        """Send a request to the API; returns the status and the answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        login = f"Bearer token-{token}"
        answer, text = await self.get(f"/api/v1{path}", method, data=data, Authorization=login)
        if answer.status >= 400:
            assert answer.content_type == "application/problem+json"
        return answer.status, json.loads(text) if text else None

    async def push(self, *names: str, account: str = "main", **labels: str) -> tuple[int, Any]:
        calls = [{"reference_id": n, "account": account, "labels": labels} for n in names]
        return await self.ask("POST", "/calls", {"calls": calls})

    # The ledger.

    @asynccontextmanager
    async def ledger_failing(self, table: str, *events: str) -> AsyncIterator[None]:
        """Have every insertion into a table, or other events, fail until the end of the block."""
        triggers = {f"failing_{event}": event for event in events or ("INSERT",)}

        def run(*statements: str) -> None:
            with self.app.ledger.database.begin() as connection:
                for statement in statements:
                    connection.execute(text(statement))

        fail = "SELECT RAISE(ABORT, 'made to fail')"
        await self.app.ledger.call(
            run,
            *(
                f"CREATE TEMP TRIGGER {name} BEFORE {event} ON main.{table} BEGIN {fail}; END"
                for name, event in triggers.items()
            ),
        )
        try:
            yield
        finally:
            await self.app.ledger.call(run, *(f"DROP TRIGGER temp.{name}" for name in triggers))

    def ledger_held(self) -> AbstractAsyncContextManager[None]:
        """Let the ledger's thread do nothing until the end of the block."""
        return self._held(self.app.ledger.call)

    def listings_held(self) -> AbstractAsyncContextManager[None]:
        """Let the thread that reads listings do nothing until the end of the block."""
        return self._held(self.app.ledger.read)

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
    """Run an exporter with its server, with another configuration."""
    async with Bench(folder) as bench:
        bench.config = bench.config.model_copy(update=config)
        await bench.start()
        yield bench
