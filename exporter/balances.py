"""The balances of the accounts, each asked for at its interval.

The balance is told by another host than the calls, and may be refused or throttled where those are
not, and the other way round. So neither pauses the other: each has its own back-off, and each keeps
trying what only it can find to be mended.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import structlog

from exporter.backoff import ExponentialBackoff
from exporter.config import Config
from exporter.config.authorities import Authorities
from exporter.errors import RequestError
from exporter.esms.answers import BalanceAnswer
from exporter.esms.balance import BalanceClient
from exporter.metrics.catalogue import GET_BALANCE, Catalogue
from exporter.metrics.requests import RequestMetrics, remove_operation
from exporter.secrets import Secret

LONGEST_WAIT: Final = 900.0
"""Seconds that failures, or a `Retry-After`, make the wait for the next request, at most; the
interval where that is longer."""

FIRST_WITHIN: Final = 0.1
"""The share of the interval within which an account is first asked for: many of them, or many
exporters that start together, do not ask at once."""

_log = structlog.get_logger(__name__)


class Balance(NamedTuple):
    """What the provider said: VND, and when (Unix time)."""

    vnd: float
    told_at: float


class _Purse(NamedTuple):
    """Whose balance is asked for, and where."""

    url: str
    api_key: Secret
    secret_key: Secret


@dataclass(frozen=True, slots=True)
class _Wish:
    """How an account is to be asked for; times in seconds."""

    purse: _Purse
    interval: float
    timeout: float
    authorities: Authorities | None
    proxy: Secret | None


def wait_after(failures: int, interval: float, retry_after: float | None) -> float:
    """Return the seconds until the next request.

    Args:
        failures: how many requests in a row have failed; each doubles the wait.
        interval: the seconds from one request to the next while all is well.
        retry_after: what a throttling provider asked for, in seconds.
    """
    longest = max(interval, LONGEST_WAIT)
    return max(
        ExponentialBackoff(interval, longest).wait(failures + 1), min(longest, retry_after or 0.0)
    )


class Balances:
    """Asks for the balance of each account, and shows it.

    Exporters that share a ledger each ask for themselves: what one may not ask, another may.

    Args:
        metrics: where balances and requests are shown.
        spawn: runs a coroutine in the background, until it is cancelled.

    Attributes:
        known: the balances that the provider has told, by account.

    Must be made inside a running loop, and stopped.
    """

    def __init__(
        self,
        metrics: Catalogue,
        spawn: Callable[[Coroutine[None, None, None]], asyncio.Task[None]],
    ) -> None:
        self.known: dict[str, Balance] = {}
        self._metrics = metrics
        self._spawn = spawn
        self._asking: dict[str, tuple[_Wish, asyncio.Task[None]]] = {}
        self._client: BalanceClient | None = None

    def configure(self, config: Config) -> None:
        """Go over to another configuration; what has not changed goes on."""
        wanted = _wishes(config)
        for name, (wish, task) in list(self._asking.items()):
            if wish != wanted.get(name):
                task.cancel()
                del self._asking[name]
                # What another account holds says nothing of this one.
                if name not in wanted or wish.purse != wanted[name].purse:
                    self._forget(name)
        if not wanted:
            remove_operation(self._metrics, GET_BALANCE)
        for name, wish in wanted.items():
            self._metrics.balance_timestamp.labels(name)
            if name not in self._asking:
                self._asking[name] = wish, self._spawn(self._ask_again_and_again(name, wish))
        for account in config.accounts:
            self._metrics.balance_warning.remove("account", account.name)
            if wanted and account.balance_warning is not None:
                warning = self._metrics.balance_warning.labels(account.name)
                warning.value = account.balance_warning

    async def stop(self) -> None:
        """Ask no more; a request under way is given up."""
        tasks = [task for _, task in self._asking.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._client:
            await self._client.close()

    def _forget(self, account: str) -> None:
        self.known.pop(account, None)
        for family in (self._metrics.balance, self._metrics.balance_timestamp):
            family.remove("account", account)

    async def _ask_again_and_again(self, account: str, wish: _Wish) -> None:
        counted = RequestMetrics(self._metrics, account, GET_BALANCE)
        await asyncio.sleep(wish.interval * FIRST_WITHIN * random.random())  # noqa: S311 - no secret
        failures = 0
        while True:
            answer = await self._ask(wish, counted)
            if answer.balance is None:
                failures += 1
            else:
                self._show(account, answer.balance)
                if failures:
                    _log.info("balance is known again", account=account)
                failures = 0
            if failures == 1:
                _log.warning(
                    "balance not known",
                    account=account,
                    reason=answer.outcome.value,
                    code=answer.code,
                    message=answer.message,
                )
            wait = wait_after(failures, wish.interval, answer.retry_after)
            await asyncio.sleep(wait * random.uniform(0.9, 1.1))  # noqa: S311 - no secret

    async def _ask(self, wish: _Wish, counted: RequestMetrics) -> BalanceAnswer:
        self._client = self._client or BalanceClient()
        begun = time.monotonic()
        tls = wish.authorities.context if wish.authorities else True
        try:
            answer = await self._client.get_balance(
                *wish.purse, within=wish.timeout, tls=tls, proxy=wish.proxy
            )
        except RequestError as error:
            answer = BalanceAnswer(error.outcome, message=str(error))
        counted.count(answer.outcome, answer.code, time.monotonic() - begun)
        return answer

    def _show(self, account: str, vnd: float) -> None:
        now = time.time()
        self.known[account] = Balance(vnd, now)
        self._metrics.balance.labels(account).value = vnd
        self._metrics.balance_timestamp.labels(account).value = now


def _wishes(config: Config) -> Mapping[str, _Wish]:
    interval = config.balance.interval
    if not interval:
        return {}
    return {
        account.name: _Wish(
            _Purse(account.balance_url, account.api_key, account.secret_key),
            interval,
            config.polling.timeout,
            config.authorities,
            account.proxy_url,
        )
        for account in config.accounts
    }
