"""The one client of the provider: polls, placed calls and balances of one account."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Final, NamedTuple, Self
from urllib.parse import quote

from yarl import URL

from exporter.errors import RequestError
from exporter.esms.answers import (
    Answer,
    BalanceAnswer,
    read_answer,
    read_balance,
    read_placed,
    read_refusal,
)
from exporter.esms.codes import Outcome
from exporter.http import MAX_AGES, HttpClient, Response
from exporter.secrets import Secret

# A member of an enumeration is looked up anew each time, which takes as long as a function's call.
_OK: Final = int(HTTPStatus.OK)
_JSON: Final = {"Accept": "application/json"}
_SEPARATOR: Final = "||"


@dataclass(frozen=True, slots=True)
class CallRequest:
    """A call to be placed.

    Attributes:
        phone: the number to call.
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


class PlacedCall(NamedTuple):
    """The outcome of a request that places a call.

    Attributes:
        answer: the provider's, with the call's `reference_id` if it was accepted, or the failure.
        sent: whether the request may have reached the provider.
    """

    answer: Answer
    sent: bool = True


class EsmsClient:
    """Sends requests with the credentials of one account. Its methods never raise.

    Args:
        base_url: such as `https://voiceapi.esms.vn/MainService.svc/json`.
        api_key: goes into the query string of each request; so does `secret_key`.
        secret_key: see `api_key`.
        timeout: seconds from connecting to the last byte.
        balance_url: such as `https://rest.esms.vn/MainService.svc/json`; by default `base_url`.
        tls: see `exporter.http.HttpClient`, as for those that follow.
        proxy: see there.
        max_ages: see there.

    Must be made inside a running loop, and closed.
    """

    def __init__(
        self,
        base_url: str,
        api_key: Secret,
        secret_key: Secret,
        *,
        timeout: float,
        balance_url: str | None = None,
        tls: ssl.SSLContext | bool = True,
        proxy: Secret | None = None,
        max_ages: tuple[float, float] = MAX_AGES,
    ) -> None:
        self._base_url, self._balance_url = base_url, balance_url or base_url
        self._keys = {"ApiKey": api_key, "SecretKey": secret_key}
        self._http = HttpClient(timeout, _JSON, tls=tls, proxy=proxy, max_ages=max_ages)
        # All of a poll's URL but the id, encoded and taken apart once: that costs a fifth of it.
        url = URL(f"{URL(base_url)}/GetSendStatus", encoded=True)
        self._poll_url = partial(
            URL.build,
            scheme=url.scheme,
            authority=url.raw_authority,
            path=url.raw_path,
            encoded=True,
        )
        self._poll_query = Secret(_query(self._keys) + "&ReferenceId=")
        revealed = [key.reveal() for key in self._keys.values()]
        self._hidden = _hidden(
            *revealed,
            *(quote(key, safe="") for key in revealed),
            *(json.dumps(key)[1:-1] for key in revealed),
            *(f"{name}=" for name in self._keys),
            *(f'"{name}"' for name in self._keys),
        )

    async def send_status(self, reference_id: str) -> Answer:
        """Poll a call: one `GetSendStatus` request."""
        encoded = reference_id
        # Letters, digits and hyphens stand for themselves, and nearly every id has no others.
        if not (reference_id.isascii() and reference_id.replace("-", "").isalnum()):
            encoded = quote(reference_id, safe="")
        url = self._poll_url(query_string=self._poll_query.reveal() + encoded)
        try:
            response = await self._http.request("GET", url)
        except RequestError as error:
            return _failure(error)
        if response.status != _OK:
            answer = _refusal(response)
        else:
            answer = read_answer(response.body, self._hidden)
        if answer.outcome is not Outcome.OK:
            self._http.distrust()
        return answer

    async def place_call(self, request: CallRequest) -> PlacedCall:
        """Place a call: one request at most, on a connection of its own."""
        phone = request.phone.reveal()
        query = _query({**self._keys, "Phone": request.phone}, request.parameters())
        url = URL(f"{URL(self._base_url)}/{request.operation}?{query}", encoded=True)
        try:
            response = await self._http.request_once(url)
        except RequestError as error:
            return PlacedCall(_failure(error), error.sent)
        if response.status != _OK:
            return PlacedCall(_refusal(response))
        hidden = self._hidden + _hidden(phone, phone.lstrip("+0"), "Phone=")
        return PlacedCall(read_placed(response.body, hidden))

    async def balance(self) -> BalanceAnswer:
        """Ask for the balance: one `GetBalance_json` request, on a host of its own."""
        body = json.dumps({name: key.reveal() for name, key in self._keys.items()})
        url = URL(f"{URL(self._balance_url)}/GetBalance_json", encoded=True)
        headers = {"Content-Type": "application/json"}
        try:
            response = await self._http.request("POST", url, data=body.encode(), headers=headers)
        except RequestError as error:
            answer = _failure(error)
        else:
            if response.status == _OK:
                return read_balance(response.body, self._hidden)
            answer = _refusal(response)
        return BalanceAnswer(answer.outcome, message=answer.message, retry_after=answer.retry_after)

    async def close(self) -> None:
        """Close the connections; requests under way fail."""
        await self._http.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _query(secrets: Mapping[str, Secret], more: Mapping[str, str] | None = None) -> str:
    parameters = {**{name: held.reveal() for name, held in secrets.items()}, **(more or {})}
    return "&".join(f"{name}={quote(value, safe='')}" for name, value in parameters.items())


def _hidden(*texts: str) -> list[Secret]:
    return [Secret(text.casefold()) for text in texts]


def _failure(error: RequestError) -> Answer:
    return Answer(Outcome(error.reason), message=str(error))


def _refusal(response: Response) -> Answer:
    headers = response.headers
    return read_refusal(
        response.status, headers.get("Retry-After"), time.time(), headers.get("Date")
    )
