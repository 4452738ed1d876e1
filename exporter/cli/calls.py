"""The command `calls`: lists the calls of a running exporter, through its HTTP API."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Sequence
from datetime import UTC
from http import HTTPStatus
from pathlib import Path
from typing import Final

import click
import uvloop
from pydantic import ValidationError
from yarl import URL

from exporter.calls import CallState, Result
from exporter.cli import options
from exporter.config.files import FileProblemError, read_text
from exporter.daemon import limit_process
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
from exporter.output import Lines, Output, print_table
from exporter.secrets import Secret
from exporter.web.schemas import Call, Page, ProblemDetails

_ALL: Final = "all"
_TABLE: Final = (
    *("reference_id", "account", "state", "status"),
    *("duration", "key", "first_watched", "labels"),
)
_TIMEOUT: Final = 30.0
"""Seconds for a page."""

_TRIES: Final = 10
"""Requests for a page while others with the same token list calls, one a second."""

_MAX_PAGE: Final = 16 << 20
"""Bytes; 1,000 calls with five long labels each have a quarter of that."""

_MAX_TOKEN: Final = 4096


COLUMNS: Final = tuple(Call.model_fields)


@click.command()
@click.option(
    "--url",
    envvar="ESMS_EXPORTER_URL",
    default="http://127.0.0.1:10375",
    show_default=True,
    show_envvar=True,
    help="Where the exporter is.",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help="A file with a token of `watch.api.tokens`; else ESMS_EXPORTER_TOKEN holds it.",
)
@click.option(
    "--ca-file",
    type=click.Path(path_type=Path),
    help="Certificates to trust, PEM, in place of the system's.",
)
@click.option("--account", help="Calls of this account.")
@click.option(
    "--state",
    type=click.Choice([WATCHED, *(state.value for state in CallState), FINISHED, _ALL]),
    help="Calls in this state.  [default: watched, which are all that have not finished]",
)
@click.option(
    "--result",
    type=click.Choice([result.value for result in Result]),
    help="Finished calls with this result.",
)
@options.output
def calls(
    url: str,
    token_file: Path | None,
    ca_file: Path | None,
    account: str | None,
    state: str | None,
    result: str | None,
    output: str | None,
) -> None:
    """List the calls that a running exporter watches."""
    configure_logging("warning", "logfmt")
    limit_process()
    if not url.startswith(("http://", "https://")):
        raise click.BadParameter(
            "expected `http://HOST...` or `https://HOST...`", param_hint="--url"
        )
    token = _token(token_file)
    state = state or (FINISHED if result else WATCHED)
    query = {"account": account, "state": None if state == _ALL else state, "result": result}
    pages = _pages(
        f"{url.rstrip('/')}/api/v1/calls",
        token,
        {name: value for name, value in query.items() if value is not None},
        _trust(ca_file),
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_print(pages, Output(output or Output.TABLE)))


def _token(path: Path | None) -> Secret:
    if path is None:
        text = os.environ.get("ESMS_EXPORTER_TOKEN", "")
        expected, hint = "expected --token-file, or a token in ESMS_EXPORTER_TOKEN", None
    else:
        try:
            text = read_text(path, _MAX_TOKEN)
        except FileProblemError as error:
            raise click.BadParameter(f"{path}: {error}", param_hint="--token-file") from None
        expected, hint = f"{path}: expected a token, on a line of its own", "--token-file"
    token = text.strip()
    if not (token and token.isascii() and token.isprintable()):
        raise click.BadParameter(expected, param_hint=hint) if hint else click.UsageError(expected)
    return Secret(token)


def _trust(path: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=path)
    except OSError as error:  # ssl.SSLError is one
        reason = error.strerror if not isinstance(error, ssl.SSLError) else "no certificates"
        raise click.BadParameter(f"{path}: {reason}", param_hint="--ca-file") from None


async def _print(pages: AsyncIterator[Sequence[Call]], output: Output) -> None:
    if output is Output.TABLE:
        rows = [_cells(call) async for page in pages for call in page]
        print_table(_TABLE, rows, "state")
        return
    printed = Lines(output, COLUMNS)
    async for page in pages:
        printed.write(page)
    printed.close()


def _cells(call: Call) -> tuple[str, ...]:
    return (
        call.reference_id,
        call.account,
        call.result or call.state,
        call.status or "",
        "" if call.duration is None else f"{call.duration:g} s",
        call.key or "",
        f"{call.first_watched.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z",
        " ".join(f"{name}={value}" for name, value in call.labels.items()),
    )


async def _pages(
    url: str, token: Secret, query: dict[str, str], trust: ssl.SSLContext
) -> AsyncIterator[Sequence[Call]]:
    """Yield page after page.

    Raises:
        RemoteExporterError: the exporter cannot be asked, or refuses to answer.
    """
    headers = {"Authorization": f"Bearer {token.reveal()}"}
    after = "0"
    async with HttpClient(_TIMEOUT, headers, tls=trust) as http:
        while True:
            page = await _page(http, url, {**query, "after": after, "limit": str(MAX_PAGE)})
            yield page.calls
            if page.next is None:
                return
            after = page.next


async def _page(http: HttpClient, url: str, query: dict[str, str], tries: int = _TRIES) -> Page:
    try:
        status, _, body = await http.request("GET", URL(url) % query, max_body=_MAX_PAGE)
    except RequestTimeoutError:
        raise RemoteExporterError(f"{url}: no answer within {_TIMEOUT:g} s") from None
    except TLSError:
        raise RemoteExporterError(
            f"{url}: its certificate cannot be verified; --ca-file names an authority to trust"
        ) from None
    except InvalidResponseError:
        raise RemoteExporterError(f"{url}: what answers there is no exporter") from None
    except RequestError as error:
        raise RemoteExporterError(f"{url}: {error}") from None
    if status == HTTPStatus.TOO_MANY_REQUESTS and tries > 1:
        await asyncio.sleep(1)
        return await _page(http, url, query, tries - 1)
    if status != HTTPStatus.OK:
        raise RemoteExporterError(f"{url}: {_refusal(status, body)}")
    try:
        return Page.model_validate_json(body)
    except ValidationError:
        raise RemoteExporterError(f"{url}: what answers there is no exporter") from None


def _refusal(status: int, body: bytes) -> str:
    """Return what the exporter says of a request that it does not answer."""
    try:
        problem = ProblemDetails.model_validate_json(body)
    except ValidationError:
        return f"refused with the HTTP status {status}; what answers there is no exporter"
    words = [
        problem.detail,
        *(f"{item.pointer[1:]}: {item.detail}" for item in problem.errors or ()),
    ]
    return f"refused with the HTTP status {status}: {'; '.join(filter(None, words))}"
