"""Which sets of labels have totals of their own: the most recently used ones. Pure."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from typing import Final, NamedTuple

from exporter.ledger.types import Labels

OTHER: Final = "other"
"""The value of a label that made room for others."""


class LabelLimits(NamedTuple):
    """What an account may have.

    Attributes:
        names: `watch.labels`.
        max_values: distinct values of one label.
        max_sets: sets of labels.
    """

    names: tuple[str, ...] = ()
    max_values: float = math.inf
    max_sets: float = math.inf


NO_LIMITS: Final = LabelLimits()


def canonical(labels: Labels) -> str:
    """Return a set of labels as the ledger names it: JSON, keys sorted."""
    return json.dumps(dict(sorted(labels.items())), separators=(",", ":"))


class CountedSets:
    """The sets of labels of one account that have totals of their own.

    A set that makes room is evicted, and its calls are counted as another one from then on:

    - The least recently used value of a label becomes `other` in each of its sets.
    - Sets that are shown like the least recently used one become one set: they differ in labels
      that are not in `names` any more.
    - The least recently used set becomes the one in which every value is `other`.

    So the series of what makes room disappear, and others stay as they are. The set in which every
    value is `other` and the one without labels are always there and take no room.

    Attributes:
        folded: sets that made room, and the ones as which they are counted; both by their
            canonical names.
        known: the labels of all of them, and of every set that was used.
    """

    def __init__(self, limits: LabelLimits) -> None:
        self._limits = limits
        # The least recently used first, here and below.
        self._sets = OrderedDict[str, Labels]()
        self._values = {name: OrderedDict[str, set[str]]() for name in limits.names}
        self._alike: dict[tuple[tuple[str, str], ...], set[str]] = {}
        self._overflow = dict.fromkeys(limits.names, OTHER)
        self._always = {canonical({}), canonical(self._overflow)}
        self.folded: dict[str, str] = {}
        self.known: dict[str, Labels] = {}

    def use(self, labels: Labels, name: str | None = None) -> None:
        """Note that a call with these labels, whose canonical name may be known, was added."""
        name = name or canonical(labels)
        self._add(name, labels)
        self._touch(name)
        for label, values in self._values.items():
            while len(values) > self._limits.max_values:
                for one in list(next(iter(values.values()))):
                    self._fold(one, {**self._sets[one], label: OTHER})
        self._touch(name)  # also after what others were folded into
        while len(self._sets) > self._limits.max_sets:
            self._fold_oldest(name)

    def counted_as(self, name: str) -> str:
        """Return the set whose totals the calls of a set are added to, by canonical names."""
        while (into := self.folded.get(name)) is not None:
            name = into
        return name

    def keeps_series(self, name: str) -> bool:
        """Say whether a set and the one as which it is counted are shown by the same series."""
        return self._shown(self.known[name]) == self._shown(self.known[self.counted_as(name)])

    @property
    def counted(self) -> list[str]:
        """The sets that have totals of their own, the least recently used first."""
        return [*(name for name in self._always if name in self.known), *self._sets]

    def _add(self, name: str, labels: Labels) -> None:
        self.known[name] = labels
        self.folded.pop(name, None)
        if name in self._always or name in self._sets:
            return
        self._sets[name] = labels
        for label, value in self._valued(labels):
            self._values[label].setdefault(value, set()).add(name)
        self._alike.setdefault(tuple(self._shown(labels).items()), set()).add(name)

    def _touch(self, name: str) -> None:
        if name in self._sets:
            self._sets.move_to_end(name)
            for label, value in self._valued(self._sets[name]):
                self._values[label].move_to_end(value)

    def _fold(self, name: str, into: Labels) -> None:
        # Before the set is removed: its other values keep their places.
        self._add(canonical(into), into)
        labels = self._sets.pop(name)
        for label, value in self._valued(labels):
            sets = self._values[label][value]
            sets.discard(name)
            if not sets:
                del self._values[label][value]
        alike = tuple(self._shown(labels).items())
        self._alike[alike].discard(name)
        if not self._alike[alike]:
            del self._alike[alike]
        self.folded[name] = canonical(into)

    def _fold_oldest(self, used: str) -> None:
        name, labels = next(iter(self._sets.items()))
        shown = self._shown(labels)
        into = canonical(shown)
        others = self._alike[tuple(shown.items())] - {into}
        if others:
            for one in others:
                self._fold(one, shown)
            if into in self._sets:
                self._sets.move_to_end(into, last=used in others)
        else:
            self._fold(name, self._overflow)

    def _shown(self, labels: Labels) -> dict[str, str]:
        return {name: labels[name] for name in self._limits.names if labels.get(name)}

    def _valued(self, labels: Labels) -> list[tuple[str, str]]:
        """Return the values that take room."""
        return [pair for pair in self._shown(labels).items() if pair[1] != OTHER]
