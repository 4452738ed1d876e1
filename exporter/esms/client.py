"""The one client of the provider: polls, placed calls and balances of one account."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Final, Self
from urllib.parse import quote

from yarl import URL

from exporter.config import AccountConfig
from exporter.errors import RequestError
from exporter.esms.answers import Answer, read_answer, read_balance, read_placed, read_refusal
from exporter.esms.codes import Outcome
from exporter.http import MAX_AGES, HttpClient, Response
from exporter.secrets import Secret

# A member of an enumeration is looked up anew each time, which takes as long as a function's call.
_OK: Final = int(HTTPStatus.OK)
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


class EsmsClient:
    """Sends requests with the credentials of one account. Its methods return failures as answers.

    Args:
        account: its addresses, credentials and proxy.
        timeout: seconds from connecting to the last byte.
        tls: see `exporter.http.HttpClient`.
        max_ages: see there.

    Must be made inside a running loop, and closed.
    """

    def __init__(
        self,
        account: AccountConfig,
        timeout: float,
        *,
        tls: ssl.SSLContext | bool = True,
        max_ages: tuple[float, float] = MAX_AGES,
    ) -> None:
        self._account = account
        keys = self._keys()
        self._http = HttpClient(
            timeout,
            {"Accept": "application/json"},
            tls=tls,
            proxy=account.proxy_url,
            max_ages=max_ages,
        )
        # All of a poll's URL but the id, encoded and taken apart once: that costs a fifth of it.
        url = URL(f"{URL(account.base_url)}/GetSendStatus", encoded=True)
        self._poll_url = partial(
            URL.build,
            scheme=url.scheme,
            authority=url.raw_authority,
            path=url.raw_path,
            encoded=True,
        )
        self._poll_query = Secret(f"{_query(keys)}&ReferenceId=")
        self._hidden = _hidden(
            *keys.values(),
            *(quote(key, safe="") for key in keys.values()),
            *(json.dumps(key)[1:-1] for key in keys.values()),
            *(f"{name}=" for name in keys),
            *(f'"{name}"' for name in keys),
        )

    async def send_status(self, reference_id: str) -> Answer:
        """Poll a call: one `GetSendStatus` request."""
        encoded = reference_id
        # Letters, digits and hyphens stand for themselves, and nearly every id has no others.
        if not (reference_id.isascii() and reference_id.replace("-", "").isalnum()):
            encoded = quote(reference_id, safe="")
        url = self._poll_url(query_string=self._poll_query.reveal() + encoded)
        answer = await _answer(self._http.request("GET", url), read_answer, self._hidden)
        if answer.outcome is not Outcome.OK:
            self._http.distrust()
        return answer

    async def place_call(self, request: CallRequest) -> Answer:
        """Place a call: one request at most, on a connection of its own."""
        phone = request.phone.reveal()
        query = _query({**self._keys(), "Phone": phone, **request.parameters()})
        url = URL(f"{URL(self._account.base_url)}/{request.operation}?{query}", encoded=True)
        hidden = self._hidden + _hidden(phone, phone.lstrip("+0"), "Phone=")
        return await _answer(self._http.request_once(url), read_placed, hidden)

    async def balance(self) -> Answer:
        """Ask for the balance: one `GetBalance_json` request, on a host of its own."""
        url = URL(f"{URL(self._account.balance_url)}/GetBalance_json", encoded=True)
        data, headers = json.dumps(self._keys()).encode(), {"Content-Type": "application/json"}
        request = self._http.request("POST", url, data=data, headers=headers)
        return await _answer(request, read_balance, self._hidden)

    async def close(self) -> None:
        """Close the connections; requests under way fail."""
        await self._http.close()

    def _keys(self) -> Mapping[str, str]:
        account = self._account
        return {"ApiKey": account.api_key.reveal(), "SecretKey": account.secret_key.reveal()}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def _answer(
    request: Awaitable[Response],
    read: Callable[[bytes, Iterable[Secret]], Answer],
    hidden: Iterable[Secret],
) -> Answer:
    """Send a request, and read its response or the failure that took its place."""
    try:
        response = await request
    except RequestError as error:
        return Answer(Outcome(error.reason), message=str(error), sent=error.sent)
    if response.status == _OK:
        return read(response.body, hidden)
    retry_after, date = map(response.headers.get, ("Retry-After", "Date"))
    return read_refusal(response.status, retry_after, time.time(), date)


def _query(parameters: Mapping[str, str]) -> str:
    return "&".join(f"{name}={quote(value, safe='')}" for name, value in parameters.items())


def _hidden(*texts: str) -> list[Secret]:
    return [Secret(text.casefold()) for text in texts]
