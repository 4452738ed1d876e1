"""What the HTTP server knows of the exporter, and what of it the status page shows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from exporter.account import Account, AccountStatus
from exporter.calls import Status as CallStatus
from exporter.config import Config
from exporter.ledger.ledger import Ledger
from exporter.ledger.types import FinishedCall
from exporter.metrics.catalogue import Catalogue
from exporter.polling.stats import Balance
from exporter.recent_results import Recent
from exporter.secrets import mask_phone_numbers
from exporter.source_status import ConfigStatus
from exporter.sources import Sources
from exporter.sources.configuration import ConfigurationSource
from exporter.supervisor import Supervisor
from exporter.tracker import CallTracker

FAILURES: Final = 20
"""Failures that are shown."""

LINES: Final = 20
"""Lines of problems that are shown of one source."""


class App(Protocol):
    """What the HTTP server uses of the exporter: `exporter.app.App`."""

    accounts: dict[str, Account]
    calls: CallTracker
    config: Config | None
    ledger: Ledger
    metrics: Catalogue
    sources: Sources
    config_status: ConfigStatus
    supervisor: Supervisor

    @property
    def standby(self) -> Mapping[str, str]:
        """The accounts that another exporter polls, with its name; empty while none does."""

    def not_ready(self) -> list[str]:
        """Return the reasons why the exporter does not do its work; empty when it does."""

    def on_reload(self, reload: Callable[[], Awaitable[None]]) -> None:
        """Have another configuration loaded with each reload."""

    async def reload(self) -> None:
        """Load every configuration again; raises `ExporterError` where one stays as it was."""


class Viewer(NamedTuple):
    """Who requests the page.

    Attributes:
        known: authenticated, by a password or a token.
        accounts: whose ReferenceIds are shown; None for all.
    """

    known: bool = False
    accounts: frozenset[str] | None = frozenset()

    def sees(self, account: str) -> bool:
        """Tell whether ReferenceIds of an account are shown."""
        return self.known and (self.accounts is None or account in self.accounts)


@dataclass(frozen=True, slots=True)
class AccountView:
    """An account: its status, its recent results, its balance, and the labels that lag most."""

    status: AccountStatus
    recent: Recent
    balance: Balance | None = None
    lagging: Mapping[str, str] = field(default_factory=dict)

    @property
    def callees(self) -> Sequence[tuple[CallStatus, int]]:
        """What the callees did today, the most frequent first."""
        counts = [(status, self.recent.of_status(status)) for status in CallStatus]
        return sorted((count for count in counts if count[1]), key=lambda count: -count[1])


class SourceView(NamedTuple):
    """A source; `last_success` is a Unix time, 0 before the first."""

    name: str
    last_success: float
    errors: int
    failing: bool
    problems: Sequence[str]


@dataclass(frozen=True, slots=True)
class StatusView:
    """All that the page shows; times are Unix times."""

    now: float
    not_ready: Sequence[str]
    accounts: Sequence[AccountView]
    failures: Sequence[FinishedCall]
    sources: Sequence[SourceView]
    loaded_at: float
    problems: Sequence[str]
    viewer: Viewer
    standby: Sequence[tuple[str, str]] = ()

    @property
    def attention(self) -> Sequence[tuple[str, Mapping[str, str]]]:
        """What needs attention: keys of messages and their values."""
        found = [("not_ready", {"reason": reason}) for reason in self.not_ready]
        for account in (one.status for one in self.accounts):
            if account.authorized is False:
                found.append(("refused", {"account": account.name}))
            elif account.paused:
                reason = f"pause_{account.paused}"
                found.append(("paused", {"account": account.name, "reason": reason}))
        failing = [
            one.name for one in self.sources if one.failing and one.name != ConfigurationSource.name
        ]
        found += [("source", {"source": name}) for name in failing]
        return found + ([("config", {})] if self.problems else [])


def newest(failures: Iterable[FinishedCall], limit: int = FAILURES) -> list[FinishedCall]:
    """Return the newest failures of all accounts, the newest first."""
    return sorted(failures, key=lambda call: call.finished_at, reverse=True)[:limit]


def lines(text: str) -> list[str]:
    """Return the lines of a text of others, without what may be a phone number."""
    return [mask_phone_numbers(line) for line in text.splitlines() if line.strip()]


def gather(app: App, viewer: Viewer, now: float) -> StatusView:
    """Return what the page shows now; to be called in the event loop."""
    config, label_sets = app.config_status, app.calls.totals
    accounts = [
        AccountView(
            account.status,
            app.calls.histories.recent(name, now),
            account.stats.balance,
            {} if account.status.lagging is None else label_sets.labels(account.status.lagging),
        )
        for name, account in app.accounts.items()
    ]
    return StatusView(
        now,
        app.not_ready(),
        accounts,
        newest(call for account in accounts for call in account.recent.failures),
        [
            SourceView(
                source.name,
                source.last_success,
                source.errors,
                bool(source.problem) or source.name in config.problems,
                lines(source.problem) if viewer.known else [],
            )
            for source in sorted(app.sources.statuses, key=lambda source: source.name)
        ],
        config.loaded_at,
        lines("\n".join(config.problems.values())),
        viewer,
        sorted(app.standby.items()),
    )
