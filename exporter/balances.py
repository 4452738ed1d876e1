"""The balances of the accounts, requested at an interval.

Balances come from another host than calls, which may refuse or throttle when the other one does
not. So neither pauses the other: each has a back-off of its own.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import structlog

from exporter.account import Account
from exporter.backoff import ExponentialBackoff
from exporter.config import Config
from exporter.config.files import Authorities
from exporter.metrics.catalogue import Catalogue
from exporter.polling.stats import Operation, RequestStats
from exporter.secrets import Secret

LONGEST_WAIT: Final = 900.0
"""Seconds to the next request after failures or a `Retry-After`, at most; the interval where that
is longer."""

FIRST_SHARE: Final = 0.1
"""The share of the interval in which the first request is sent, so that those of many accounts are
spread."""

_LOOK_EVERY: Final = 1.0
"""Seconds after which it is checked whether the account is polled here."""

_log = structlog.get_logger(__name__)


class Balance(NamedTuple):
    """A balance in VND, and when the provider reported it (Unix time)."""

    vnd: float
    known_at: float


@dataclass(frozen=True, slots=True)
class _Settings:
    """How an account's balance is requested; times in seconds.

    Attributes:
        account: whose balance it is: the address and the keys.
    """

    account: tuple[str, Secret, Secret]
    interval: float
    timeout: float
    authorities: Authorities | None
    proxy: Secret | None


def wait_after(failures: int, interval: float, retry_after: float | None) -> float:
    """Return the seconds until the next request.

    Args:
        failures: how many requests in a row have failed; each doubles the wait.
        interval: the seconds from one request to the next while all is well.
        retry_after: seconds for which a throttling provider wants no requests.
    """
    longest = max(interval, LONGEST_WAIT)
    return max(
        ExponentialBackoff(interval, longest).wait(failures + 1), min(longest, retry_after or 0.0)
    )


class Balances:
    """Requests the balance of each account, and shows it.

    Args:
        accounts: those that are polled here: live mapping, shared by reference.
        metrics: where balances and requests are shown.
        spawn: runs a coroutine in the background, until it is cancelled.

    Attributes:
        known: the last known balance of each account.
    """

    def __init__(
        self,
        accounts: Mapping[str, Account],
        metrics: Catalogue,
        spawn: Callable[[Coroutine[None, None, None]], asyncio.Task[None]],
    ) -> None:
        self.known: dict[str, Balance] = {}
        self._accounts = accounts
        self._metrics = metrics
        self._spawn = spawn
        self._tasks: dict[str, tuple[_Settings, asyncio.Task[None]]] = {}

    def configure(self, config: Config) -> None:
        """Go over to another configuration; what has not changed goes on."""
        wanted = {name: one for name, one in _settings(config).items() if name in self._accounts}
        for name, (settings, task) in list(self._tasks.items()):
            if settings != wanted.get(name):
                task.cancel()
                del self._tasks[name]
                # The balance of another account says nothing about this one.
                if name not in wanted or settings.account != wanted[name].account:
                    self._forget(name)
        if not wanted:
            for polled in self._accounts.values():
                polled.stats.requests.pop(Operation.GET_BALANCE, None)
        for name, settings in wanted.items():
            if name in self._accounts:
                self._show_account(name)
            if name not in self._tasks:
                self._tasks[name] = settings, self._spawn(self._run(name, settings.interval))
        for account in config.accounts:
            warned = account.name in wanted
            self._show_warning(account.name, account.balance_warning if warned else None)

    async def stop(self) -> None:
        """Ask no more; requests under way are given up."""
        tasks = [task for _, task in self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget(self, account: str) -> None:
        self.known.pop(account, None)
        for family in (self._metrics.balance, self._metrics.balance_timestamp):
            family.remove(account)

    async def _run(self, name: str, interval: float) -> None:
        """Request an account's balance at its interval, while the account is polled here."""
        account, requests, failures = None, None, 0
        while True:
            if (polled := self._accounts.get(name)) is None:
                self._forget(name)
                account = None
                await asyncio.sleep(_LOOK_EVERY)
                continue
            if polled is not account or requests is None:
                account, requests, failures = polled, self._show_account(name), 0
                await asyncio.sleep(interval * FIRST_SHARE * random.random())  # noqa: S311 - no secret
                continue
            begun = time.monotonic()
            answer = await account.balance()
            if self._accounts.get(name) is not account:
                continue
            requests.count(answer.outcome, answer.code, time.monotonic() - begun)
            if answer.balance is None:
                failures += 1
            else:
                self._show(name, answer.balance)
                if failures:
                    _log.info("balance is known again", account=name)
                failures = 0
            if failures == 1:
                _log.warning(
                    "balance not known",
                    account=name,
                    reason=answer.outcome.value,
                    code=answer.code,
                    message=answer.message,
                )
            wait = wait_after(failures, interval, answer.retry_after)
            await asyncio.sleep(wait * random.uniform(0.9, 1.1))  # noqa: S311 - no secret

    def _show_account(self, name: str) -> RequestStats:
        """Make an account's series."""
        self._metrics.balance_timestamp.labels(name)
        return self._accounts[name].stats.of(Operation.GET_BALANCE)

    def _show_warning(self, account: str, vnd: float | None) -> None:
        if vnd is None:
            self._metrics.balance_warning.remove(account)
        else:
            self._metrics.balance_warning.labels(account).set(vnd)

    def _show(self, account: str, vnd: float) -> None:
        now = time.time()
        self.known[account] = Balance(vnd, now)
        self._metrics.balance.labels(account).set(vnd)
        self._metrics.balance_timestamp.labels(account).set(now)


def _settings(config: Config) -> Mapping[str, _Settings]:
    interval = config.balance.interval
    if not interval:
        return {}
    return {
        account.name: _Settings(
            (account.balance_url, account.api_key, account.secret_key),
            interval,
            config.polling.timeout,
            config.authorities,
            account.proxy_url,
        )
        for account in config.accounts
    }
