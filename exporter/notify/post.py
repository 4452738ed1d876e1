"""One POST, and what came of it."""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping
from enum import Enum, StrEnum, auto
from http import HTTPStatus
from typing import Final, NamedTuple

from yarl import URL

from exporter.config.notify import NotifyConfig
from exporter.errors import RequestError
from exporter.esms.answers import read_refusal
from exporter.http import HttpClient, basic_auth
from exporter.notify.addresses import ForbiddenAddressError, guarded_socket
from exporter.notify.event import CONTENT_TYPE, headers, signing_key
from exporter.notify.names import Resolver

_ABOUT_THE_EVENT: Final = frozenset(
    {
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.CONFLICT,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
    }
)
"""What refuses one event, but may take others."""


class PostOutcome(StrEnum):
    """The outcome of a request to a target: the label `outcome`."""

    OK = "ok"
    GONE = "gone"
    THROTTLED = "throttled"
    HTTP_ERROR = "http_error"
    TIMEOUT = "timeout"
    CONNECTION = "connection"
    TLS = "tls"
    BAD_RESPONSE = "bad_response"
    FORBIDDEN = "forbidden"


class Fate(Enum):
    """What a request means for the notification that it carried."""

    DELIVERED = auto()
    REFUSED = auto()  # it is not wanted, ever
    AGAIN = auto()


class Reply(NamedTuple):
    """What came of a request.

    Attributes:
        outcome: for the metrics.
        fate: of the notification.
        well: whether the target answers as it should; where not, the circuit breaker counts it.
        wait: seconds for which the target asks not to be sent anything, if it does.
        problem: what is wrong, for the log; nothing of it is secret.
    """

    outcome: PostOutcome
    fate: Fate
    well: bool = False
    wait: float | None = None
    problem: str = ""


class Poster:
    """Sends events to one target, over connections of its own.

    Redirects are not followed, certificates are verified, and where a name leads is looked at when
    it is connected to, see `exporter.notify.addresses`.

    Args:
        config: of the target.
        tls: see `exporter.http.HttpClient`.

    Must be made inside a running loop, and closed.
    """

    def __init__(self, config: NotifyConfig, *, tls: ssl.SSLContext | bool = True) -> None:
        url = URL(config.url.reveal())
        self._url = url.with_user(None)
        self._auth = basic_auth(url)
        self._key = signing_key(config.secret)
        self._names = Resolver()
        self._http = HttpClient(
            config.timeout,
            {"Content-Type": CONTENT_TYPE},
            tls=tls,
            limit=config.max_concurrency,
            resolver=self._names,
            use_dns_cache=False,  # each connection is checked as it is made
            socket_factory=guarded_socket,
        )

    async def post(self, event: str, body: str) -> Reply:
        """Send an event once. Never raises what is the target's or the network's doing."""
        data = body.encode()
        signed = headers(self._key, event, time.time(), data)
        try:
            response = await self._http.request(
                "POST",
                self._url,
                data=data,
                headers={**signed, **self._auth},
                discard_body=True,
            )
        except ForbiddenAddressError as error:
            # The message names no address: what a name resolves to may be nobody's business.
            return Reply(PostOutcome.FORBIDDEN, Fate.AGAIN, problem=str(error))
        except RequestError as error:
            return Reply(PostOutcome(error.reason), Fate.AGAIN, problem=str(error))
        reply = answered(response.status, response.headers, time.time())
        if not reply.well:
            self._http.distrust()
        return reply

    async def close(self) -> None:
        """Close the connections; requests under way fail."""
        await self._http.close()
        await self._names.close()


def answered(status: int, headers: Mapping[str, str], now: float) -> Reply:
    """Return what an answer means.

    Args:
        status: of HTTP.
        headers: of the answer.
        now: Unix time.
    """
    if 200 <= status < 300:
        return Reply(PostOutcome.OK, Fate.DELIVERED, well=True)
    problem = f"the answer has the status {status}"
    if status == HTTPStatus.GONE:
        return Reply(PostOutcome.GONE, Fate.REFUSED, well=True, problem=problem)
    if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        said = read_refusal(status, headers.get("Retry-After"), now, headers.get("Date"))
        return Reply(PostOutcome.THROTTLED, Fate.AGAIN, wait=said.retry_after, problem=problem)
    well = status in _ABOUT_THE_EVENT
    return Reply(PostOutcome.HTTP_ERROR, Fate.AGAIN, well=well, problem=problem)
