"""A configured account: its API client, its poller and its balance requests."""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final

import structlog

from exporter.backoff import ExponentialBackoff
from exporter.calls import CallState, Finished, PollAgain, WatchedCall
from exporter.config import AccountConfig, BalanceConfig, PollingConfig
from exporter.esms.answers import Answer
from exporter.esms.client import CallRequest, EsmsClient
from exporter.esms.codes import Outcome
from exporter.ids import Kind
from exporter.polling.poller import Poller
from exporter.polling.stats import AccountStats, Balance, Operation
from exporter.supervisor import Supervisor

LONGEST_BALANCE_WAIT: Final = 900.0
"""Maximum seconds to the next balance request after failures or a `Retry-After`, unless the
interval is longer."""

# The first balance is requested within this share of the interval, to spread many accounts.
_FIRST_SHARE: Final = 0.1

# The settings that identify the balance, and those that need another client.
_balance_of: Final = attrgetter("balance_url", "api_key", "secret_key")
_client_of: Final = attrgetter(
    *("base_url", "message_url", "balance_url"),
    *("api_key", "secret_key", "proxy_url", "codes"),
)

_log = structlog.get_logger(__name__)


def balance_wait(failures: int, interval: float, retry_after: float | None) -> float:
    """Return the seconds until the next balance request, after consecutive failures."""
    longest = max(interval, LONGEST_BALANCE_WAIT)
    wait = ExponentialBackoff(interval, longest).wait(failures + 1)
    return max(wait, min(longest, retry_after or 0.0))


@dataclass(frozen=True, slots=True)
class AccountStatus:
    """The state of an account, for the status page; see `AccountStats`.

    Attributes:
        watched: number of open calls by state.
        overdue: number of calls that are due and not polled yet.
        lag: seconds since the first of them was due.
        paused: the outcome that paused the account, if any; `code` and `message` belong to it.
        paused_until: when the pause ends (Unix time).
        lagging: the row of the label set of the first overdue call.
        messages: number of open messages by state; empty for an account without messages.
    """

    name: str
    authorized: bool | None
    watched: dict[CallState, int]
    overdue: int
    lag: float
    paused: Outcome | None
    paused_until: float | None
    code: str | None = None
    message: str = ""
    last_success: float = 0.0
    lagging: int | None = None
    messages: dict[CallState, int] = field(default_factory=dict)


class Account:
    """A configured account, polled until `stop`. Must be created in a running event loop.

    Balance requests go to another host, which may refuse or throttle independently: they never
    pause the polls, and a pause does not stop them.

    For `tls`, see `HttpClient`; for `observe` and `clock`, `Poller`. `client` makes the client.
    """

    def __init__(
        self,
        config: AccountConfig,
        polling: PollingConfig,
        balance: BalanceConfig,
        tls: ssl.SSLContext | None,
        observe: Callable[[WatchedCall, Finished | PollAgain, float], None],
        supervisor: Supervisor,
        clock: Callable[[], float] = time.time,
        client: Callable[..., EsmsClient] = EsmsClient,
    ) -> None:
        self.stats = AccountStats()
        self._make_client = client
        self.stats.show_codes(config.codes)
        self._supervisor, self._config = supervisor, config
        self._connect(config, polling, tls)
        self.poller = Poller(
            config,
            polling,
            self._client.send_status,
            self.stats,
            observe,
            supervisor.fail,
            clock,
        )
        self._balance_task: asyncio.Task[None] | None = None
        self._request_balance(balance.interval)

    @property
    def status(self) -> AccountStatus:
        """The state of the account, for the status page."""
        poller, backlog = self.poller, self.poller.backlog()
        paused_by = poller.breaker.paused_by
        return AccountStatus(
            poller.account,
            self.stats.authorized,
            dict(self.stats.open[Kind.CALL]),
            *backlog[:2],
            poller.breaker.reason,
            self.stats.paused_until if paused_by else None,
            paused_by.code if paused_by else None,
            paused_by.message if paused_by else "",
            self.stats.last_success,
            backlog.label_set,
            dict(self.stats.open[Kind.MESSAGE]) if self.stats.polls_messages else {},
        )

    def change(
        self,
        config: AccountConfig,
        polling: PollingConfig,
        balance: BalanceConfig,
        tls: ssl.SSLContext | None,
    ) -> None:
        """Apply a changed configuration; reconnect only if needed."""
        old, self._config = self._config, config
        self.stats.show_codes(config.codes)
        if reconnect := (_client_of(config), polling.timeout, tls) != self._connection:
            self._supervisor.start(_close_after(self._client, self._connection[1]))
            self._connect(config, polling, tls)
        send = self._client.send_status if reconnect else None
        self.poller.configure(config, polling, send)
        if _balance_of(config) != _balance_of(old):
            self.stats.balance = None  # of the previous credentials
        if reconnect or balance.interval != self._interval:
            self._request_balance(balance.interval)
        self.stats.balance_warning = config.balance_warning if balance.interval else None

    async def place(
        self, request: CallRequest, timeout: float, wanted: Callable[[], bool]
    ) -> tuple[Answer, float] | None:
        """Place a call: one request, which is never retried; see `Poller.request`."""
        # Read `_client` when the request is sent: a refusal of replaced keys must not pause the
        # account.
        placed = await self.poller.request(
            lambda: self._client.place_call(request), timeout, wanted
        )
        if placed:
            answer, seconds = placed
            self.stats.of(Operation.MAKE_CALL).count(answer.outcome, answer.code, seconds)
        return placed

    async def stop(self, timeout: float) -> None:
        """Stop sending requests, and wait up to `timeout` seconds for polls in flight."""
        if self._balance_task:
            self._balance_task.cancel()
        await self.poller.stop(timeout)

    async def close(self) -> None:
        await self._client.close()

    def _connect(
        self, config: AccountConfig, polling: PollingConfig, tls: ssl.SSLContext | None
    ) -> None:
        self._connection = _client_of(config), polling.timeout, tls
        self._client = self._make_client(config, polling.timeout, tls=tls)

    def _request_balance(self, interval: float) -> None:
        """Start requesting the balance at an interval in seconds; 0 stops it."""
        self._interval = interval
        if self._balance_task:
            self._balance_task.cancel()
        if interval:
            self.stats.of(Operation.GET_BALANCE)  # expose zeros before the first request
            self._balance_task = self._supervisor.start(self._request_balances(interval))
        else:
            self.stats.balance = None
            self.stats.requests.pop(Operation.GET_BALANCE, None)
        self.stats.balance_warning = self._config.balance_warning if interval else None

    async def _request_balances(self, interval: float) -> None:
        requests, name, failures = self.stats.of(Operation.GET_BALANCE), self._config.name, 0
        await asyncio.sleep(interval * _FIRST_SHARE * random.random())  # noqa: S311 - no secret
        while True:
            await self.poller.wait_for_slot()
            sent_at = time.monotonic()
            answer = await self._client.balance()
            requests.count(answer.outcome, answer.code, time.monotonic() - sent_at)
            if answer.balance is not None:
                self.stats.balance = Balance(answer.balance, time.time())
                if failures:
                    _log.info("balance requests recovered", account=name)
                failures = 0
            else:
                failures += 1
            if failures == 1:
                _log.warning(
                    "balance request failed",
                    account=name,
                    reason=answer.outcome.value,
                    code=answer.code,
                    message=answer.message,
                )
            wait = balance_wait(failures, interval, answer.retry_after)
            await asyncio.sleep(wait * random.uniform(0.9, 1.1))  # noqa: S311 - no secret


async def _close_after(client: EsmsClient, seconds: float) -> None:
    # Requests in flight end by their own timeout.
    try:
        await asyncio.sleep(seconds + 1)
    finally:
        await client.close()
