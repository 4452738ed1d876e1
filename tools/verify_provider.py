"""Compare the provider's real API with what the exporter assumes about it.

`make verify-provider` sends each question of `questions` once, and writes a report in Markdown to
standard output. It places no call and sends no message. The report contains no credentials, ids,
phone numbers or prices: of a response it shows the result code, the names and types of the fields,
and the values of fields with a few documented ones.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import time
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Final

from pydantic import ValidationError
from pydantic_core import from_json
from yarl import URL

import exporter
from exporter.config import AccountConfig
from exporter.errors import RequestError
from exporter.esms.answers import Answer, read_answer, read_balance, read_message_answer
from exporter.esms.codes import CODES, Outcome
from exporter.http import HttpClient, Response
from exporter.secrets import Secret

TIMEOUT: Final = 30.0

_CALL: Final = {
    "CallDuration": "number",
    "CallStatus": "string",
    "CodeResponse": "string",
    "Ivr": "string",
    "ReferenceId": "string",
    "SendStatus": "number",
    "SentResult": "number",
}
_MESSAGE: Final = {
    "CodeResponse": "string",
    "SMSID": "string",
    "SendFailed": "number",
    "SendStatus": "number",
    "SendSuccess": "number",
    "TotalPrice": "number",
    "TotalReceiver": "number",
    "TotalSent": "number",
}
_BALANCE: Final = {"Balance": "number", "CodeResponse": "string", "UserID": "number"}
_CALL_REFUSED: Final = {
    "CodeResult": "string",
    "CountRegenerate": "number",
    "ErrorMessage": "string",
}
_MESSAGE_REFUSED: Final = {"CodeResponse": "string", "SMSID": "string"}
_BALANCE_REFUSED: Final = {"Balance": "number", "CodeResponse": "string", "ErrorMessage": "string"}

# Fields whose values are shown: a few documented words and numbers.
_SHOWN: Final = ("CallStatus", "SendStatus", "SentResult")
_SHOWABLE: Final = '[0-9]{1,2}|true|false|null|"([A-Za-z _-]{0,20}|[0-9]{1,2})"'
_UNKNOWN_ID: Final = "00000000-0000-4000-8000-000000000000"
_NOBODY: Final = "0" * 32
_TYPES: Final = {str: "string", bool: "boolean", int: "number", float: "number", type(None): "null"}

Read = Callable[[bytes, Iterable[Secret]], Answer]


@dataclass(frozen=True, slots=True)
class Question:
    """A request, and the expected response.

    Attributes:
        parameters: the request, without credentials.
        outcomes: the expected outcomes.
        fields: the expected fields and their types.
        authorized: whether to send the real credentials.
    """

    text: str
    url: str
    parameters: Mapping[str, str]
    read: Read
    outcomes: frozenset[Outcome]
    fields: Mapping[str, str]
    authorized: bool = True


_OK: Final = frozenset({Outcome.OK})
_AUTH: Final = frozenset({Outcome.AUTH})
_NOT_FOUND: Final = frozenset({Outcome.NOT_FOUND})


def questions(account: AccountConfig, call: str, message: str) -> Iterator[Question]:
    """Yield the questions; without an id of a call or message, those about it are left out."""
    voice, rest = f"{account.base_url}/GetSendStatus", f"{account.message_url}/GetSendStatus"

    def of_call(text: str, reference_id: str, found: frozenset[Outcome] = _OK) -> Question:
        fields = _CALL if found is _OK else _CALL_REFUSED
        return Question(text, voice, {"ReferenceId": reference_id}, read_answer, found, fields)

    def of_message(text: str, sms_id: str, found: frozenset[Outcome] = _OK) -> Question:
        fields = _MESSAGE if found is _OK else _MESSAGE_REFUSED
        return Question(text, rest, {"RefId": sms_id}, read_message_answer, found, fields)

    if call:
        yield of_call("a call", call)
        yield of_call("the call, with its id in lower case", call.lower())
        yield of_message("the call, at the host of messages", call, _NOT_FOUND)
    if message:
        yield of_message("a message", message)
        yield of_message("the message, with its id in upper case", message.upper())
        yield of_call("the message, at the host of calls", message, _NOT_FOUND)
    yield of_call("an unknown call", _UNKNOWN_ID, _NOT_FOUND)
    yield of_message("an unknown message", _UNKNOWN_ID + "0", _NOT_FOUND)
    yield replace(of_call("a call, with wrong keys", _UNKNOWN_ID, _AUTH), authorized=False)
    yield replace(of_message("a message, with wrong keys", _UNKNOWN_ID, _AUTH), authorized=False)
    balance = f"{account.balance_url}/GetBalance_json"
    known = Question("the balance", balance, {}, read_balance, _OK, _BALANCE)
    yield known
    text = "the balance, with wrong keys"
    yield replace(known, text=text, outcomes=_AUTH, fields=_BALANCE_REFUSED, authorized=False)


def document_of(body: bytes) -> Mapping[str, object] | None:
    """Return the JSON object in a body; None if there is none."""
    try:
        document = from_json(body.removeprefix(BOM_UTF8))
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def differences(question: Question, response: Response, hidden: Iterable[Secret]) -> list[str]:
    """Return what differs from the assumptions, without secrets."""
    found = list[str]()
    if response.status != HTTPStatus.OK:
        found.append(f"HTTP status {response.status} in place of 200")
    if (document := document_of(response.body)) is None:
        return [*found, f"no JSON object, but {len(response.body)} bytes of something else"]
    answer = question.read(response.body, hidden)
    if answer.outcome not in question.outcomes:
        expected = " or ".join(question.outcomes)
        found.append(f"outcome {answer.outcome.value} (code {answer.code}) in place of {expected}")
    if answer.code is not None and answer.code not in CODES:
        found.append(f"undocumented code {answer.code}")
    kinds = {name: _TYPES.get(type(value), "other") for name, value in document.items()}
    for name, expected in question.fields.items():
        if name not in kinds:
            found.append(f"no field {name}")
        elif kinds[name] != expected:
            found.append(f"{name} is a {kinds[name]} in place of a {expected}")
    for name in sorted(kinds.keys() - question.fields.keys()):
        shown = name if re.fullmatch("[A-Za-z_]{1,40}", name) else "with an odd name"
        found.append(f"undocumented field {shown}, a {kinds[name]}")
    return found


def values(document: Mapping[str, object]) -> str:
    """Return the values that may be shown: words, and small numbers."""
    shown = ((name, json.dumps(document[name])) for name in _SHOWN if name in document)
    return ", ".join(f"{name}={it}" for name, it in shown if re.fullmatch(_SHOWABLE, it))


async def report(account: AccountConfig, call: str, message: str) -> list[str]:
    """Ask all questions, and return the lines of the report."""
    real = {"ApiKey": account.api_key.reveal(), "SecretKey": account.secret_key.reveal()}
    hidden = [Secret(key.casefold()) for key in real.values()]
    rows, total = list[str](), 0
    async with HttpClient(TIMEOUT, {"Accept": "application/json"}) as http:
        for question in questions(account, call, message):
            keys = real if question.authorized else dict.fromkeys(real, _NOBODY)
            started = time.monotonic()
            try:
                if question.parameters:
                    url = URL(question.url).with_query({**question.parameters, **keys})
                    response = await http.request("GET", url)
                else:
                    response = await http.request("POST", URL(question.url), json=keys)
            except RequestError as error:
                rows.append(f"| {question.text} | | | | {error} |")
                total += 1
                continue
            took = time.monotonic() - started
            found = differences(question, response, hidden)
            total += len(found)
            cells = (
                question.text,
                f"{took:.2f} s",
                question.read(response.body, hidden).code or "",
                values(document_of(response.body) or {}),
                "; ".join(found) or "none",
            )
            rows.append(f"| {' | '.join(cells)} |")
    return [
        f"# The provider's API beside what esms-exporter {exporter.__version__} assumes",
        "",
        f"{total} differences. This report contains no credentials, ids or phone numbers.",
        "",
        "| question | time | code | values | differences |",
        "|---|---|---|---|---|",
        *rows,
    ]


def main(environ: Mapping[str, str] = os.environ) -> int:
    """Write the report; the account and the ids come from environment variables."""
    variables = {"base_url": "ESMS_BASE_URL", "message_url": "ESMS_MESSAGE_URL"}
    variables["balance_url"] = "ESMS_BALANCE_URL"
    urls = {key: environ[name] for key, name in variables.items() if name in environ}
    try:
        keys = {"api_key": environ["ESMS_API_KEY"], "secret_key": environ["ESMS_SECRET_KEY"]}
        account = AccountConfig.model_validate({"name": "verify", **keys, **urls})
    except KeyError as error:
        sys.stderr.write(f"set {error.args[0]} in the environment\n")
        return 2
    except ValidationError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    ids = (environ.get(name, "").strip() for name in ("ESMS_CALL_ID", "ESMS_MESSAGE_ID"))
    sys.stdout.write("\n".join((*asyncio.run(report(account, *ids)), "")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
