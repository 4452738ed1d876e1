"""Who is told of which calls: pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from exporter.calls import Finished
from exporter.config.notify import NotifyConfig


@dataclass(frozen=True, slots=True)
class Route:
    """The calls that a target is told of. None stands for any.

    Attributes:
        target: its name.
        give_up_after: seconds after a call's finish for which it is tried.
        labels: by name, the values that a call's label may have; a call without it shows it empty.
    """

    target: str
    give_up_after: float
    accounts: Collection[str] | None
    results: Collection[str] | None
    statuses: Collection[str] | None
    labels: Mapping[str, Collection[str]]

    def takes(self, account: str, finished: Finished, labels: Mapping[str, str]) -> bool:
        """Tell whether the target is told of a call that has finished."""
        return (
            (self.accounts is None or account in self.accounts)
            and (self.results is None or finished.result in self.results)
            and (self.statuses is None or finished.status in self.statuses)
            and all(labels.get(name, "") in values for name, values in self.labels.items())
        )


def route_of(config: NotifyConfig) -> Route:
    """Return the route of a configured target."""
    return Route(
        config.name,
        config.give_up_after,
        config.accounts,
        config.results,
        config.statuses,
        config.label_values,
    )
