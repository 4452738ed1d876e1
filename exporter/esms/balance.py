"""Requests for balances: on another host than the calls, once in minutes."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from http import HTTPStatus
from typing import Final

import aiohttp
from yarl import URL

from exporter.errors import UnreadableAnswerError
from exporter.esms.answers import BalanceAnswer, read_balance, read_refusal
from exporter.esms.client import HEADERS, MAX_BODY, proxy_of, read_body, translate
from exporter.secrets import Secret

_OPERATION: Final = "GetBalance_json"


class BalanceClient:
    """Asks for the balances of any accounts, whose keys are handed over with each request.

    Must be made inside a running loop, and closed.
    """

    def __init__(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                # Whoever asks for an account does so once at a time, and waits for no other one.
                limit=0,
                # By the next request, the provider would have closed a connection that was kept.
                force_close=True,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={**HEADERS, "Content-Type": "application/json"},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
            auto_decompress=False,
        )

    async def get_balance(
        self,
        url: str,
        api_key: Secret,
        secret_key: Secret,
        *,
        within: float,
        tls: ssl.SSLContext | bool = True,
        proxy: Secret | None = None,
    ) -> BalanceAnswer:
        """Ask for the balance of an account: one `GetBalance_json` request.

        Args:
            url: such as `https://rest.esms.vn/MainService.svc/json`.
            api_key: goes into the body of the request; so does `secret_key`.
            secret_key: see `api_key`.
            within: seconds from connect to the last byte.
            tls: see `exporter.esms.client.Client`.
            proxy: see there.

        Raises:
            RequestError: no answer came that could be read; see its subclasses.
        """
        keys = api_key.reveal(), secret_key.reveal()
        body = json.dumps(dict(zip(("ApiKey", "SecretKey"), keys, strict=True)))
        try:
            async with asyncio.timeout(within):
                response = await self._session.post(
                    URL(f"{URL(url)}/{_OPERATION}", encoded=True),
                    data=body.encode(),
                    ssl=tls,
                    **proxy_of(proxy),
                    # The target of a redirect would be handed the credentials.
                    allow_redirects=False,
                )
                try:
                    content = await read_body(response)
                finally:
                    response.close()
        except Exception as error:  # noqa: BLE001 - nothing of aiohttp's may escape
            # `from None`: the original's traceback holds the request, and so the keys.
            raise translate(error) from None
        if len(content) > MAX_BODY:
            raise UnreadableAnswerError(f"the answer has more than {MAX_BODY} bytes")
        if response.status == HTTPStatus.OK:
            escaped = (json.dumps(key)[1:-1] for key in keys)
            parts = (*keys, *escaped, '"ApiKey"', '"SecretKey"')
            return read_balance(content, [Secret(part.casefold()) for part in parts])
        headers = response.headers
        refusal = read_refusal(
            response.status, headers.get("Retry-After"), time.time(), headers.get("Date")
        )
        return BalanceAnswer(refusal.outcome, retry_after=refusal.retry_after)

    async def close(self) -> None:
        """Close the connections; requests under way fail."""
        await self._session.close()
