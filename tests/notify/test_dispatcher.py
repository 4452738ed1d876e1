"""One sick event, account or kind of events delays no other one: in virtual time."""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from benchmarks.virtual_time import EPOCH
from exporter.ledger.notifications import retry_notifications
from tests.notify.virtual import GOES, HANGS, OK, Answer, World, refuses, virtual

EVENTS = 160
REFUSES_EVENT, FAILS = refuses(422), refuses(500)
DAYS = 4 * 86_400.0


def sick(answer: Answer) -> Callable[[str, float], Answer]:
    return lambda name, _: answer if name.startswith("bad") else OK


async def finishing(world: World, names: list[str], rate: float) -> None:
    """Have calls finish, one after the other, some a second."""
    for name in names:
        world.finish(name)
        await asyncio.sleep(1 / rate)


def mixed(good: int, share: float) -> list[str]:
    """Return names of good calls, and of bad ones that are this share of all, in a random order."""
    names = [f"good-{number}" for number in range(good)]
    names += [f"bad-{number}" for number in range(round(good * share / (1 - share)))]
    random.Random(3).shuffle(names)
    return names


def latest(world: World, start: str = "good") -> float:
    return max(world.late(name) for name in world.finished if name.startswith(start))


@pytest.mark.parametrize(
    ("answer", "share", "rate"),
    [
        (REFUSES_EVENT, 0.5, 2.0),
        (REFUSES_EVENT, 0.9, 20.0),
        *((FAILS, share, 2.0) for share in (0.005, 0.13, 0.5)),
        (refuses(503), 0.13, 2.0),
    ],
)
@virtual
async def test_bad_events_delay_no_good_ones(
    world: World, answer: Answer, share: float, rate: float
) -> None:
    world.answer = sick(answer)
    world.start()
    await finishing(world, mixed(EVENTS if rate < 20 else 60, share), rate)
    await asyncio.sleep(30)
    assert latest(world) < 1.0


@virtual
async def test_events_that_hang_delay_good_ones_by_a_time_out_at_most(world: World) -> None:
    world.answer = sick(HANGS)
    world.start()
    await finishing(world, mixed(EVENTS, 0.13), 2.0)
    await asyncio.sleep(30)
    late = [world.late(name) for name in world.finished if name.startswith("good")]
    assert max(late) < world.timeout + 1.0
    assert sum(late) / EVENTS < 1.0


@pytest.mark.parametrize("share", [0.13, 0.5])
@virtual
async def test_events_with_retry_after_pause_the_target_at_most_once(
    world: World, share: float
) -> None:
    """Two of them that come in a row are taken for the target's word; the first time."""
    world.answer = sick(refuses(503, 20))
    with capture_logs() as logs:
        world.start()
        await finishing(world, mixed(2 * EVENTS, share), 2.0)
        await asyncio.sleep(90)
    assert len(world.delivered) >= 2 * EVENTS
    assert [log["event"] for log in logs].count("target paused") <= 1


@virtual
async def test_the_first_event_is_poisonous(world: World) -> None:
    for answer in (refuses(500), refuses(503, 900), HANGS):
        bad, good = f"bad-{len(world.sent)}", [f"good-{len(world.sent)}-{n}" for n in range(9)]
        world.answer = sick(answer)
        world.finish(bad, *good)
        world.start()
        await asyncio.sleep(20)
        assert max(world.late(name) for name in good) < 0.5
        assert bad not in world.delivered
        await world.stop()


@virtual
async def test_a_dead_target_gets_one_request_for_each_pause(world: World) -> None:
    world.answer = lambda _, __: refuses(500)
    with capture_logs() as logs:
        world.start()
        await finishing(world, [f"c{n}" for n in range(600)], 1.0)
        assert world.worker
        status = world.worker.status
        assert EPOCH - 1 < status.oldest < EPOCH + 1
        assert (status.pending > 590, status.paused) == (True, True)
        assert status.failure
        assert status.failure[1].outcome == "http_error"
        later = world.requests(300, 600)
        assert 5 <= len(world.requests(0, 60)) <= 20
        assert 4 <= len(later) <= 8  # one in 45 to 60 s
        # Never the same one: it may be to blame.
        assert len(set(later)) == len(later)
        world.answer = lambda _, __: OK
        back = world.now
        await asyncio.sleep(70)
    assert len(world.delivered) == len(set(world.requests(back, math.inf))) == 600
    events = [log["event"] for log in logs]
    assert {"notification failed", "target paused", "target resumed"} == set(events)
    assert events.count("notification failed") <= 11  # once a minute
    assert events.count("target paused") == events.count("target resumed") == 1


@virtual
async def test_a_poisonous_event_does_not_keep_a_target_paused(world: World) -> None:
    world.answer = lambda name, now: refuses(500) if now < 120 or name == "bad" else OK
    world.finish("bad", *(f"good-{n}" for n in range(50)))
    world.start()
    await asyncio.sleep(120 + 65)
    assert latest(world) < 120 + 65
    assert len(world.delivered) == 50


@virtual
async def test_a_single_retry_after_is_not_the_targets(world: World) -> None:
    world.answer = sick(refuses(429, 60))
    world.start()
    world.finish("bad-1")
    await asyncio.sleep(1)
    await finishing(world, [f"good-{n}" for n in range(50)], 1.0)
    assert latest(world) < 1.0
    assert [name for name in world.requests(0, 60) if name == "bad-1"] == ["bad-1"]
    world.answer = lambda _, __: OK
    await asyncio.sleep(40)
    assert 60 <= world.late("bad-1") < 75


@virtual
async def test_a_retry_after_that_a_second_event_confirms_is_kept(world: World) -> None:
    world.answer = lambda _, now: refuses(503, 60) if now < 90 else OK
    world.start()
    await finishing(world, [f"c{n}" for n in range(200)], 1.0)
    assert world.requests(0, 60) == ["c0", "c1"]
    # Again after that, by one that has not failed yet.
    assert len(world.requests(60, 121)) == 1
    await asyncio.sleep(5)
    assert len(world.delivered) == 200


@pytest.mark.parametrize("status", [302, 401, 404, 500, 503])
@virtual
async def test_a_failed_event_is_tried_again(world: World, status: int) -> None:
    world.answer = lambda _, now: refuses(status) if now < 12 else OK
    world.start()
    world.finish("a")
    await asyncio.sleep(60)
    tries = [at for at, _ in world.sent]
    assert len(tries) == 3
    assert 3.75 <= tries[1] - tries[0] <= 5.2  # 5 s less up to a quarter, and commits
    assert 7.5 <= tries[2] - tries[1] <= 10.2
    assert world.status.delivered == 1


@pytest.mark.parametrize(
    ("answer", "attempts", "said"), [(refuses(410), 1, "gone: "), (FAILS, 3, "http_error: ")]
)
@virtual
async def test_an_event_is_given_up_that_is_gone_or_has_had_its_attempts(
    world: World, answer: Answer, attempts: int, said: str
) -> None:
    world.max_attempts = 3
    world.answer = sick(answer)
    world.start()
    world.finish("bad", "a")
    await asyncio.sleep(600)
    assert [name for _, name in world.sent].count("bad") == attempts
    assert (world.status.gave_up, world.status.delivered) == (1, 1)
    # It is kept, and sent by hand within seconds.
    (kept,) = world.status.given_up
    assert (kept.reference_id, kept.attempts) == ("bad", attempts)
    assert kept.last_answer == f"{said}the response has the status {answer.status}"
    world.answer = lambda _, __: OK
    given = world.clock, [kept.id], {"t": 60.0}
    assert await world.execute(retry_notifications, *given) == {kept.id}
    await asyncio.sleep(6)
    assert (world.status.gave_up, world.status.delivered) == (1, 2)


@virtual
async def test_a_target_that_is_not_ready_is_sent_nothing_and_then_everything(
    world: World,
) -> None:
    world.give_up_after = 7200.0
    world.max_attempts, world.ready = 3, False
    world.start()
    world.finish("a", "b")
    await asyncio.sleep(3600)
    assert world.sent == []
    world.ready = True
    world.finish("c")  # wakes it
    await asyncio.sleep(1)
    assert sorted(world.delivered) == ["a", "b", "c"]
    # It goes between the claim and the attempt: that is none.
    world.answer = lambda _, __: GOES
    world.finish("d")
    await asyncio.sleep(1)
    assert [name for _, name in world.sent][3:] == ["d"]
    await asyncio.sleep(7210)
    world.ready, world.answer = True, lambda _, __: OK
    await asyncio.sleep(60)
    assert "d" not in world.delivered  # its time was over
    assert world.status.gave_up == 1


@virtual
async def test_a_pause_holds_for_what_is_claimed_when_it_begins(world: World) -> None:
    world.ledger_delay = 0.1
    world.answer = lambda _, now: Answer(429, 0.07, {"Retry-After": "60"}) if now < 1 else OK
    world.start()
    for name in "abcdefgh":
        world.finish(name)
        await asyncio.sleep(0.05)
    await asyncio.sleep(100)
    assert world.requests(1, 59) == []
    assert len(world.delivered) == 8


@virtual
async def test_a_bug_of_a_target_ends_the_exporter(world: World) -> None:
    def fails(*_: object) -> Answer:
        raise ZeroDivisionError

    world.answer = fails
    world.start()
    world.finish("a")
    await asyncio.sleep(1)
    assert isinstance(world.supervisor.failure, ZeroDivisionError)
    world.worker = None


@virtual
async def test_results_that_could_not_be_recorded_are_recorded_later(world: World) -> None:
    world.start()
    await asyncio.sleep(1)
    world.ledger_fails = lambda name: bool(world.sent) and world.now < 60 and name == "claim"
    world.finish("a", "b")
    await asyncio.sleep(90)
    assert sorted(name for _, name in world.sent) == ["a", "b"]
    assert world.status.delivered == 2
    assert world.backlog == 0


@virtual
async def test_no_more_attempts_at_a_time_than_allowed(world: World) -> None:
    world.max_concurrency = 5
    world.answer = lambda _, __: Answer(after=1.0)
    world.finish(*(f"c{n}" for n in range(60)))
    world.start()
    await asyncio.sleep(30)
    ends = Counter(int(at) for at, _ in world.sent)
    assert len(world.delivered) == 60
    assert max(ends.values()) <= 5


@pytest.mark.parametrize("takes", [0.8, 5.0])
@virtual
async def test_attempts_under_way_at_a_stop(world: World, takes: float) -> None:
    """They may end within the time-out; what is cut off is sent again by the next start."""
    world.max_concurrency = 1
    world.answer = lambda _, __: Answer(after=takes)
    world.start()
    world.finish("a", "b")
    await asyncio.sleep(0.5)
    await world.stop(2.0)
    assert [name for _, name in world.sent] == ["a"]
    world.start()
    await asyncio.sleep(20)
    assert Counter(name for _, name in world.sent) == {"a": 1 if takes < 2 else 2, "b": 1}


# A target that takes some has half a minute for the last attempt of each.
@pytest.mark.parametrize(
    ("answer", "most"), [(refuses(500), 1_000), (HANGS, 2_500), (Answer(after=1.0), 4_500)]
)
@virtual
async def test_giving_up_keeps_up_with_what_finishes(
    world: World, answer: Answer, most: int
) -> None:
    """100 finishes a second for two minutes."""
    world.give_up_after = 1.0
    world.answer = lambda _, __: answer
    world.start()
    pending = 0
    for second in range(120):
        world.finish(*(f"c{second}-{n:02}" for n in range(100)))
        await asyncio.sleep(1)
        pending = max(pending, world.backlog)
    assert pending < most
    await asyncio.sleep(60)
    assert world.backlog == 0
    assert world.status.delivered + world.status.gave_up == 12_000


@virtual
async def test_accounts_share_a_target_that_hangs_for_one_of_them(world: World) -> None:
    world.answer = sick(HANGS)
    world.finish(*(f"bad-{n}" for n in range(900)), account="sick")
    world.start()
    await finishing(world, [f"good-{n}" for n in range(EVENTS)], 2.0)
    late = [world.late(name) for name in world.finished if name.startswith("good")]
    assert max(late) < world.timeout + 1.0  # what is under way ends
    assert sum(late) / EVENTS < 1.0


@virtual
async def test_a_backlog_of_one_account_is_not_before_another_accounts_events(
    world: World,
) -> None:
    world.max_concurrency = 2
    world.answer = lambda _, __: Answer(after=0.1)
    world.finish(*(f"a{n}" for n in range(900)), account="a")
    world.start()
    await asyncio.sleep(5)
    for account in "bcdefg":
        world.finish(*(f"{account}{n}" for n in range(5)), account=account)
    await asyncio.sleep(5)
    assert len([name for name in world.delivered if name[0] in "bcdefg"]) == 30
    turns = Counter(name[0] for name in world.requests(5.5, 6.5))
    assert max(turns.values()) - min(turns.values()) <= 2


@pytest.mark.parametrize("most", [1, 2, 8])
@virtual
async def test_retries_have_a_share_beside_more_new_events_than_are_taken(
    world: World, most: int
) -> None:
    world.max_concurrency = most
    world.answer = lambda name, now: (
        refuses(500) if name == "bad" and now < 20 else Answer(after=0.1)
    )
    world.start()
    world.finish("bad", *(f"new-{n}" for n in range(700 * most)))
    await asyncio.sleep(60)
    assert world.delivered["bad"] < 45
    assert len(world.delivered) < 700 * most  # there were new ones all the time


@virtual
async def test_old_retries_delay_no_new_event(world: World) -> None:
    """Few events, and many that have been refused for long: they say nothing of the target."""
    world.answer = sick(refuses(500))
    world.start()
    for n in range(60):
        world.finish(f"bad-{n}", f"good-first-{n}")
        await asyncio.sleep(1)
    await asyncio.sleep(900)
    for n in range(60):
        await asyncio.sleep(10)
        world.finish(f"good-{n}")
    assert latest(world) < 1.0
    assert len(world.requests(world.now - 900, world.now)) > 60 + 50


@virtual
async def test_a_restart_does_not_send_everything_to_a_dead_target(world: World) -> None:
    world.give_up_after = 86_400.0
    world.answer = sick(refuses(400))
    world.start()
    await finishing(world, [f"bad-{n}" for n in range(400)], 100.0)
    await world.stop()
    world.database.run(world.outbox.release_all)
    world.answer = sick(refuses(500))
    world.start()
    start = world.now
    await asyncio.sleep(300)
    assert len(world.requests(start, world.now)) < 30


@pytest.mark.parametrize("set_by", [DAYS, -DAYS])
@virtual
async def test_a_clock_that_is_set_gives_nothing_up_and_puts_nothing_off(
    world: World, set_by: float
) -> None:
    world.give_up_after = 86_400.0
    world.answer = lambda _, now: refuses(500) if now < 100 else OK
    world.start()
    world.finish("a", "b")
    await asyncio.sleep(60)
    world.set_by = set_by
    await asyncio.sleep(600)
    assert world.delivered.keys() == {"a", "b"}
    assert world.status.gave_up == 0
