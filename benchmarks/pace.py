"""What a result costs in requests, and how late it is known, by the pace at which calls are polled.

A day of calls of several accounts, polled by the exporter's own poller in virtual time.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from unittest import mock

from benchmarks import virtual_time
from benchmarks.lives import KINDS, Life, day, ringing
from benchmarks.virtual_time import PollingSettings
from exporter.calls import Finished, GiveUpPolicy, PollAgain, Status, WatchedCall
from exporter.esms.answers import Answer
from exporter.esms.codes import Outcome
from exporter.ids import Kind, ReferenceId
from exporter.polling.intervals import PollIntervals
from exporter.polling.poller import Poller
from exporter.polling.stats import AccountStats

INTERVAL = 15.0
GIVE_UP = GiveUpPolicy(600.0, 259_200.0)
# A callback is sent by the provider's own servers, some of which are lost.
CALLED_BACK = 0.98
CALLED_BACK_AFTER = 1.0
# Calls that live longer than this are told of apart: the few of them would drown all others.
LONG = 600.0

_QUEUED = Answer(Outcome.OK, "100", send_status=2)
_BUSY = Answer(Outcome.OK, "100", send_status=5, sent_result=1, call_status="BUSY")


class Way(NamedTuple):
    """How calls are followed."""

    name: str
    settings: PollingSettings
    called_back: bool = False
    at_once: bool = False


def _settings(max_interval: float, *, adaptive: bool = False) -> PollingSettings:
    return PollingSettings(INTERVAL, max_interval, GIVE_UP, 20.0, 32, adaptive)


WAYS = (
    Way("every 15 s", _settings(INTERVAL)),
    Way("growing", _settings(300.0)),
    Way("adaptive", _settings(300.0, adaptive=True)),
    Way("adaptive, first poll at once", _settings(300.0, adaptive=True), at_once=True),
    Way("growing, callbacks", _settings(300.0), called_back=True),
    Way("adaptive, callbacks", _settings(300.0, adaptive=True), called_back=True),
)


@dataclass(slots=True)
class Asked:
    """What became of a call that was placed."""

    life: Life
    requests: int = 0
    last: float = 0.0
    longest: float = 0.0
    delay: float | None = None


@dataclass(slots=True)
class Account:
    """The provider's side of an account, and what its poller did there."""

    asked: dict[ReferenceId, Asked] = field(default_factory=dict)

    async def send_status(self, reference_id: ReferenceId, _: Kind = Kind.CALL) -> Answer:
        """Answer as the call's life has it, and note that it was asked for."""
        now = asyncio.get_running_loop().time()
        call = self.asked[reference_id]
        call.requests += 1
        call.longest = max(call.longest, now - (call.last or call.life.placed))
        call.last = now
        return _BUSY if now >= call.life.placed + call.life.lives else _QUEUED


async def _follow(
    way: Way, lives: Sequence[Life], chance: random.Random, label_sets: Sequence[int] | None = None
) -> list[Asked]:
    """Have the calls of an account polled until all have finished."""
    loop = asyncio.get_running_loop()
    account = Account()

    ended = asyncio.Event()

    def observe(call: WatchedCall, found: Finished | PollAgain, at: float) -> None:
        poller.apply_committed(call, found, at)
        if not poller.calls:
            ended.set()
        if isinstance(found, Finished) and found.status is not Status.EXPIRED:
            asked = account.asked[call.reference_id]
            asked.delay = loop.time() - asked.life.placed - asked.life.lives

    def fail(error: BaseException) -> None:
        raise error

    poller = Poller(
        *way.settings.sections,
        account.send_status,
        AccountStats(),
        observe,
        fail,
        virtual_time.wall,
        virtual_time.wall,
    )
    for row, life in enumerate(lives):
        await asyncio.sleep(life.placed - loop.time())
        name = ReferenceId(f"c{row}")
        account.asked[name] = Asked(life)
        call = WatchedCall(row, name, virtual_time.EPOCH + life.placed)
        call.label_set = label_sets[row] if label_sets else 0
        poller.add([call])
        poller.wake()
        if way.called_back and chance.random() < CALLED_BACK and life.lives < GIVE_UP.give_up_after:
            loop.call_later(life.lives + CALLED_BACK_AFTER, poller.poll_now, row)
    ended.clear()
    if poller.calls:
        await ended.wait()
    await poller.stop(1)
    return list(account.asked.values())


class Figures(NamedTuple):
    """Requests for a call whose result was known, and seconds."""

    requests: float
    of_short: float
    p50: float
    p95: float
    p99: float
    most: float
    longest_wait: float

    def __str__(self) -> str:
        requests, seconds = self[:2], self[2:]
        return " | ".join([*(f"{it:.2f}" for it in requests), *(f"{it:.1f}" for it in seconds)])


def _figures(calls: Sequence[Asked]) -> Figures:
    ended = [call for call in calls if call.delay is not None]
    short = [call for call in ended if call.life.lives <= LONG]
    delays = [call.delay for call in ended if call.delay is not None]
    hundredths = statistics.quantiles(delays, n=100, method="inclusive")
    return Figures(
        sum(call.requests for call in calls) / len(ended),
        sum(call.requests for call in short) / len(short),
        hundredths[49],
        hundredths[94],
        hundredths[98],
        max(delays),
        max(call.longest for call in calls),
    )


def _fixed(p95: float) -> Way:
    """Return the fixed interval by which 95 % of the results are known within so many seconds."""
    interval = p95 / 0.925  # waits are a tenth shorter to none longer
    name = f"every {interval:.0f} s, same p95 as adaptive"
    return Way(name, PollingSettings(interval, interval, GIVE_UP, 20.0, 32))


def _run(way: Way, lives: Sequence[Life], seed: int) -> list[Asked]:
    random.seed(seed)  # the poller's jitter
    # What the rule "a call is first polled at once" would cost.
    first_wait = mock.patch.object(PollIntervals, "first", return_value=0.0)
    with first_wait if way.at_once else mock.MagicMock():
        return virtual_time.run(_follow(way, lives, random.Random(seed)))


def _campaign(way: Way, share: float, seed: int) -> tuple[float, float, float]:
    """Have a campaign placed at once beside a stream of passwords that have another label.

    Returns:
        The delays of the passwords' results, p50 and p95, and after how long the campaign is done.
    """
    chance = random.Random(seed)
    passwords = [Life(number / 2, ringing(chance)) for number in range(round(3_000 * share))]
    begin = passwords[-1].placed / 5
    campaign = [Life(begin, ringing(chance)) for _ in range(round(10_000 * share))]
    both = sorted([(life, 1) for life in passwords] + [(life, 2) for life in campaign])
    lives, label_sets = [life for life, _ in both], [labels for _, labels in both]
    random.seed(seed)
    calls = virtual_time.run(_follow(way, lives, random.Random(seed), label_sets))
    ends = [
        (labels, call.life.placed, call.delay, call.life.placed + call.life.lives + call.delay)
        for call, labels in zip(calls, label_sets, strict=True)
        if call.delay is not None
    ]
    delays = [delay for labels, placed, delay, _ in ends if labels == 1 and placed >= begin]
    hundredths = statistics.quantiles(delays, n=100, method="inclusive")
    done = max(end for labels, _, _, end in ends if labels == 2)
    return hundredths[49], hundredths[94], done - begin


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--share", type=float, default=1.0, help="of the calls of a day")
    options = parser.parse_args()
    days = [
        (kind.name, day(kind._replace(calls=round(kind.calls * options.share)), options.seed))
        for kind in KINDS
    ]
    print(
        "| account | pace | requests per call | of those under 10 min | delay p50, s | p95, s"
        " | p99, s | max, s | longest wait, s |\n" + "|---" * 9 + "|"
    )
    whole: dict[str, list[Asked]] = {way.name: [] for way in WAYS}
    for name, lives in days:
        for way in WAYS:
            calls = _run(way, lives, options.seed)
            whole[way.name] += calls
            figures = _figures(calls)
            print(f"| {name} | {way.name} | {figures} |", flush=True)
            if way.name == "adaptive":
                fixed = _fixed(figures.p95)
                calls = _run(fixed, lives, options.seed)
                print(f"| {name} | {fixed.name} | {_figures(calls)} |", flush=True)
    for way_name, calls in whole.items():
        print(f"| all | {way_name} | {_figures(calls)} |")
    print(
        "\n2 passwords a second and a campaign of 10,000 calls at once, 20 requests a second\n\n"
        "| pace | delay of passwords p50, s | p95, s | campaign done after, s |\n"
        + "|---" * 4
        + "|"
    )
    for way in WAYS[1:3]:
        p50, p95, done = _campaign(way, options.share, options.seed)
        print(f"| {way.name} | {p50:.1f} | {p95:.1f} | {done:.0f} |", flush=True)


if __name__ == "__main__":
    main()
