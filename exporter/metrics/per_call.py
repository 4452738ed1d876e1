"""A series for each call: off, unless the configuration asks for it.

The one place where a ReferenceId is a label. Nothing is kept for it but what has finished lately:
the lines are made at each scrape, in a thread, of what the event loop took down.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, TypeVar

from exporter.calls import CallState, Result, WatchedCall, reference_key
from exporter.ledger.records import Ended
from exporter.metrics.families import Family, Value, escape, gauge

RECENT: Final = 900.0
"""Seconds for which a call that has finished is shown: a look, or a scrape, that comes late."""

# Lines that are put into one text: more would keep the interpreter's lock for too long.
_CHUNK: Final = 2_000

FINISHED: Final = {result: f"finished_{result.value}" for result in Result}
"""The label `state` of a call that has finished."""

_STATE: Final = "esms_call_state"
_WATCHED_ENDS: Final = {state: f'",state="{state.value}"}} 1\n' for state in CallState}
_FINISHED_ENDS: Final = {result: f'",state="{state}"}} 1\n' for result, state in FINISHED.items()}

Call = TypeVar("Call", WatchedCall, Ended)


def state_family() -> Family[Value]:
    """Return the metric of the calls, without series."""
    return gauge(
        _STATE,
        "1 for each call that is watched, or has finished within the last "
        f"{RECENT / 60:.0f} minutes, where metrics.per_call is enabled. state: as in "
        "esms_calls_watched; once it has finished, finished_ and its result. "
        "Of more calls than metrics.per_call.limit, those that were watched last.",
        "account",
        "reference_id",
        "state",
    )


def omitted_family() -> Family[Value]:
    """Return the metric of the calls that are left out, without series."""
    return gauge(
        "esms_call_state_omitted_calls",
        "Watched calls that esms_call_state leaves out, because there are more calls than "
        "metrics.per_call.limit; only where metrics.per_call is enabled.",
    )


@dataclass(frozen=True, slots=True)
class Candidates:
    """What may be shown, as it stood at a moment.

    Attributes:
        watched: the newest calls of each account, `limit` at most.
        finished: those that have finished lately, of any account, the oldest first.
        count: how many calls are watched in all.
        limit: how many calls are shown.
    """

    watched: Mapping[str, Sequence[WatchedCall]]
    finished: Sequence[Ended]
    count: int
    limit: int

    def render(self, *, openmetrics: bool) -> list[bytes]:
        """Return the lines of the exposition, in pieces; to be called in a thread."""
        # A series must not be there twice: of a call that finished again, the end that came last.
        finished = list(
            {
                (call.account, reference_key(call.reference_id)): call for call in self.finished
            }.values()
        )
        finished = [call for call in finished if call.account in self.watched]
        chosen = _Newest([*self.watched.values(), finished], self.limit)
        pieces = ["".join(state_family().lines(openmetrics=openmetrics)).encode()]
        shown = 0
        for account, calls in self.watched.items():
            start = _start(account)
            newest = chosen.of(calls)
            shown += len(newest)
            for chunk in _chunks(newest):
                lines = [
                    f"{start}{_name(call.reference_id)}{_WATCHED_ENDS[call.state]}"
                    for call in chunk
                ]
                pieces.append("".join(lines).encode())
        for ended in _chunks(chosen.of(finished)):
            lines = [
                f"{_start(call.account)}{_name(call.reference_id)}{_FINISHED_ENDS[call.result]}"
                for call in ended
            ]
            pieces.append("".join(lines).encode())
        omitted = omitted_family()
        omitted.labels().value = float(self.count - shown)
        pieces.append("".join(omitted.lines(openmetrics=openmetrics)).encode())
        return pieces


class CallStates:
    """What is needed to show each call.

    Attributes:
        limit: how many calls are shown; 0 where none are.
    """

    def __init__(self) -> None:
        self.limit = 0
        self._finished = deque[Ended](maxlen=0)  # the oldest first

    def configure(self, limit: int) -> None:
        """Show that many calls from now on; 0 for none."""
        self.limit = limit
        self._finished = deque(self._finished, maxlen=limit)

    def add(self, call: Ended) -> None:
        """Take note of a call that has finished."""
        self._finished.append(call)

    def candidates(
        self, watched: Mapping[str, dict[int, WatchedCall]], now: float
    ) -> Candidates | None:
        """Take down what may be shown now; None where nothing is.

        Args:
            watched: the calls of each account that is shown, in the order in which they came.
            now: Unix time.
        """
        if not self.limit:
            return None
        while self._finished and now - self._finished[0].finished_at > RECENT:
            self._finished.popleft()
        return Candidates(
            {
                account: list(islice(reversed(calls.values()), self.limit))
                for account, calls in watched.items()
            },
            list(self._finished),
            sum(map(len, watched.values())),
            self.limit,
        )


class _Newest:
    """Chooses the calls that were watched last.

    Args:
        groups: the calls to choose from.
        limit: how many there are to be.
    """

    def __init__(
        self, groups: Sequence[Sequence[WatchedCall] | Sequence[Ended]], limit: int
    ) -> None:
        self._since: float | None = None  # all, if None
        if sum(map(len, groups)) <= limit:
            return
        times = [call.first_watched for calls in groups for call in calls]
        times.sort(reverse=True)
        self._since = times[limit - 1]
        # Of those that came together with the last that is shown, as many as there is room for.
        self._room = limit - times.index(self._since)

    def of(self, calls: Sequence[Call]) -> Sequence[Call]:
        """Return those of a group."""
        if (since := self._since) is None:
            return calls
        newer = [call for call in calls if call.first_watched > since]
        last = [call for call in calls if call.first_watched == since][: self._room]
        self._room -= len(last)
        return newer + last


def _start(account: str) -> str:
    return f'{_STATE}{{account="{account}",reference_id="'


def _name(reference_id: str) -> str:
    plain = '"' not in reference_id and "\\" not in reference_id
    return reference_id if plain else escape(reference_id)


def _chunks(calls: Sequence[Call]) -> Iterator[Sequence[Call]]:
    for first in range(0, len(calls), _CHUNK):
        yield calls[first : first + _CHUNK]
