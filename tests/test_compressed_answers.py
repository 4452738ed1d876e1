"""Answers that are compressed, or without an end, to each of the exporter's HTTP clients."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
from click.testing import CliRunner

from exporter.cli import commands
from exporter.config import AccountConfig
from exporter.config.targets import NotifyConfig
from exporter.esms.client import CallRequest, EsmsClient
from exporter.ids import reference_id
from exporter.ledger.types import FinishedCall
from exporter.notify.webhook import WebhookClient
from exporter.secrets import Secret
from tests.inflating import compressed, counting_inflated
from tests.notify.receiver import SECRET
from tests.peers import peer

ENDLESS = 1 << 30


def account(url: str) -> AccountConfig:
    keys = {"api_key": Secret("made-up-key"), "secret_key": Secret("made-up-secret")}
    return AccountConfig(name="main", **keys, base_url=url, balance_url=url)


async def poll(url: str) -> None:
    async with EsmsClient(account(url), 30) as client:
        assert (await client.send_status(reference_id("a"))).outcome == "bad_response"


async def balance(url: str) -> None:
    async with EsmsClient(account(url), 30) as client:
        assert (await client.balance()).outcome == "bad_response"


async def canary(url: str) -> None:
    async with EsmsClient(account(url), 30) as client:
        placed = await client.place_call(CallRequest(Secret("0"), "id", "1"))
        assert placed.outcome == "bad_response"


async def webhook(url: str) -> None:
    config = NotifyConfig(name="t", url=Secret(url), secret=Secret(SECRET), timeout=30)
    client = WebhookClient(config)
    call = FinishedCall("main", "a", "success", "answered", 13.0, "1", {}, 5.0, 60.0)
    try:
        assert (await client.deliver(call)).outcome == "ok"
    finally:
        await client.close()


async def calls(url: str) -> None:
    invoke = partial(
        CliRunner().invoke,
        commands,
        ["calls", f"--url={url}"],
        env={"ESMS_EXPORTER_TOKEN": "made-up-token"},
    )
    result = await asyncio.to_thread(invoke)
    assert result.exit_code == 1
    assert "the server at this URL is not esms-exporter" in f"{result.output}{result.exception}"


BODIES = {
    "gzip": compressed(256 << 20),
    "deflate": zlib.compress(bytes(64 << 20)),
    "gzip, gzip": gzip.compress(compressed(256 << 20)),
    "br": b"\x1b\xff\xff\x7f" * 1000,
    "identity": None,  # without an end
}


@pytest.mark.parametrize("encoding", BODIES)
@pytest.mark.parametrize("ask", [poll, balance, canary, webhook, calls])
async def test_nothing_is_unpacked_and_little_is_read(
    ask: Callable[[str], Awaitable[None]], encoding: str
) -> None:
    accepted, taken = [], 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal taken
        accepted.append(await reader.readuntil(b"\r\n\r\n"))
        body = BODIES[encoding]
        size = ENDLESS if body is None else len(body)
        writer.write(
            f"HTTP/1.1 200 OK\r\nContent-Encoding: {encoding}\r\n"
            f"Content-Length: {size}\r\n\r\n".encode()
        )
        try:
            while taken < size:
                piece = bytes(1 << 20) if body is None else body
                writer.write(piece)
                await writer.drain()
                taken += len(piece)
        except ConnectionError:
            pass

    with counting_inflated() as inflated:
        async with peer(answer) as port:
            await ask(f"http://127.0.0.1:{port}")
    assert accepted
    assert b"accept-encoding: identity" in accepted[0].lower()
    assert inflated.count == 0
    # With what the buffers of both kernels hold.
    assert taken < 64 << 20
