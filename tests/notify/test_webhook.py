"""What a webhook's answers mean, and where requests may go."""

from __future__ import annotations

import asyncio
import base64
import re
import socket
import ssl
import threading
from collections.abc import Callable
from email.utils import formatdate
from typing import Any
from urllib.parse import quote

import pytest
import trustme
from aiohttp import web

from exporter.config.targets import NotifyConfig
from exporter.errors import RequestError
from exporter.ledger.outbox import DeliveryAction as Action
from exporter.ledger.outbox import Route
from exporter.ledger.types import FinishedCall
from exporter.notify.target import Delivery
from exporter.notify.target import DeliveryOutcome as Is
from exporter.notify.webhook import WebhookClient, interpret, webhook
from exporter.secrets import Secret
from exporter.ssrf import ForbiddenAddressError
from tests.notify.receiver import SECRET, Receiver
from tests.waiting import DEADLINE, deadline

CALL = FinishedCall("main", "a", "success", "answered", 13.0, "1", {}, 5.0, 60.0)


def target(url: str, timeout: float = 60.0) -> NotifyConfig:
    return NotifyConfig(name="t", url=Secret(url), secret=Secret(SECRET), timeout=timeout)


async def deliver(
    config: NotifyConfig, times: int = 1, *, tls: ssl.SSLContext | None = None
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
        *((status, (Is.HTTP_ERROR, Action.RETRY, False)) for status in (300, 302, 304, 418, 599)),
        *((status, (Is.THROTTLED, Action.RETRY, False)) for status in (429, 503)),
        (410, (Is.GONE, Action.GIVE_UP, True)),
    ],
)
def test_statuses(status: int, expected: tuple[Is, Action, bool]) -> None:
    delivery = interpret(status, {}, 0.0)
    assert (delivery.outcome, delivery.action, delivery.healthy) == expected
    assert bool(delivery.problem) is (delivery.action is not Action.DONE)


@pytest.mark.parametrize(
    ("status", "said", "retry_after"),
    [
        (429, "7", 7),
        (503, "9" * 12, 999_999_999_999),  # the dispatcher bounds it
        (503, formatdate(2e6, usegmt=True), 1e6),
        *((429, said, None) for said in ("", "soon", "-5", "1e9", "\x80")),
    ],
)
def test_what_a_target_asks_for(status: int, said: str, retry_after: float | None) -> None:
    delivery = interpret(status, {"Retry-After": said}, 1e6)
    assert (delivery.outcome, delivery.retry_after) == (Is.THROTTLED, retry_after)


@pytest.mark.parametrize("error", RequestError.__subclasses__())
def test_every_failure_of_a_request_is_an_outcome(error: type[RequestError]) -> None:
    assert error is ForbiddenAddressError or Is(error.reason)


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


@pytest.mark.parametrize("trusted", [True, False])
async def test_certificates_are_verified(*, trusted: bool) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    known = ssl.create_default_context()
    (authority if trusted else stranger).configure_trust(known)
    async with Receiver(context) as receiver:
        (delivery,) = await deliver(target(receiver.url), tls=known)
    assert delivery.outcome is (Is.OK if trusted else Is.TLS)


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


async def test_a_name_that_leads_to_the_metadata_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", resolves_to("169.254.169.254", "fe80::1"))
    (delivery,) = await deliver(target("http://hooks.example/"))
    assert (delivery.outcome, delivery.action) == (Is.FORBIDDEN, Action.RETRY)
    assert not delivery.healthy
    assert not re.search("169|fe80", delivery.problem)


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
