"""What the status page shows, gathered from all over the exporter. Pure but for `gather`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from exporter.account import AccountStatus
from exporter.app import CONFIG_SOURCE, App
from exporter.balances import Balance
from exporter.calls import Status as CallStatus
from exporter.ledger.records import Ended
from exporter.recent_results import Recent
from exporter.web.charts import Chart, chart

FAILURES: Final = 20
LINES: Final = 20
"""Lines of problems that are shown of one thing."""

# What may be a telephone number, in the words of others.
_NUMBER: Final = re.compile(r"\+?\d(?:[ .()-]*\d){6,}")


class Visitor(NamedTuple):
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
    visitor: Visitor

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
                if one.bad and one.name != CONFIG_SOURCE
            ),
            *((("config", {}),) if self.problems else ()),
        ]


def newest(failures: Iterable[Ended], most: int = FAILURES) -> list[Ended]:
    """Return the newest failures of all accounts, the newest first."""
    return sorted(failures, key=lambda call: call.finished_at, reverse=True)[:most]


def lines(text: str) -> list[str]:
    """Return the lines of a text of others, without what may be a telephone number."""
    return [_NUMBER.sub("•••", line) for line in text.splitlines() if line.strip()]


def gather(service: App, visitor: Visitor, now: float) -> StatusView:
    """Take down how everything stands; in the event loop."""
    histories, metrics = service.calls.histories, service.metrics
    recents = [(status, histories.recent(status.name, now)) for status in service.status()]
    errors = {name: series.value for (name,), series in metrics.source_errors.series()}
    return StatusView(
        now,
        service.not_ready(),
        [
            AccountView(
                status,
                recent,
                service.balances.known.get(status.name),
                service.calls.call_metrics.labels(status.lagging)
                if status.lagging is not None
                else {},
            )
            for status, recent in recents
        ],
        newest(call for _, recent in recents for call in recent.failures),
        [
            SourceView(
                name,
                series.value,
                int(errors.get(name, 0)),
                name in metrics.troubles or name in metrics.not_loaded,
                lines(metrics.troubles.get(name, "")) if visitor.known else [],
            )
            for (name,), series in sorted(metrics.source_last_success.series())
        ],
        metrics.reload_timestamp.labels().value,
        lines("\n".join(metrics.not_loaded.values())),
        visitor,
    )
