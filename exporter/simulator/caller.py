"""A small program that places calls, as a user of the exporter has one: for the demo."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp

from exporter.simulator.accounts import Account
from exporter.simulator.replies import Operation

log = logging.getLogger(__name__)

# account, reference_id, labels
Placed = Callable[[str, str, Mapping[str, str]], Awaitable[None]]

MAX_ANSWER = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Campaign:
    """What calls are placed for.

    Attributes:
        labels: handed on with each call.
        recording: `TemplateId` of the recording that is played.
        share: how often it is chosen, in relation to the other campaigns.
        max_retry: how often the provider itself calls again.
        wait_retry: seconds between its attempts.
    """

    labels: Mapping[str, str] = field(default_factory=dict)
    recording: str = "1"
    share: float = 1.0
    max_retry: int = 0
    wait_retry: int = 0


class Caller:
    """Places calls through MakeCallRecord_V2 until it is cancelled, or has placed enough.

    Args:
        url: the `base_url` of the API.
        accounts: whose credentials to use, in turn.
        campaigns: what for, at random.
        on_placed: told of each call that was accepted; its errors end the caller.
        rate: calls a second, of all accounts together.
        limit: attempts after which it ends; None for no end.
        max_open: requests under way at most; while there are so many, no new one begins.
        seed: the same seed brings the same phone numbers and campaigns.
        timeout: seconds for one request.
        ssl_context: for HTTPS with a certificate of one's own.

    Attributes:
        placed: calls that were accepted.
        refused: attempts that came to nothing.
    """

    def __init__(  # noqa: PLR0913 - each is a choice of its own, and named at the call
        self,
        url: str,
        accounts: Sequence[Account],
        campaigns: Sequence[Campaign],
        on_placed: Placed,
        *,
        rate: float,
        limit: int | None = None,
        max_open: int = 16,
        seed: int = 0,
        timeout: float = 10.0,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        if not accounts or not campaigns:
            raise ValueError("expected at least one account and one campaign")
        if not rate > 0 or max_open < 1:
            raise ValueError("rate and max_open: expected numbers above 0")
        self.placed = 0
        self.refused = 0
        self._url = f"{url}/{Operation.MAKE_CALL_RECORD}"
        self._accounts = accounts
        self._campaigns = campaigns
        self._on_placed = on_placed
        self._rate = rate
        self._limit = limit
        self._open = asyncio.Semaphore(max_open)
        # Not for secrets, but for the same run with the same seed.
        self._rng = random.Random(f"caller:{seed}")  # noqa: S311
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._ssl = ssl_context
        self._troubled: set[str] = set()

    async def run(self) -> None:
        """Place calls. Cancelling ends it at once, together with whatever is under way."""
        connector = aiohttp.TCPConnector(ssl=True if self._ssl is None else self._ssl)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=self._timeout) as session,
            asyncio.TaskGroup() as tasks,
        ):
            number = 0
            while self._limit is None or number < self._limit:
                await self._open.acquire()
                account = self._accounts[number % len(self._accounts)]
                tasks.create_task(self._call(session, account))
                number += 1
                await asyncio.sleep(1 / self._rate)

    async def _call(self, session: aiohttp.ClientSession, account: Account) -> None:
        try:
            shares = [campaign.share for campaign in self._campaigns]
            campaign = self._rng.choices(self._campaigns, shares)[0]
            query = {
                "ApiKey": account.api_key,
                "SecretKey": account.secret_key,
                "TemplateId": campaign.recording,
                # 0900 0xx xxx: no number of anybody.
                "Phone": f"09000{self._rng.randrange(100_000):05}",
                "MaxRetry": str(campaign.max_retry),
                "WaitRetry": str(campaign.wait_retry),
                "RequestID": f"{self._rng.getrandbits(128):032x}",
            }
            try:
                reference_id = await self._place(session, query)
            # Only its kind is told: its text may hold the URL, and the URL holds the keys.
            except (aiohttp.ClientError, OSError, ValueError, RecursionError) as error:
                self._refused(account.name, type(error).__name__)
                return
            except _RefusedError as error:
                self._refused(account.name, error.code)
                return
            self.placed += 1
            if account.name in self._troubled:
                self._troubled.remove(account.name)
                log.info("calls are placed again account=%s", account.name)
            await self._on_placed(account.name, reference_id, campaign.labels)
        finally:
            self._open.release()

    async def _place(self, session: aiohttp.ClientSession, query: Mapping[str, str]) -> str:
        async with session.get(self._url, params=query, allow_redirects=False) as response:
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > MAX_ANSWER:
                    raise _RefusedError("too large")
        answer = json.loads(body)
        if not isinstance(answer, dict) or str(answer.get("CodeResult")) != "100":
            code = answer.get("CodeResult") if isinstance(answer, dict) else None
            raise _RefusedError(str(code)[:20])
        reference_id = str(answer.get("SMSID", "")).strip()
        if not reference_id:
            raise _RefusedError("no SMSID")
        return reference_id

    def _refused(self, account: str, reason: str) -> None:
        self.refused += 1
        # Once when it begins, not at every attempt.
        if account not in self._troubled:
            self._troubled.add(account)
            log.warning("no call placed account=%s reason=%s", account, reason)


class _RefusedError(Exception):
    """The API took no call; `code` says why."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code
