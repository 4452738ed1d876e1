"""One configured account: its connections, its poller, and the way to another configuration."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass

from exporter.calls import CallState, Finished, GiveUpPolicy, PollAgain, WatchedCall
from exporter.config import AccountConfig, PollingConfig
from exporter.config.files import Authorities
from exporter.esms.answers import BalanceAnswer
from exporter.esms.client import CallRequest, EsmsClient, PlacedCall
from exporter.esms.codes import Outcome
from exporter.polling.poller import Poller, PollingSettings
from exporter.polling.stats import AccountStats


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
    """One configured account.

    Args:
        config: the account's section.
        polling: how all accounts are polled.
        authorities: of the provider's certificate; None for those of the library.
        observe: takes what polls find out; see `Poller`.
        fail: see `Poller`.
        clock: see `Poller`.
        held_until: see `Poller.hold`.

    Attributes:
        stats: what is counted of it and its polls.

    Must be made inside a running loop; `stop` and then `close` end it.
    """

    def __init__(
        self,
        config: AccountConfig,
        polling: PollingConfig,
        authorities: Authorities | None,
        observe: Callable[[WatchedCall, Finished | PollAgain, float], None],
        fail: Callable[[BaseException], None],
        clock: Callable[[], float] = time.time,
        held_until: float = math.inf,
    ) -> None:
        self._connection = _connection(config, polling, authorities)
        self._timeout = polling.timeout
        self.stats = AccountStats()
        self._client = _client(config, polling, authorities)
        settings = _settings(config, polling)
        self.poller = Poller(
            config.name,
            self._client,
            settings,
            self.stats,
            observe,
            fail,
            clock,
            held_until=held_until,
        )

    @property
    def status(self) -> AccountStatus:
        """The account's line of the status page."""
        poller, backlog = self.poller, self.poller.backlog()
        said = poller.health.paused_by if poller.paused else None
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
        self, config: AccountConfig, polling: PollingConfig, authorities: Authorities | None
    ) -> Coroutine[None, None, None] | None:
        """Go over to another configuration.

        Returns:
            Where the connections have changed: what is left to do, beside everything else, until
            the requests on the old ones have ended.
        """
        settings = _settings(config, polling)
        connection = _connection(config, polling, authorities)
        if connection == self._connection:
            self.poller.configure(settings)
            return None
        rest = _close_after(self._client, self._timeout)
        self._connection, self._timeout = connection, polling.timeout
        self._client = _client(config, polling, authorities)
        self.poller.configure(settings, self._client)
        return rest

    async def place(
        self, request: CallRequest, within: float, wanted: Callable[[], bool]
    ) -> tuple[PlacedCall, float] | None:
        """Place a call, at the account's pace: one request, which is never sent again.

        Args:
            request: the call.
            within: seconds to wait for a turn, at most.
            wanted: whether it is still to be placed, asked while it waits.

        Returns:
            What came of it, and the seconds that it took; None where nothing was sent.
        """
        # The client as it is when there is a turn: old keys would pause an account with new ones.
        return await self.poller.request(
            "place",
            lambda: self._client.place_call(request),
            lambda placed: placed.answer,
            within,
            wanted,
        )

    async def balance(self) -> BalanceAnswer:
        """Ask for the account's balance, within its rate and also while polls are paused."""
        await self.poller.wait_for_slot()
        return await self._client.balance()

    async def stop(self, within: float) -> None:
        """Send nothing more, and wait up to `within` seconds for what is under way."""
        await self.poller.stop(within)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


def _connection(
    config: AccountConfig, polling: PollingConfig, authorities: Authorities | None
) -> tuple[object, ...]:
    """Return what a client is made of."""
    return (
        config.base_url,
        config.api_key,
        config.secret_key,
        config.proxy_url,
        config.balance_url,
        polling.timeout,
        authorities,
    )


def _client(
    config: AccountConfig, polling: PollingConfig, authorities: Authorities | None
) -> EsmsClient:
    return EsmsClient(
        config.base_url,
        config.api_key,
        config.secret_key,
        timeout=polling.timeout,
        balance_url=config.balance_url,
        tls=authorities.context if authorities else True,
        proxy=config.proxy_url,
    )


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
