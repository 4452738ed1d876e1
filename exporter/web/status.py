"""What the status page shows, gathered from all over the exporter. Pure but for `gather`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

from exporter.account import Account, AccountStatus
from exporter.balances import Balance, Balances
from exporter.calls import Status as CallStatus
from exporter.config import Config
from exporter.ledger.ledger import Ledger
from exporter.ledger.records import Ended
from exporter.metrics.accounts import AccountMetrics
from exporter.metrics.catalogue import Catalogue
from exporter.metrics.families import Family
from exporter.recent_results import Recent
from exporter.source_status import ConfigStatus
from exporter.sources import Sources
from exporter.sources.configuration import ConfigurationSource
from exporter.supervisor import Supervisor
from exporter.tracker import CallTracker

FAILURES: Final = 20
LINES: Final = 20
"""Lines of problems that are shown of one thing."""

STEP: Final = 6
HEIGHT: Final = 72
_BAR: Final = 4
_LEAST: Final = 2.0
"""Height of the smallest bar: one that is there has to be seen."""

# What may be a telephone number, in the words of others.
_NUMBER: Final = re.compile(r"\+?\d(?:[ .()-]*\d){6,}")


class App(Protocol):
    """What the HTTP server uses of the exporter: `exporter.app.App`."""

    @property
    def accounts(self) -> Mapping[str, Account]:
        """The accounts that are polled, by name."""

    @property
    def account_metrics(self) -> Mapping[str, AccountMetrics]:
        """Their metrics, by name."""

    @property
    def balances(self) -> Balances:
        """The last known balances."""

    @property
    def calls(self) -> CallTracker:
        """The calls that are watched."""

    @property
    def config(self) -> Config | None:
        """The configuration in force; None until the exporter has started."""

    @property
    def ledger(self) -> Ledger:
        """The durable record."""

    @property
    def supervisor(self) -> Supervisor:
        """Ends the process if a background task fails."""

    @property
    def metrics(self) -> Catalogue:
        """The exporter's own metrics."""

    @property
    def sources(self) -> Sources:
        """The sources of calls."""

    @property
    def config_status(self) -> ConfigStatus:
        """Which configuration files could not be loaded."""

    def families(self) -> Iterator[Family[Any]]:  # Any: of values or of buckets
        """Yield every metric."""

    def not_ready(self) -> list[str]:
        """Return the reasons why the exporter does not do its work; empty when it does."""

    async def reload(self) -> None:
        """Load the configuration again.

        Raises:
            ExporterError: it stays as it was.
        """


class Viewer(NamedTuple):
    """Who looks.

    Attributes:
        known: somebody let them in, by a password or a token.
        accounts: whose ReferenceIds they may see; None for all.
    """

    known: bool = False
    accounts: frozenset[str] | None = frozenset()

    def sees(self, account: str) -> bool:
        """Tell whether ReferenceIds of an account are shown."""
        return self.known and (self.accounts is None or account in self.accounts)


class Chart(NamedTuple):
    """Bars above a line and below it: which side tells what, not the colour alone.

    Attributes:
        width: of the whole, in units of SVG; `height` likewise.
        line: where the line is, from the top.
        above: the path of the bars above it; empty where there are none. `below` likewise.
        most: the largest sum of both at one place.
    """

    width: int
    height: int
    line: float
    above: str
    below: str
    most: int


def chart(above: Sequence[int], below: Sequence[int]) -> Chart:
    """Draw two rows of numbers of the same length, none negative."""
    high, low = max(above, default=0), max(below, default=0)
    # Both sides have one scale, and room for the smallest bar.
    room = HEIGHT - 2 * _LEAST
    scale = room / (high + low) if high + low else 0.0
    line = round(_LEAST + (high * scale if high + low else room), 1)
    return Chart(
        STEP * len(above),
        HEIGHT,
        line,
        "".join(_bar(i, line - _height(n, scale), _height(n, scale)) for i, n in _there(above)),
        "".join(_bar(i, line, _height(n, scale)) for i, n in _there(below)),
        max((up + down for up, down in zip(above, below, strict=True)), default=0),
    )


def _there(numbers: Sequence[int]) -> list[tuple[int, int]]:
    return [(place, number) for place, number in enumerate(numbers) if number]


def _height(number: int, scale: float) -> float:
    return max(_LEAST, number * scale)


def _bar(place: int, top: float, height: float) -> str:
    return f"M{place * STEP + 1} {top:.1f}h{_BAR}v{height:.1f}h-{_BAR}z"


@dataclass(frozen=True, slots=True)
class AccountView:
    """An account: its status, its recent results, its balance, and the labels that lag most."""

    status: AccountStatus
    recent: Recent
    balance: Balance | None = None
    lagging: Mapping[str, str] = field(default_factory=dict)

    @property
    def results(self) -> Chart:
        """Delivered calls of the last 60 minutes, above those that were not."""
        minutes = self.recent.minutes
        return chart(
            [minute.success for minute in minutes],
            [minute.finished - minute.success for minute in minutes],
        )

    @property
    def answers(self) -> Chart:
        """Answered calls of the last 60 minutes, above those that were not."""
        minutes = self.recent.minutes
        return chart(
            [minute.answered for minute in minutes],
            [minute.finished - minute.answered for minute in minutes],
        )

    @property
    def hour(self) -> Mapping[str, int]:
        """The sums of the last 60 minutes."""
        minutes = self.recent.minutes
        return {
            "finished": sum(minute.finished for minute in minutes),
            "success": sum(minute.success for minute in minutes),
            "answered": sum(minute.answered for minute in minutes),
        }

    @property
    def callees(self) -> Sequence[tuple[CallStatus, int]]:
        """What happened today, the most frequent first."""
        counts = [(status, self.recent.of_status(status)) for status in CallStatus]
        return sorted((count for count in counts if count[1]), key=lambda count: -count[1])


class SourceView(NamedTuple):
    """A watch source; `trouble` is what is wrong now, and the time is 0 before any success."""

    name: str
    last_success: float
    errors: int
    bad: bool
    trouble: Sequence[str]


@dataclass(frozen=True, slots=True)
class StatusView:
    """All of it; times are Unix times."""

    now: float
    not_ready: Sequence[str]
    accounts: Sequence[AccountView]
    failures: Sequence[Ended]
    sources: Sequence[SourceView]
    loaded_at: float
    problems: Sequence[str]
    viewer: Viewer

    @property
    def attention(self) -> Sequence[tuple[str, Mapping[str, str]]]:
        """What somebody should look at: keys of messages and their values."""
        return [
            *(("not_ready", {"reason": reason}) for reason in self.not_ready),
            *(
                ("paused", {"account": one.status.name, "reason": f"pause_{one.status.paused}"})
                if one.status.paused and one.status.authorized is not False
                else ("refused", {"account": one.status.name})
                for one in self.accounts
                if one.status.paused or one.status.authorized is False
            ),
            *(
                ("source", {"source": one.name})
                for one in self.sources
                if one.bad and one.name != ConfigurationSource.name
            ),
            *((("config", {}),) if self.problems else ()),
        ]


def newest(failures: Iterable[Ended], most: int = FAILURES) -> list[Ended]:
    """Return the newest failures of all accounts, the newest first."""
    return sorted(failures, key=lambda call: call.finished_at, reverse=True)[:most]


def lines(text: str) -> list[str]:
    """Return the lines of a text of others, without what may be a telephone number."""
    return [_NUMBER.sub("•••", line) for line in text.splitlines() if line.strip()]


def gather(app: App, viewer: Viewer, now: float) -> StatusView:
    """Take down how everything stands; in the event loop."""
    histories, config = app.calls.histories, app.config_status
    recents = [
        (account.status, histories.recent(name, now)) for name, account in app.accounts.items()
    ]
    return StatusView(
        now,
        app.not_ready(),
        [
            AccountView(
                status,
                recent,
                app.balances.known.get(status.name),
                app.calls.call_metrics.labels(status.lagging) if status.lagging is not None else {},
            )
            for status, recent in recents
        ],
        newest(call for _, recent in recents for call in recent.failures),
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
    )
