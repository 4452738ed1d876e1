"""What should be known, counted and shown: the few rules of counting, without any of the code."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from exporter.calls import Finished, Result
from exporter.ids import Kind
from exporter.ledger.store import naming_interval
from exporter.ledger.totals import DELAY_BUCKETS, DURATION_BUCKETS

KEEP_FINISHED: Final = 30 * 86_400.0

Labels = frozenset[tuple[str, str]]
Place = tuple[str, str]
"""An account, and an id as ids are compared."""

Series = tuple[str, tuple[str, ...]]
"""A metric, and the values of its labels."""


class Named(NamedTuple):
    """A call or message as a source names it."""

    account: str
    name: str
    labels: Labels = frozenset()
    kind: Kind = Kind.CALL

    @property
    def place(self) -> Place:
        return self.account, self.name.strip().lower().replace("-", "")


@dataclass(eq=False)
class Call:
    """A call that is known."""

    named: Named
    watched: float
    pushed: bool
    sources: set[str] = field(default_factory=set)
    end: Finished | None = None
    ended: float = 0.0
    price: float | None = None
    gone: bool = False
    deleted: bool = False  # and remembered
    again: float | None = None  # handed over again, or named by a source until then


class Model:
    """The calls that are known, and what those that have finished ever added."""

    def __init__(self, max_calls: int) -> None:
        self.max_calls = max_calls
        self.calls: dict[Place, Call] = {}
        self.observed: dict[Call, tuple[Finished, float]] = {}
        self.totals: defaultdict[tuple[str, Labels, str, str], float] = defaultdict(float)

    def room(self, account: str) -> int:
        """Return how many calls of an account may be new."""
        open_calls = sum(
            place[0] == account and call.end is None and not call.deleted
            for place, call in self.calls.items()
        )
        return max(0, self.max_calls - open_calls)

    def known(self) -> list[tuple[object, ...]]:
        return sorted(
            (*place, call.named.name, call.named.kind, sorted(call.named.labels), call.watched,
             call.pushed, "deleted" if call.deleted else call.end and call.end.result,
             call.end and call.end.status, sorted(call.sources))
            for place, call in self.calls.items()
        )  # fmt: skip

    # What sources do.

    def watch(
        self, source: str | None, named: Iterable[Named], now: float, *, meant: bool = True
    ) -> bool:
        """Take calls in, as far as there is room; returns whether there was for all.

        Args:
            source: a configuration or file; None for those that hand calls over.
            named: the calls.
            now: the time.
            meant: those that were deleted are wanted again.
        """
        refused = False
        before = set(self.calls)
        for call in named:
            known = self.calls.get(call.place)
            if known is not None and not (meant and known.deleted):
                if source is not None:
                    known.sources.add(source)
                elif call.place in before:
                    self.hand_over_again(known, now)
            elif self.room(call.account):
                sources = set[str]() if source is None else {source}
                self.calls[call.place] = Call(call, now, source is None, sources)
            else:
                refused = True
        return not refused

    def push(self, named: Sequence[Named], now: float) -> bool:
        """Take the calls of a request in, all of them or none; returns whether it did."""
        kept = {place for place, call in self.calls.items() if not call.deleted}
        new = Counter(account for account, _ in {call.place for call in named} - kept)
        fits = all(count <= self.room(account) for account, count in new.items())
        return fits and self.watch(None, named, now)

    def hand_over_again(self, call: Call, now: float) -> None:
        over = call.deleted or call.end is not None
        lately = now - naming_interval(KEEP_FINISHED)
        if not call.pushed or (
            over and call.ended < lately and (call.again is None or call.again < lately)
        ):
            call.pushed, call.again = True, now

    def keep_only(self, source: str, named: Iterable[Named], now: float) -> None:
        kept = {call.place for call in named}
        for place, call in list(self.calls.items()):
            if source in call.sources and place not in kept:
                call.sources.discard(source)
                if call.end is not None:
                    call.again = now
                if call.end is None and not call.pushed and not call.sources:
                    call.gone = True
                    del self.calls[place]

    def delete(self, place: Place, now: float) -> bool:
        call = self.calls.get(place)
        if call is None or call.end is not None or call.deleted:
            return False
        call.gone = call.deleted = True
        call.ended, call.sources = now, set()
        return True

    def prune(self, before: float) -> None:
        for place, call in list(self.calls.items()):
            over = call.deleted or call.end is not None
            forgotten = call.ended < before and (call.again is None or call.again < before)
            if over and forgotten and not call.sources:
                del self.calls[place]

    # What becomes of calls.

    def observe(self, call: Call, end: Finished, now: float) -> None:
        self.observed.setdefault(call, (end, now))

    def commit(self) -> None:
        for call, (end, at) in self.observed.items():
            self.finish(call, end, at)
        self.observed.clear()

    def finish(self, call: Call, end: Finished, at: float) -> None:
        if call.gone or call.end is not None:
            return
        call.end, call.ended = end, at
        if call.named.kind is Kind.MESSAGE:
            self._finish_message(call, end)
        else:
            self._add(call, "esms_calls_total", f"{end.result}/{end.status}")
        if end.key is not None:
            self._add(call, "esms_call_keypresses_total", end.key)
        if end.duration is not None:
            self._observe(call, "esms_call_duration_seconds", DURATION_BUCKETS, end.duration)
        delay = max(0.0, at - call.watched)
        self._observe(call, f"esms_{call.named.kind}_result_delay_seconds", DELAY_BUCKETS, delay)
        if call.price is not None:
            self._add_price(call, call.price)

    def _finish_message(self, call: Call, end: Finished) -> None:
        """Count each receiver of a message, and keep the price that its answer names."""
        numbers = (*end.receivers, 0) if end.receivers else (0, 0, 1)
        for result, number in zip(Result, numbers, strict=True):
            self._add(call, "esms_messages_total", result, number)
        if end.price is not None:
            call.price = end.price

    def pay(self, call: Call, price: float) -> None:
        if call.end is None:
            call.price = price
        elif not call.price:
            call.price = price
            self._add_price(call, price)

    def _add_price(self, call: Call, price: float) -> None:
        self._add(call, f"esms_{call.named.kind}_price_vnd_total", "sum", price)

    def _observe(self, call: Call, metric: str, bounds: Iterable[float], value: float) -> None:
        self._add(call, metric, next((repr(bound) for bound in bounds if value <= bound), "+Inf"))
        self._add(call, metric, "sum", value)

    def _add(self, call: Call, metric: str, cell: str, amount: float = 1.0) -> None:
        self.totals[call.named.account, call.named.labels, metric, cell] += amount

    # What is shown.

    def shown(self, accounts: Iterable[str], names: Sequence[str]) -> dict[Series, float]:
        """Return what is shown of the totals where no labels make room, without zeros.

        Args:
            accounts: those that are configured.
            names: `watch.labels`.
        """
        found: defaultdict[Series, float] = defaultdict(float)
        for (account, labels_, metric, cell), amount in self.totals.items():
            if account in accounts:
                labels = dict(labels_)
                shown = [labels.get(name, "") for name in names]
                if metric.endswith("_result_delay_seconds"):
                    shown = []
                found[metric, (account, cell, *shown)] += amount
        return {series: value for series, value in found.items() if value}
