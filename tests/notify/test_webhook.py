"""What a webhook's answers mean, and where requests may go."""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
import struct
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from email.utils import formatdate
from typing import Any
from urllib.parse import quote

import pytest
import trustme
from aiohttp import web

from exporter.config.targets import NotifyConfig
from exporter.ledger.outbox import CallFinished, Route
from exporter.ledger.outbox import DeliveryAction as Action
from exporter.notify.target import Delivery
from exporter.notify.target import DeliveryOutcome as Is
from exporter.notify.webhook import WebhookClient, webhook
from exporter.secrets import Secret
from tests.notify.receiver import SECRET, Receiver
from tests.waiting import DEADLINE, deadline

CALL = CallFinished("main", "a", "success", "answered", 13.0, "1", {}, 5.0, 60.0)
RESET = struct.pack("ii", 1, 0)


def target(url: str, timeout: float = 60.0) -> NotifyConfig:
    return NotifyConfig(name="t", url=Secret(url), secret=Secret(SECRET), timeout=timeout)


async def deliver(
    config: NotifyConfig, times: int = 1, *, tls: ssl.SSLContext | bool = True
) -> list[Delivery]:
    client = WebhookClient(config, tls=tls)
    try:
        return [await client.deliver(CALL) for _ in range(times)]
    finally:
        await client.close()


def test_the_route_of_a_configuration() -> None:
    config = NotifyConfig(
        name="crm",
        url=Secret("https://crm.example.com/x"),
        secret=Secret(SECRET),
        accounts=("main",),
        results=("failure",),
        statuses=("busy",),
        labels={"campaign": "otp", "team": ("a", "b")},
        give_up_after=7.0,
    )
    labels = {"campaign": frozenset({"otp"}), "team": frozenset({"a", "b"})}
    route = Route("crm", 7.0, ("main",), ("failure",), ("busy",), labels)
    assert webhook(config).route == route


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        *((status, (Is.OK, Action.DONE, True)) for status in (200, 201, 202, 204, 299)),
        *((status, (Is.HTTP_ERROR, Action.RETRY, True)) for status in (400, 409, 413, 415, 422)),
        *((status, (Is.HTTP_ERROR, Action.RETRY, False)) for status in (401, 403, 404, 500, 502)),
        *((status, (Is.HTTP_ERROR, Action.RETRY, False)) for status in (300, 304, 418, 599)),
        *((status, (Is.THROTTLED, Action.RETRY, False)) for status in (429, 503)),
        (410, (Is.GONE, Action.GIVE_UP, True)),
    ],
)
async def test_statuses(receiver: Receiver, status: int, expected: tuple[Is, Action, bool]) -> None:
    receiver.answers(status)
    (delivery,) = await deliver(target(receiver.url))
    assert (delivery.outcome, delivery.action, delivery.healthy) == expected
    assert (receiver.bad, len(receiver.told)) == ([], 1)
    assert bool(delivery.problem) is (delivery.action is not Action.DONE)


@pytest.mark.parametrize(
    ("status", "headers", "least", "most"),
    [
        (429, {"Retry_After": "7"}, 7, 7),
        (503, {"Retry_After": "9" * 12}, 1e11, 1e12),  # the sender bounds it
        # Far enough ahead for however long the tests before it take.
        (503, {"Retry_After": formatdate(time.time() + 1e6, usegmt=True)}, 9e5, 1.01e6),
    ],
)
async def test_a_target_that_asks_for_a_rest(
    receiver: Receiver, status: int, headers: dict[str, str], least: float, most: float
) -> None:
    receiver.answers(status, **headers)
    (delivery,) = await deliver(target(receiver.url))
    assert delivery.retry_after is not None
    assert least <= delivery.retry_after <= most


@pytest.mark.parametrize("said", ["", "soon", "-5", "1e9", "\x80"])
async def test_what_asks_for_nothing(receiver: Receiver, said: str) -> None:
    receiver.answers(429, Retry_After=said)
    (delivery,) = await deliver(target(receiver.url))
    assert (delivery.outcome, delivery.retry_after) == (Is.THROTTLED, None)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed(receiver: Receiver, status: int) -> None:
    async with Receiver() as other:
        receiver.answers(status, Location=other.url)
        (delivery,) = await deliver(target(receiver.url))
        assert (delivery.outcome, delivery.action) == (Is.HTTP_ERROR, Action.RETRY)
        assert other.told == []
    assert len(receiver.told) == 1


async def test_connections_are_used_again_and_cookies_forgotten(receiver: Receiver) -> None:
    peers = set()

    async def answer(request: web.Request) -> web.StreamResponse:
        assert "Cookie" not in request.headers
        assert request.transport is not None
        peers.add(request.transport.get_extra_info("peername"))
        return web.Response(body=b"x" * 1000, headers={"Set-Cookie": "a=b"})

    receiver.answer = answer
    deliveries = await deliver(target(receiver.url), 3)
    assert {delivery.action for delivery in deliveries} == {Action.DONE}
    assert len(peers) == 1


async def test_an_answer_that_never_ends_has_been_given(receiver: Receiver) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=200)
        await response.prepare(request)
        while True:
            await response.write(b"x" * 65536)

    receiver.answer = answer
    async with deadline():
        (delivery,) = await deliver(target(receiver.url))
    assert delivery.action is Action.DONE


async def test_an_answer_that_does_not_come(receiver: Receiver) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(1e6)
        raise AssertionError

    receiver.answer = answer
    (delivery,) = await deliver(target(receiver.url, 1.0))
    assert (delivery.outcome, delivery.action, delivery.healthy) == (
        Is.TIMEOUT,
        Action.RETRY,
        False,
    )


Speak = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def speaks(speak: Speak, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await speak(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


def says(answer: bytes) -> Speak:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()

    return speak


async def resets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


async def trickles(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    for byte in b"HTTP/1.1 200 OK\r\n" * 10:
        writer.write(bytes([byte]))
        await asyncio.sleep(0.1)


@pytest.mark.parametrize(
    ("speak", "outcome"),
    [
        (resets, Is.CONNECTION),
        (says(b""), Is.CONNECTION),
        (trickles, Is.TIMEOUT),
        (says(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), Is.BAD_RESPONSE),
        (says(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n"), Is.BAD_RESPONSE),
        (says(b"HTTP/1.1 2000 OK\r\n\r\n"), Is.BAD_RESPONSE),
        (says(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n"), Is.BAD_RESPONSE),
    ],
)
async def test_what_is_no_answer(speak: Speak, outcome: Is) -> None:
    async with speaks(speak) as port:
        timeout = 1.0 if outcome is Is.TIMEOUT else 60.0
        (delivery,) = await deliver(target(f"http://127.0.0.1:{port}/", timeout))
    assert (delivery.outcome, delivery.action, delivery.healthy) == (outcome, Action.RETRY, False)


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize("name", ["localhost", "other.example"])
async def test_certificates_are_verified(name: str, *, trusted: bool) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    known = ssl.create_default_context()
    (authority if trusted else stranger).configure_trust(known)
    async with speaks(says(b"HTTP/1.1 204 No Content\r\n\r\n"), context) as port:
        (delivery,) = await deliver(target(f"https://localhost:{port}/"), tls=known)
    assert (delivery.outcome is Is.OK) is (trusted and name == "localhost")
    assert delivery.outcome in (Is.OK, Is.TLS)


# Where it leads.


def resolves_to(*addresses: str) -> Callable[..., list[Any]]:  # Any: as the system has it
    def getaddrinfo(host: str, port: int, *_: object) -> list[Any]:
        return [
            (
                socket.AF_INET6 if ":" in address else socket.AF_INET,
                *(socket.SOCK_STREAM, 6, ""),
                (address, port, 0, 0) if ":" in address else (address, port),
            )
            for address in addresses
        ]

    return getaddrinfo


@pytest.mark.parametrize(
    "address", ["169.254.169.254", "fe80::1", "::ffff:169.254.169.254", "fd00:ec2::254"]
)
async def test_a_name_that_leads_to_the_metadata_service(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", resolves_to(address))
    (delivery,) = await deliver(target("http://hooks.example/"))
    assert (delivery.outcome, delivery.action, delivery.healthy) == (
        Is.FORBIDDEN,
        Action.RETRY,
        False,
    )
    assert address not in delivery.problem


@pytest.mark.parametrize(
    "host",
    [
        *("169.254.169.254", "[fe80::1]", "[::ffff:169.254.169.254]", "[fd00:ec2::254]"),
        *("0xa9fea9fe", "2852039166", "169.254.43518", "0251.0376.0251.0376"),
    ],
)
async def test_addresses_in_the_url_itself(host: str) -> None:
    # As where the configuration's own look at it were not there, or did not see it.
    config = target("http://x/").model_copy(update={"url": Secret(f"http://{host}/")})
    (delivery,) = await deliver(config)
    # What is an address for the system's resolver alone is no host for aiohttp.
    assert delivery.outcome is Is.FORBIDDEN or (
        delivery.outcome is Is.BAD_RESPONSE and host[0] in "012"
    )


async def test_a_name_that_leads_elsewhere_the_second_time(
    monkeypatch: pytest.MonkeyPatch, receiver: Receiver
) -> None:
    receiver.answers(204, Connection="close")
    client = WebhookClient(target(receiver.url.replace("127.0.0.1", "hooks.example")))
    outcomes = []
    for address in ("127.0.0.1", "169.254.169.254"):
        monkeypatch.setattr(socket, "getaddrinfo", resolves_to(address))
        outcomes.append((await client.deliver(CALL)).outcome)
    await client.close()
    assert outcomes == [Is.OK, Is.FORBIDDEN]


async def test_of_many_addresses_only_the_good_ones_are_tried(
    monkeypatch: pytest.MonkeyPatch, receiver: Receiver
) -> None:
    mixed = resolves_to("169.254.169.254", "fe80::1", "127.0.0.1")
    monkeypatch.setattr(socket, "getaddrinfo", mixed)
    (delivery,) = await deliver(target(receiver.url.replace("127.0.0.1", "hooks.example")))
    assert delivery.outcome is Is.OK
    monkeypatch.setattr(socket, "getaddrinfo", resolves_to("169.254.169.254", "fe80::1"))
    (delivery,) = await deliver(target(receiver.url.replace("127.0.0.1", "hooks.example")))
    assert delivery.outcome is Is.FORBIDDEN


async def test_a_name_that_nobody_answers_for(
    monkeypatch: pytest.MonkeyPatch, receiver: Receiver
) -> None:
    """Other names are looked up meanwhile, by whoever it may be."""
    stuck, real = threading.Event(), socket.getaddrinfo

    def getaddrinfo(host: str, *given: Any) -> Any:  # Any: as the system has it
        if host.endswith(".example"):
            stuck.wait(DEADLINE)
        return real(host, *given)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    hanging = [deliver(target(f"http://{name}.example/", 1.0)) for name in "abcdefghij"]
    tasks = [asyncio.ensure_future(one) for one in hanging]
    await asyncio.sleep(0.2)
    (delivery,) = await deliver(target(receiver.url.replace("127.0.0.1", "localhost")))
    assert delivery.outcome is Is.OK
    assert await asyncio.get_running_loop().getaddrinfo("localhost", 80)
    deliveries = [delivery for (delivery,) in await asyncio.gather(*tasks)]
    stuck.set()
    assert {delivery.outcome for delivery in deliveries} == {Is.TIMEOUT}


async def test_proxies_of_the_environment_are_not_used(
    monkeypatch: pytest.MonkeyPatch, receiver: Receiver
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1/")
    (delivery,) = await deliver(target(receiver.url))
    assert delivery.outcome is Is.OK


async def test_no_problem_says_where_it_goes() -> None:
    for url in ("http://127.0.0.1:1/x?made-up-url-token", "http://made-up-host.invalid/"):
        (delivery,) = await deliver(target(url))
        assert delivery.outcome is Is.CONNECTION
        assert "made-up" not in delivery.problem
        assert "127.0.0.1" not in delivery.problem


@pytest.mark.parametrize("password", ["two words", "m\u1eadt kh\u1ea9u", "a%20b:c", ""])
async def test_a_password_of_a_receiver(receiver: Receiver, password: str) -> None:
    written = {quote(password, safe=""), password.replace("%", "%25")}
    for form in written:
        url = receiver.url.replace("://", f"://esms:{form}@")
        (delivery,) = await deliver(target(url))
        assert delivery.outcome is Is.OK
        shown = receiver.told[-1].headers["Authorization"].removeprefix("Basic ")
        assert base64.b64decode(shown).decode() == f"esms:{password}"
