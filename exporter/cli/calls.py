"""The command `calls`: list the calls of a running exporter, through its HTTP API."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from http import HTTPStatus
from pathlib import Path
from typing import Final

import click
import uvloop
from pydantic import ValidationError
from yarl import URL

from exporter.calls import CallState, Result
from exporter.cli.options import PATH, TEXT, Parsed
from exporter.cli.output import output_option, row_printer
from exporter.config.files import FileProblemError, read_text
from exporter.config.validation import check_url
from exporter.errors import (
    InvalidResponseError,
    RemoteExporterError,
    RequestError,
    RequestTimeoutError,
    TLSError,
)
from exporter.http import HttpClient
from exporter.ledger.calls import FINISHED, MAX_PAGE, WATCHED
from exporter.logs import configure_logging
from exporter.secrets import Secret
from exporter.web.schemas import Call, Page, ProblemDetails

_ALL: Final = "all"
_TABLE: Final = (
    *("reference_id", "account", "kind", "state", "status"),
    *("duration", "key", "delivered", "failed", "first_watched", "labels"),
)
_TIMEOUT: Final = 30.0
"""Seconds per page."""

_TRIES: Final = 10
"""Requests per page, one a second, while the listing slots of the token are in use."""

_MAX_PAGE: Final = 16 << 20
"""Bytes: four times the size of 1,000 calls with five long labels each."""

_MAX_TOKEN: Final = 4096

_NO_EXPORTER: Final = "the server at this URL is not esms-exporter"
_PROBLEMS: Final[Mapping[type[RequestError], str]] = {
    RequestTimeoutError: f"no answer within {_TIMEOUT:g} s",
    TLSError: "cannot verify the TLS certificate; pass the CA certificate with --ca-file",
    InvalidResponseError: _NO_EXPORTER,
}


def _calls_of(url: str) -> str:
    try:
        check_url(url, "http", "https", without="?#@ ")
    except ValueError:
        raise ValueError("expected `http://HOST...` or `https://HOST...`") from None
    return f"{url.rstrip('/')}/api/v1/calls"


def _token(_ctx: object, _param: object, path: Path | None) -> Secret:
    """Read the token from the file, or else from the environment."""
    try:
        text = read_text(path, _MAX_TOKEN) if path else os.environ.get("ESMS_EXPORTER_TOKEN", "")
    except FileProblemError as error:
        raise click.BadParameter(f"{path}: {error}") from None
    token = text.strip()
    if not (token and token.isascii() and token.isprintable()):
        raise click.BadParameter(
            f"{path}: expected a token on a single line"
            if path
            else "expected a file, or a token in ESMS_EXPORTER_TOKEN"
        )
    return Secret(token)


def _trust(_ctx: object, _param: object, path: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=path)
    except OSError as error:  # ssl.SSLError is one
        reason = error.strerror if not isinstance(error, ssl.SSLError) else "no certificates"
        raise click.BadParameter(f"{path}: {reason}") from None


@click.command()
@click.option(
    "--url",
    envvar="ESMS_EXPORTER_URL",
    default="http://127.0.0.1:10375",
    type=Parsed(_calls_of),
    show_default=True,
    show_envvar=True,
    help="URL of the exporter.",
)
@click.option(
    "--token-file",
    "token",
    type=PATH,
    callback=_token,
    help="File with a token of `watch.api.tokens`; by default, ESMS_EXPORTER_TOKEN is used.",
)
@click.option(
    "--ca-file",
    "trust",
    type=PATH,
    callback=_trust,
    help="CA certificates in PEM to trust instead of the system's.",
)
@click.option("--account", type=TEXT, help="List calls of this account.")
@click.option(
    "--state",
    type=click.Choice([WATCHED, *(state.value for state in CallState), FINISHED, _ALL]),
    help="List calls in this state.  [default: watched, which means all open calls]",
)
@click.option(
    "--result",
    type=click.Choice([result.value for result in Result]),
    help="List finished calls with this result.",
)
@output_option
def calls(
    url: str,
    token: Secret,
    trust: ssl.SSLContext,
    account: str | None,
    state: str | None,
    result: str | None,
    output: str | None,
) -> None:
    """List the calls and messages that a running exporter watches."""
    configure_logging("warning", "logfmt")
    state = state or (FINISHED if result else WATCHED)
    query = {"account": account, "state": None if state == _ALL else state, "result": result}
    given = {name: value for name, value in query.items() if value is not None}

    async def list_calls() -> None:
        with row_printer(output, tuple(Call.model_fields), _TABLE, _in_table) as write:
            async with aclosing(_pages(url, given, token, trust)) as pages:
                async for page in pages:
                    write(page)

    uvloop.run(list_calls())


def _in_table(call: Call) -> dict[str, object]:
    return {**dict(call), "state": call.result or call.state}


async def _pages(
    url: str, query: Mapping[str, str], token: Secret, trust: ssl.SSLContext
) -> AsyncGenerator[Sequence[Call], None]:
    """Yield the pages of the listing, or raise `RemoteExporterError`."""
    headers = {"Authorization": f"Bearer {token.reveal()}"}
    after: str | None = "0"
    tries = _TRIES
    async with HttpClient(_TIMEOUT, headers, tls=trust) as http:
        while after is not None:
            asked = URL(url) % {**query, "after": after, "limit": str(MAX_PAGE)}
            try:
                status, _, body = await http.request("GET", asked, max_body=_MAX_PAGE)
            except RequestError as error:
                problem = _PROBLEMS.get(type(error), error)
                raise RemoteExporterError(f"{url}: {problem}") from None
            tries -= 1
            if status == HTTPStatus.TOO_MANY_REQUESTS and tries:
                await asyncio.sleep(1)
                continue
            if status != HTTPStatus.OK:
                raise RemoteExporterError(f"{url}: {_refusal(status, body)}")
            try:
                page = Page.model_validate_json(body)
            except ValidationError:
                raise RemoteExporterError(f"{url}: {_NO_EXPORTER}") from None
            yield page.calls
            after, tries = page.next, _TRIES


def _refusal(status: int, body: bytes) -> str:
    try:
        problem = ProblemDetails.model_validate_json(body)
    except ValidationError:
        return f"refused with the HTTP status {status}; {_NO_EXPORTER}"
    words = [
        problem.detail,
        *(f"{item.pointer[1:]}: {item.detail}" for item in problem.errors or ()),
    ]
    return f"refused with the HTTP status {status}: {'; '.join(filter(None, words))}"
