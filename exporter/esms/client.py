"""The client of the eSMS API: polls, placing calls, and the balance."""

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

import structlog
from yarl import URL

from exporter.config import MAX_CODES, AccountConfig
from exporter.errors import RequestError
from exporter.esms.answers import (
    Answer,
    read_answer,
    read_balance,
    read_message_answer,
    read_placed,
    read_refusal,
)
from exporter.esms.codes import CODES, Outcome
from exporter.http import MAX_AGES, HttpClient, Response
from exporter.ids import Kind
from exporter.secrets import Secret

# Looking up a member of an enumeration costs as much as a function call in Python 3.11.
_OK: Final = int(HTTPStatus.OK)
_SUCCESS: Final = Outcome.OK
_SEPARATOR: Final = "||"

_Read = Callable[[bytes, Iterable[Secret]], Answer]

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class CallRequest:
    """A call to place, with either a recording or a template.

    Attributes:
        request_id: the provider refuses a second request with the same id for 24 h.
        variables: the values of the template's variables, in the order of the template.
    """

    phone: Secret
    request_id: str
    recording: str | None = None
    template: str | None = None
    variables: tuple[str, ...] = ()

    @property
    def operation(self) -> str:
        """The name of the operation in the API."""
        return "MakeCallTemplate_V2" if self.template else "MakeCallRecord_V2"

    def parameters(self) -> Mapping[str, str]:
        """Return the parameters without the credentials and the phone number."""
        if self.template:
            variables = _SEPARATOR.join(self.variables)
            more = {"VariableListStr": variables} if variables else {}
            return {"TemplateId": self.template, **more, "RequestId": self.request_id}
        return {"TemplateId": self.recording or "", "RequestID": self.request_id}


class _PollRequest:
    """Requests of polls for one kind of id: their URL, without the id, and their parser."""

    def __init__(self, base: str, keys: Mapping[str, str], parameter: str, read: _Read) -> None:
        url = URL(f"{URL(base)}/GetSendStatus", encoded=True)
        self.url = partial(
            URL.build,
            scheme=url.scheme,
            authority=url.raw_authority,
            path=url.raw_path,
            encoded=True,
        )
        self.query = Secret(f"{_query(keys)}&{parameter}=")
        self.read = read


class EsmsClient:
    """Sends requests with the credentials of one account. Failures are returned as answers.

    Must be created in a running event loop, and closed. For the parameters, see
    `exporter.http.HttpClient`.
    """

    def __init__(
        self,
        account: AccountConfig,
        timeout: float,
        *,
        tls: ssl.SSLContext | None = None,
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
        # Encode and parse the URL of polls, without the id, once: that is a fifth of a poll's cost.
        self._polls = {
            Kind.CALL: _PollRequest(account.base_url, keys, "ReferenceId", read_answer),
            Kind.MESSAGE: _PollRequest(account.message_url, keys, "RefId", read_message_answer),
        }
        self._codes = {code: Outcome(outcome) for code, outcome in account.codes.items()}
        self._unknown_codes = set[str]()
        self._hidden = _hidden(
            *keys.values(),
            *(quote(key, safe="") for key in keys.values()),
            *(json.dumps(key)[1:-1] for key in keys.values()),
            *(f"{name}=" for name in keys),
            *(f'"{name}"' for name in keys),
        )

    # Not coroutine functions: see `HttpClient.request`.

    def send_status(self, reference_id: str, kind: Kind = Kind.CALL) -> Awaitable[Answer]:
        """Poll a call or a message: one `GetSendStatus` request."""
        poll = self._polls[kind]
        encoded = reference_id
        # Most ids have only letters, digits and hyphens, which need no encoding.
        if not (reference_id.isascii() and reference_id.replace("-", "").isalnum()):
            encoded = quote(reference_id, safe="")
        url = poll.url(query_string=poll.query.reveal() + encoded)
        return self._answer(self._http.request("GET", url), poll.read, self._hidden)

    def place_call(self, request: CallRequest) -> Awaitable[Answer]:
        """Place a call: a single request on a new connection, without retries."""
        phone = request.phone.reveal()
        query = _query({**self._keys(), "Phone": phone, **request.parameters()})
        url = URL(f"{URL(self._account.base_url)}/{request.operation}?{query}", encoded=True)
        hidden = self._hidden + _hidden(phone, phone.lstrip("+0"), "Phone=")
        return self._answer(self._http.request_once(url), read_placed, hidden)

    def balance(self) -> Awaitable[Answer]:
        """Request the balance: one `GetBalance_json` request, to a separate host."""
        url = URL(f"{URL(self._account.balance_url)}/GetBalance_json", encoded=True)
        data, headers = json.dumps(self._keys()).encode(), {"Content-Type": "application/json"}
        request = self._http.request("POST", url, data=data, headers=headers)
        return self._answer(request, read_balance, self._hidden)

    async def close(self) -> None:
        """Close the connections; requests in flight fail."""
        await self._http.close()

    async def _answer(
        self,
        request: Awaitable[Response],
        read: _Read,
        hidden: Iterable[Secret],
    ) -> Answer:
        """Send a request, and convert its response or failure to an answer."""
        try:
            response = await request
        except RequestError as error:
            return Answer(Outcome(error.reason), message=str(error), sent=error.sent)
        if response.status == _OK:
            answer = read(response.body, hidden)
            if answer.outcome is _SUCCESS:
                return answer
            answer = self._reclassified(answer)
        else:
            retry_after, date = map(response.headers.get, ("Retry-After", "Date"))
            answer = read_refusal(response.status, retry_after, time.time(), date)
        self._http.renew_soon()
        return answer

    def _reclassified(self, answer: Answer) -> Answer:
        """Apply `codes` of the account, and log each unknown code once."""
        code = answer.code
        if code is None or answer.outcome is Outcome.BAD_RESPONSE:
            return answer
        if (outcome := self._codes.get(code)) is not None:
            return answer._replace(outcome=outcome)
        unknown = self._unknown_codes
        if code not in CODES and code not in unknown and len(unknown) < MAX_CODES:
            unknown.add(code)
            _log.warning(
                "unknown result code",
                account=self._account.name,
                code=code,
                message=answer.message,
                outcome=answer.outcome.value,
                setting="accounts[].codes",
            )
        return answer

    def _keys(self) -> Mapping[str, str]:
        account = self._account
        return {"ApiKey": account.api_key.reveal(), "SecretKey": account.secret_key.reveal()}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _query(parameters: Mapping[str, str]) -> str:
    return "&".join(f"{name}={quote(value, safe='')}" for name, value in parameters.items())


def _hidden(*texts: str) -> list[Secret]:
    return [Secret(text.casefold()) for text in texts]
