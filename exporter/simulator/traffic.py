"""What clients did to the stand-in: counters from which an exporter's manners can be judged."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Ids beyond this many are not counted one by one, so that a long run stays small.
MAX_IDS = 200_000
# So many ids, the most asked first, are shown at once.
SHOWN_IDS = 10_000
# The account of requests whose ApiKey nobody has.
NOBODY = "-"


class Window:
    """How many events happened within the last second."""

    __slots__ = ("_times",)

    def __init__(self) -> None:
        self._times: deque[float] = deque()

    def count(self, now: float) -> int:
        """Events within the second before `now`."""
        times = self._times
        while times and times[0] <= now - 1.0:
            times.popleft()
        return len(times)

    def add(self, now: float) -> None:
        """Count an event."""
        self._times.append(now)


class Traffic:
    """Requests as the stand-in saw them.

    Args:
        clock: seconds; only differences count.

    Attributes:
        requests: how many, by account, operation and outcome. The outcome is the result code, the
            HTTP status of a refusal over HTTP, or the kind of the fault that replaced the answer.
        by_reference_id: GetSendStatus requests by id.
        peak_rate: the most requests within any one second, by account.
        peak_open: the most requests under way at one moment, by account.
        overlapping: ids that an account asked again while an answer was still under way.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.requests: Counter[tuple[str, str, str]] = Counter()
        self.by_reference_id: Counter[str] = Counter()
        self.peak_rate: dict[str, int] = {}
        self.peak_open: dict[str, int] = {}
        self.overlapping: set[str] = set()
        self._open: Counter[str] = Counter()
        self._open_calls: Counter[tuple[str, str]] = Counter()
        self._windows: defaultdict[str, Window] = defaultdict(Window)

    @property
    def open(self) -> int:
        """Requests under way now."""
        return self._open.total()

    @contextmanager
    def request(self, account: str, reference_id: str) -> Iterator[None]:
        """Note a request as it comes in, and hold it as open until it is answered or gone.

        Args:
            account: the account's name, or `NOBODY`.
            reference_id: as `shown_id` makes it; empty for requests that ask for no call.
        """
        window, now = self._windows[account], self._clock()
        window.add(now)
        self.peak_rate[account] = max(self.peak_rate.get(account, 0), window.count(now))
        self._open[account] += 1
        self.peak_open[account] = max(self.peak_open.get(account, 0), self._open[account])
        call = account, reference_id
        if reference_id:
            self._asked(call)
        try:
            yield
        finally:
            self._open[account] -= 1
            if reference_id:
                self._open_calls[call] -= 1
                if not self._open_calls[call]:
                    del self._open_calls[call]

    def count(self, account: str, operation: str, outcome: str) -> None:
        """Count what was answered."""
        self.requests[account, operation, outcome] += 1

    def total(self, account: str | None = None, outcome: str | None = None) -> int:
        """Requests of an account (None: of all) with an outcome (None: any)."""
        return sum(
            number
            for (name, _, result), number in self.requests.items()
            if account in (None, name) and outcome in (None, result)
        )

    def _asked(self, call: tuple[str, str]) -> None:
        reference_id = call[1]
        if reference_id in self.by_reference_id or len(self.by_reference_id) < MAX_IDS:
            self.by_reference_id[reference_id] += 1
        self._open_calls[call] += 1
        if self._open_calls[call] > 1 and len(self.overlapping) < SHOWN_IDS:
            self.overlapping.add(reference_id)

    def state(self) -> dict[str, object]:
        """All of it, for JSON."""
        return {
            "requests": [
                {"account": account, "operation": operation, "outcome": outcome, "count": number}
                for (account, operation, outcome), number in sorted(self.requests.items())
            ],
            "requests_by_reference_id": dict(self.by_reference_id.most_common(SHOWN_IDS)),
            "max_requests_in_one_second": dict(self.peak_rate),
            "max_open_requests": dict(self.peak_open),
            "open_requests": self.open,
            "asked_twice_at_once": bool(self.overlapping),
            "overlapping_reference_ids": sorted(self.overlapping),
        }
