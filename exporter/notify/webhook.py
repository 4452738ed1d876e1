"""Webhooks: a signed POST for each event."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Mapping
from functools import partial
from http import HTTPStatus
from typing import Final

from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from exporter.config.targets import NotifyConfig
from exporter.errors import RequestError, SourceError
from exporter.esms.answers import read_refusal
from exporter.http import HttpClient, basic_auth
from exporter.ledger.outbox import DeliveryAction, Route
from exporter.ledger.types import FinishedCall
from exporter.notify.events import CONTENT_TYPE, cloud_event, signature_headers
from exporter.notify.target import Delivery, DeliveryOutcome, TargetSettings
from exporter.secrets import decode_signing_key
from exporter.ssrf import ForbiddenAddressError, ssrf_safe_socket
from exporter.threads import SerialThread

# These statuses refuse one event, but do not show a problem of the target.
_ABOUT_THE_EVENT: Final = frozenset(
    {
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.CONFLICT,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
    }
)


def webhook(config: NotifyConfig, tls: ssl.SSLContext | None = None) -> TargetSettings:
    """Return the settings of a webhook; see `HttpClient` for `tls`."""
    route = Route(
        config.name,
        config.give_up_after,
        config.accounts,
        config.results,
        config.statuses,
        config.label_values,
    )
    return TargetSettings(
        route,
        (config, tls),
        partial(WebhookClient, config, tls=tls),
        config.timeout,
        config.max_concurrency,
    )


class WebhookClient:
    """Sends events to a webhook over its own connections.

    Does not follow redirects, verifies certificates, and checks the address of each connection,
    see `exporter.ssrf`. Must be created in a running event loop, and closed.
    """

    ready = True

    def __init__(self, config: NotifyConfig, *, tls: ssl.SSLContext | None = None) -> None:
        url = URL(config.url.reveal())
        self._url = url.with_user(None)
        self._auth = basic_auth(url)
        self._key = decode_signing_key(config.secret)
        self._resolver = _Resolver()
        self._http = HttpClient(
            config.timeout,
            {"Content-Type": CONTENT_TYPE},
            tls=tls,
            limit=config.max_concurrency,
            resolver=self._resolver,
            use_dns_cache=False,  # addresses are checked for each connection
            socket_factory=ssrf_safe_socket,
        )

    async def deliver(self, call: FinishedCall) -> Delivery:
        """Make one attempt to send an event; never raises for errors of the webhook or network."""
        event = cloud_event(call)
        signed = signature_headers(self._key, event, time.time())
        try:
            response = await self._http.request(
                "POST",
                self._url,
                data=event.body,
                headers={**signed, **self._auth},
                max_body=None,
            )
        except ForbiddenAddressError as error:
            # Leave out the address, because internal addresses may be confidential.
            return Delivery(DeliveryOutcome.FORBIDDEN, DeliveryAction.RETRY, problem=str(error))
        except RequestError as error:
            return Delivery(DeliveryOutcome(error.reason), DeliveryAction.RETRY, problem=str(error))
        delivery = interpret(response.status, response.headers, time.time())
        if not delivery.healthy:
            self._http.renew_soon()
        return delivery

    async def close(self) -> None:
        await self._http.close()
        await self._resolver.close()


def interpret(status: int, headers: Mapping[str, str], now: float) -> Delivery:
    """Return the outcome of an HTTP response; `now` is a Unix time."""
    if 200 <= status < 300:
        return Delivery(DeliveryOutcome.OK, DeliveryAction.DONE, healthy=True)
    problem = f"the response has the status {status}"
    if status == HTTPStatus.GONE:
        return Delivery(DeliveryOutcome.GONE, DeliveryAction.GIVE_UP, healthy=True, problem=problem)
    retry = DeliveryAction.RETRY
    if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        refusal = read_refusal(status, headers.get("Retry-After"), now, headers.get("Date"))
        after = refusal.retry_after
        return Delivery(DeliveryOutcome.THROTTLED, retry, retry_after=after, problem=problem)
    healthy = status in _ABOUT_THE_EVENT
    return Delivery(DeliveryOutcome.HTTP_ERROR, retry, healthy=healthy, problem=problem)


class _Resolver(AbstractResolver):
    """Resolves names in its own thread.

    Look-ups can take half a minute without a name server, and must not block the few threads of
    the event loop, which also resolve the provider's name.
    """

    def __init__(self) -> None:
        self._thread = SerialThread("names of a target")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of a host; raise `OSError` if there are none."""
        try:
            addresses = await self._thread.submit(
                lambda: socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
            )
        except SourceError as error:
            raise OSError(str(error)) from None
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=int(address[1]),
                family=kind,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, _, protocol, _, address in addresses
        ]

    async def close(self) -> None:
        """Stop the thread once it is idle."""
        self._thread.close()
