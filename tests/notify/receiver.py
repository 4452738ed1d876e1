"""Somebody who is told of finished calls: a real server, and what came to it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from aiohttp import web

from exporter.simulator import close_server

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Told:
    """A request that was signed as it should be."""

    at: float
    path: str
    headers: Mapping[str, str]
    event: dict[str, Any]  # Any: JSON

    @property
    def call(self) -> str:
        return str(self.event["data"]["reference_id"])


def verified(headers: Mapping[str, str], body: bytes) -> None:
    """Check a signature as a receiver does: Standard Webhooks, by its text alone."""
    stamp = headers["webhook-timestamp"]
    assert abs(int(stamp) - time.time()) < 300
    key = base64.b64decode(SECRET.split("_")[1])
    content = b".".join([headers["webhook-id"].encode(), stamp.encode(), body])
    expected = base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()
    assert f"v1,{expected}" in headers["webhook-signature"].split(" ")


async def ok(request: web.Request) -> web.StreamResponse:
    return web.Response(status=204)


class Receiver:
    """A target that can be told how to answer.

    Attributes:
        told: what came, in this order, whatever was answered.
        answer: makes the answers.
        bad: what is wrong with requests that are not as they should be.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.told: list[Told] = []
        self.bad: list[str] = []
        self.answer: Answer = ok
        self.url = ""
        self.port = 0
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None

    def answers(self, status: int, **headers: str) -> None:
        """Answer with a status from now on."""

        async def answer(request: web.Request) -> web.StreamResponse:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return web.Response(status=status, headers=named)

        self.answer = answer

    @property
    def calls(self) -> list[str]:
        return [told.call for told in self.told]

    @property
    def times(self) -> Counter[str]:
        """How often each event came, by its id."""
        return Counter(told.headers["webhook-id"] for told in self.told)

    async def start(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._take)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        assert self._runner.server is not None
        self._server = await asyncio.get_running_loop().create_server(
            self._runner.server, "127.0.0.1", self.port, ssl=self._tls
        )
        self.port = self._server.sockets[0].getsockname()[1]
        host = "https://localhost" if self._tls else "http://127.0.0.1"
        self.url = f"{host}:{self.port}/hook?token=made-up-url-token"

    async def stop(self) -> None:
        if self._server is not None:
            await close_server(self._server)
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _take(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        try:
            verified(request.headers, body)
            assert request.method == "POST"
            assert request.headers["Content-Type"] == "application/cloudevents+json"
            event = json.loads(body)
            assert event["id"] == request.headers["webhook-id"]
        except (AssertionError, ValueError, KeyError) as error:
            self.bad.append(repr(error))
        else:
            self.told.append(Told(time.monotonic(), request.path, dict(request.headers), event))
        return await self.answer(request)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        await asyncio.sleep(0)
