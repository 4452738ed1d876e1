"""Placing a call: one request, which is never sent twice."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, NamedTuple
from urllib.parse import quote

import aiohttp
from yarl import URL

from exporter.calls import reference_id
from exporter.errors import RequestError
from exporter.esms.answers import BAD_RESPONSE, Answer, read_answer, read_object, read_refusal
from exporter.esms.client import HEADERS, MAX_BODY, proxy_of, read_body, translate
from exporter.esms.codes import Outcome
from exporter.secrets import Secret

_SEPARATOR: Final = "||"


@dataclass(frozen=True, slots=True)
class CallRequest:
    """A call to be placed.

    Attributes:
        phone: who is called.
        request_id: the provider refuses a second request with it, for 24 h.
        recording: its id; None for a template.
        template: its id; None for a recording.
        variables: values of the template's variables, in its order.
    """

    phone: Secret
    request_id: str
    recording: str | None = None
    template: str | None = None
    variables: tuple[str, ...] = ()

    @property
    def operation(self) -> str:
        """The provider's name of the operation."""
        return "MakeCallTemplate_V2" if self.template else "MakeCallRecord_V2"

    def parameters(self) -> Mapping[str, str]:
        """Return the parameters but for the credentials and the phone number."""
        if self.template:
            variables = _SEPARATOR.join(self.variables)
            more = {"VariableListStr": variables} if variables else {}
            return {"TemplateId": self.template, **more, "RequestId": self.request_id}
        return {"TemplateId": self.recording or "", "RequestID": self.request_id}


class Placed(NamedTuple):
    """What came of a request that places a call.

    Attributes:
        answer: the provider's, with the call's `reference_id` if it was accepted, or the failure.
        connected: whether there was a connection, on which the request may have been sent.
    """

    answer: Answer
    connected: bool = True


async def place(
    base_url: str,
    api_key: Secret,
    secret_key: Secret,
    request: CallRequest,
    within: float,
    *,
    tls: ssl.SSLContext | bool = True,
    proxy: Secret | None = None,
) -> Placed:
    """Place a call. Sends one request at most, on a connection of its own; never raises.

    Args:
        base_url: as of `Client`.
        api_key: goes into the query string, as `secret_key` does.
        secret_key: see `api_key`.
        request: the call.
        within: seconds from connecting to the last byte.
        tls: see `exporter.esms.client.Client`.
        proxy: see there.
    """
    connected = False

    async def on_connection(*_: object) -> None:
        nonlocal connected
        connected = True

    trace = aiohttp.TraceConfig()
    trace.on_connection_create_end.append(on_connection)
    try:
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(force_close=True, ssl=tls),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=HEADERS,
                timeout=aiohttp.ClientTimeout(total=None),
                auto_decompress=False,
                trace_configs=[trace],
            ) as session,
            asyncio.timeout(within),
            session.get(
                _url(base_url, api_key, secret_key, request),
                allow_redirects=False,
                **proxy_of(proxy),
                middlewares=(_once,),
            ) as response,
        ):
            body = await read_body(response)
            if len(body) > MAX_BODY:
                return Placed(BAD_RESPONSE)
            if response.status != HTTPStatus.OK:
                refusal = response.headers.get("Retry-After"), time.time()
                return Placed(read_refusal(response.status, *refusal))
            return Placed(read_placed(body, _hidden(api_key, secret_key, request)))
    except Exception as error:  # noqa: BLE001 - nothing of aiohttp's may escape: it holds the URL
        failure = error if isinstance(error, RequestError) else translate(error)
        return Placed(Answer(failure.outcome, message=str(failure)), connected)


async def _once(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Keep aiohttp from sending a GET again where the connection broke: the call may be placed."""
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise translate(error) from None


def _url(base_url: str, api_key: Secret, secret_key: Secret, request: CallRequest) -> URL:
    parameters = {
        "ApiKey": api_key.reveal(),
        "SecretKey": secret_key.reveal(),
        "Phone": request.phone.reveal(),
        **request.parameters(),
    }
    query = "&".join(f"{name}={quote(value, safe='')}" for name, value in parameters.items())
    return URL(f"{URL(base_url)}/{request.operation}?{query}", encoded=True)


def _hidden(api_key: Secret, secret_key: Secret, request: CallRequest) -> list[Secret]:
    phone = request.phone.reveal()
    texts = [phone, phone.lstrip("+0"), "Phone=", "ApiKey=", "SecretKey="]
    for key in (api_key.reveal(), secret_key.reveal()):
        texts += [key, quote(key, safe="")]
    return [Secret(text.casefold()) for text in texts]


def read_placed(body: bytes, hidden: Iterable[Secret] = ()) -> Answer:
    """Read the body of an answer of MakeCall* that came with the status 200. Never raises.

    A good answer whose `SMSID` cannot be one is a bad response: a call was placed, and nobody
    knows which.

    Args:
        body: any bytes.
        hidden: see `read_answer`.

    Returns:
        The answer; its `reference_id` is the `SMSID` of a call that was accepted.
    """
    # Its code and its message are where those of GetSendStatus are.
    answer = read_answer(body, hidden)
    if answer.outcome is not Outcome.OK:
        return answer
    sms_id = (read_object(body) or {}).get("SMSID")
    try:
        found = reference_id(sms_id if isinstance(sms_id, str) else "")
    except ValueError:
        return Answer(Outcome.BAD_RESPONSE, answer.code)
    return Answer(Outcome.OK, answer.code, reference_id=found)
