"""What exporters show of calls: each those of the accounts that it polls, whoever finished them."""

from __future__ import annotations

import time

from exporter.calls import Result, Status
from exporter.config import CallbackConfig, MetricsConfig
from tests.replicas.scene import ANSWERED, BUSY, Exporter, Scene, names, spread
from tests.replicas.test_calls_of_others import take
from tests.samples import samples
from tests.waiting import until

ENDED = {"SendStatus": "5", "SentResult": "1", "CallStatus": "ANSWERED", "CallDuration": "7"}


def today(exporter: Exporter) -> dict[tuple[str, str | None], int]:
    return dict(exporter.service.calls.recent_results.recent("main", time.time()).today)


def failures(exporter: Exporter) -> list[str]:
    recent = exporter.service.calls.recent_results.recent("main", time.time())
    return sorted(ended.reference_id for ended in recent.failures)


def accounts_of(exporter: Exporter) -> set[str]:
    """Return the accounts that have series beside that of their lease."""
    return {
        sample.labels["account"]
        for sample in samples(exporter.service.metrics)
        if "account" in sample.labels and sample.name != "esms_account_lease"
    }


async def test_each_shows_what_all_have_counted_of_its_accounts(scene: Scene) -> None:
    accounts = ("main", "b")
    first = await scene.exporter("first", accounts=accounts)
    second = await scene.exporter("second", accounts=accounts)
    await scene.settled([], first, second)
    holder, other = (first, second) if "main" in first.accounts else (second, first)
    await holder.push(*names(6, "good"), campaign="otp")
    await other.push(*names(3, "bad"), campaign="reminder")
    # The series of what others have added begin at 0, as one's own do.
    metrics, name = holder.service.metrics, "esms_calls_total"
    await until(lambda: bool(samples(metrics, name, campaign="reminder", status="busy")))
    scene.finish(*names(6, "good"), answer=ANSWERED)
    scene.finish(*names(3, "bad"), answer=BUSY)
    await until(lambda: holder.counted() == 9)
    # Finished by another exporter, and shown by the one that polls the account.
    await holder.push("called-back", campaign="otp")
    config = CallbackConfig(trust="accept")
    await take(other.service.calls, config, "main", {"ReferenceId": "called-back", **ENDED})
    await until(lambda: holder.counted() == 10)
    assert other.counted() == 0
    assert [accounts_of(exporter) for exporter in (holder, other)] == [{"main"}, {"b"}]
    await until(lambda: today(holder).get((Result.SUCCESS, Status.ANSWERED)) == 7)
    # What is shown stays when the account moves.
    shown = holder.shown()
    await holder.stop()
    await until(lambda: other.counted() == 10)
    assert other.shown() == shown
    for exporter in (holder, other):
        assert accounts_of(exporter) == ({*accounts} if exporter is other else set())
    assert today(other) == {
        (Result.SUCCESS, Status.ANSWERED): 7,
        (Result.FAILURE, Status.BUSY): 3,
    }
    assert failures(other) == names(3, "bad")


def exemplars(exporter: Exporter) -> set[str]:
    shown = samples(exporter.service.metrics, "esms_calls_total")
    return {one.exemplar.labels["reference_id"] for one in shown if one.exemplar}


async def test_the_holder_of_an_account_has_the_exemplars_of_what_it_finished(scene: Scene) -> None:
    exporters = [await scene.exporter(name) for name in ("first", "second")]
    for exporter in exporters:
        await exporter.configure(metrics=MetricsConfig(exemplars=True))
    await until(lambda: any(exporter.accounts for exporter in exporters))
    other, holder = sorted(exporters, key=lambda exporter: len(exporter.accounts))
    await other.push("a", "called-back", campaign="otp")
    scene.finish("a", answer=ANSWERED)
    await until(lambda: exemplars(holder) == {"a"})
    # The holder reads its totals again after others have changed them.
    config = CallbackConfig(trust="accept")
    await take(other.service.calls, config, "main", {"ReferenceId": "called-back", **ENDED})
    await until(lambda: holder.counted() == 2)
    assert exemplars(holder) == {"a"}
    assert exemplars(other) == set()
    await holder.stop()
    await until(lambda: other.counted() == 2)
    assert exemplars(holder) == exemplars(other) == set()
    await other.push("b", campaign="otp")
    scene.finish("b", answer=ANSWERED)
    await until(lambda: exemplars(other) == {"b"})


async def test_labels_that_make_room_do_so_wherever_calls_are_added(scene: Scene) -> None:
    exporters = [await scene.exporter(name) for name in ("first", "second")]
    for exporter in exporters:
        watch = exporter.config.watch.model_copy(update={"max_label_values": 1})
        await exporter.configure(watch=watch)
    await until(lambda: any(exporter.accounts for exporter in exporters))
    (holder,) = (exporter for exporter in exporters if exporter.accounts)
    for number, campaign in enumerate(("otp", "reminder", "otp", "otp", "reminder"), 1):
        calls = names(2, f"{campaign}-{number}")
        await exporters[number % 2].push(*calls, campaign=campaign)

        def begun(campaign: str = campaign) -> bool:
            name = "esms_call_price_vnd_total"
            return bool(samples(holder.service.metrics, name, campaign=campaign))

        # The series of a call are there at 0, wherever it was pushed, before it finishes.
        await until(begun)
        scene.finish(*calls, answer=ANSWERED)
        await until(
            lambda number=number: today(holder) == {(Result.SUCCESS, Status.ANSWERED): 2 * number}  # type: ignore[misc]
        )


async def test_labels_change_while_an_account_moves(scene: Scene) -> None:
    calls = spread(names(8), ("main", "b"))
    first = await scene.exporter("first", calls, ("main", "b"))
    await scene.settled(calls, first)
    scene.finish(*calls)
    await until(lambda: first.counted() == 8)
    second = await scene.exporter("second", calls, ("main", "b"))
    for exporter in (first, second):
        watch = exporter.config.watch.model_copy(update={"labels": ("batch", "campaign")})
        await exporter.configure(watch=watch)
    await until(lambda: len(first.accounts) == len(second.accounts) == 1)
    await until(lambda: first.counted() == second.counted() == 4)
    for series in first.shown().keys() | second.shown():
        assert "result_delay" in series or 'batch="",campaign=""' in series
