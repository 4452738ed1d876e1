"""One configured account: its client, its poller, and the requests for its balance."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Final

import structlog

from exporter.backoff import ExponentialBackoff
from exporter.calls import CallState, Finished, GiveUpPolicy, PollAgain, WatchedCall
from exporter.config import AccountConfig, BalanceConfig, PollingConfig
from exporter.config.files import Authorities
from exporter.esms.answers import Answer
from exporter.esms.client import CallRequest, EsmsClient
from exporter.esms.codes import Outcome
from exporter.polling.poller import Poller, PollingSettings
from exporter.polling.stats import AccountStats, Balance, Operation
from exporter.supervisor import Supervisor

LONGEST_BALANCE_WAIT: Final = 900.0
"""Seconds to the next request for a balance after failures or a `Retry-After`, at most; the
interval where that is longer."""

# The share of the interval in which the first balance is requested: those of many accounts spread.
_FIRST_SHARE: Final = 0.1

# What tells whose balance it is, and where requests go.
_balance_of: Final = attrgetter("balance_url", "api_key", "secret_key")
_addresses: Final = attrgetter("base_url", "balance_url", "api_key", "secret_key", "proxy_url")

_log = structlog.get_logger(__name__)


def balance_wait(failures: int, interval: float, retry_after: float | None) -> float:
    """Return the seconds until the next request for a balance.

    Args:
        failures: how many requests in a row have failed; each doubles the wait.
        interval: the seconds from one request to the next while all is well.
        retry_after: seconds for which a throttling provider wants no requests.
    """
    longest = max(interval, LONGEST_BALANCE_WAIT)
    wait = ExponentialBackoff(interval, longest).wait(failures + 1)
    return max(wait, min(longest, retry_after or 0.0))


@dataclass(frozen=True, slots=True)
class AccountStatus:
    """A line of the status page.

    Attributes:
        authorized: None before an answer could tell.
        watched: how many calls, by state.
        overdue: how many calls are due and not asked for yet.
        lag: for how long the first of them has been due, in seconds.
        paused: the outcome that paused it, if any.
        paused_until: when it may be polled again (Unix time).
        code: the result code that came with the pause, if any.
        message: the provider's, or that of the request that failed.
        last_success: when an answer was good (Unix time); 0 before the first.
        lagging: the row of the labels of the call that has been due for longest; None for none.
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


class Account:
    """One configured account, polled until `stop` and then `close`. Made inside a running loop.

    Balances come from another host than calls, which may refuse or throttle when that one does not:
    neither pauses the other.

    Args:
        config: the account's section.
        polling: how all accounts are polled.
        balance: how often balances are requested.
        authorities: of the provider's certificate; None for those of the library.
        observe: takes what polls find out; see `Poller`.
        supervisor: runs what is done in the background.
        clock: see `Poller`.
        held_until: see `Poller.hold`.

    Attributes:
        stats: what is counted of it and its polls.
    """

    def __init__(
        self,
        config: AccountConfig,
        polling: PollingConfig,
        balance: BalanceConfig,
        authorities: Authorities | None,
        observe: Callable[[WatchedCall, Finished | PollAgain, float], None],
        supervisor: Supervisor,
        clock: Callable[[], float] = time.time,
        held_until: float = math.inf,
    ) -> None:
        self.stats = AccountStats()
        self._supervisor = supervisor
        self._config, self._timeout = config, polling.timeout
        self._connection = _addresses(config), polling.timeout, authorities
        self._client = _client(config, polling, authorities)
        self.poller = Poller(
            config.name,
            self._client,
            _settings(config, polling),
            self.stats,
            observe,
            supervisor.fail,
            clock,
            held_until=held_until,
        )
        self._balance_task: asyncio.Task[None] | None = None
        self._request_balance(balance.interval)

    @property
    def status(self) -> AccountStatus:
        """The account's line of the status page."""
        poller, backlog = self.poller, self.poller.backlog()
        said = poller.breaker.paused_by
        return AccountStatus(
            poller.account,
            self.stats.authorized,
            dict(self.stats.open_calls),
            *backlog[:2],
            poller.paused,
            self.stats.paused_until if poller.paused else None,
            said.code if said else None,
            said.message if said else "",
            self.stats.last_success,
            backlog.label_set,
        )

    def change(
        self,
        config: AccountConfig,
        polling: PollingConfig,
        balance: BalanceConfig,
        authorities: Authorities | None,
    ) -> None:
        """Go over to another configuration; what has not changed goes on."""
        old, self._config = self._config, config
        connection = _addresses(config), polling.timeout, authorities
        if reconnect := connection != self._connection:
            self._supervisor.start(_close_after(self._client, self._timeout))
            self._connection, self._timeout = connection, polling.timeout
            self._client = _client(config, polling, authorities)
        self.poller.configure(_settings(config, polling), self._client if reconnect else None)
        if _balance_of(config) != _balance_of(old):
            self.stats.balance = None  # that of another account
        if reconnect or balance.interval != self._interval:
            self._request_balance(balance.interval)
        self.stats.balance_warning = config.balance_warning if balance.interval else None

    async def place(
        self, request: CallRequest, timeout: float, wanted: Callable[[], bool]
    ) -> tuple[Answer, float] | None:
        """Place a call, at the account's pace: one request, which is never sent again.

        Args:
            request: the call.
            timeout: seconds to wait for a turn, at most.
            wanted: whether it is still to be placed, asked while it waits.

        Returns:
            The answer, and the seconds that it took; None where nothing was sent.
        """
        # The client as it is when there is a turn: old keys would pause an account with new ones.
        return await self.poller.request(
            "place",
            lambda: self._client.place_call(request),
            timeout,
            wanted,
        )

    async def stop(self, timeout: float) -> None:
        """Send nothing more, and wait up to `timeout` seconds for polls that are under way."""
        if self._balance_task:
            self._balance_task.cancel()
        await self.poller.stop(timeout)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def _request_balance(self, interval: float) -> None:
        """Request the balance at an interval from now on; 0 for not at all."""
        self._interval = interval
        if self._balance_task:
            self._balance_task.cancel()
        if interval:
            self.stats.of(Operation.GET_BALANCE)  # shown before the first request
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


def _client(
    config: AccountConfig, polling: PollingConfig, authorities: Authorities | None
) -> EsmsClient:
    tls = authorities.context if authorities else True
    return EsmsClient(config, polling.timeout, tls=tls)


def _settings(config: AccountConfig, polling: PollingConfig) -> PollingSettings:
    return PollingSettings(
        polling.interval,
        polling.max_interval,
        GiveUpPolicy(polling.not_found_grace, polling.give_up_after),
        config.rate_limit,
        config.max_concurrency,
        adaptive=polling.pace == "adaptive",
    )


async def _close_after(client: EsmsClient, seconds: float) -> None:
    # By then the requests under way have ended, by their own time-out at the latest.
    try:
        await asyncio.sleep(seconds + 1)
    finally:
        await client.close()
