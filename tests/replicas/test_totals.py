"""What exporters show of calls that others have finished."""

from __future__ import annotations

import asyncio
import threading
import time
from functools import partial
from typing import Any

import pytest

from exporter.calls import Result, Status
from exporter.ledger.records import Snapshot
from tests.replicas.scene import ANSWERED, BUSY, Exporter, Scene, names
from tests.samples import samples
from tests.waiting import DEADLINE, until


def today(exporter: Exporter) -> dict[tuple[Result, Status], int]:
    return dict(exporter.service.calls.histories.recent("main", time.time()).today)


def failures(exporter: Exporter) -> list[str]:
    recent = exporter.service.calls.histories.recent("main", time.time())
    return sorted(ended.reference_id for ended in recent.failures)


async def test_each_shows_what_all_have_counted(scene: Scene) -> None:
    first = await scene.exporter("first")
    second = await scene.exporter("second")
    await first.push(*names(6, "good"), campaign="otp")
    await second.push(*names(3, "bad"), campaign="reminder")
    await second.push("unlabelled")
    scene.finish(*names(6, "good"), "unlabelled", answer=ANSWERED)
    scene.finish(*names(3, "bad"), answer=BUSY)
    await until(lambda: first.counted() == second.counted() == 10)
    third = await scene.exporter("third")
    assert first.shown() == second.shown() == third.shown()
    calls = {
        (campaign, result, status): value
        for campaign, result, status, value in await scene.rows(
            "SELECT coalesce(l.labels::json ->> 'campaign', ''), split_part(t.cell, '/', 1), "
            "split_part(t.cell, '/', 2), t.value FROM totals t "
            "JOIN label_sets l ON l.id = t.label_set_id WHERE t.total = 'calls'"
        )
    }
    assert calls == {
        ("otp", "success", "answered"): 6,
        ("", "success", "answered"): 1,
        ("reminder", "failure", "busy"): 3,
    }
    shown = first.shown()
    assert {
        key: shown[
            f'esms_calls_total{{account="main",result="{key[1]}",status="{key[2]}",'
            f'campaign="{key[0]}"}}'
        ]
        for key in calls
    } == calls
    # The series of others begin at 0, as one's own do.
    labels = {"result": "success", "status": "busy", "campaign": "reminder"}
    assert [s.value for s in samples(first.service.metrics, "esms_calls_total", **labels)] == [0]
    # For people: what they finished while one was there, and what they had finished before.
    await until(lambda: len(failures(first)) == len(failures(second)) == 3)
    for exporter in (first, second, third):
        assert today(exporter) == {
            (Result.SUCCESS, Status.ANSWERED): 7,
            (Result.FAILURE, Status.BUSY): 3,
        }
        assert failures(exporter) == names(3, "bad")


def in_series(exporters: list[Exporter], campaign: str) -> bool:
    return all(
        samples(one.service.metrics, "esms_call_price_vnd_total", campaign=campaign)
        for one in exporters
    )


def seen(exporters: list[Exporter], answered: int) -> bool:
    return all(today(one) == {(Result.SUCCESS, Status.ANSWERED): answered} for one in exporters)


async def test_people_see_each_call_though_labels_make_room(scene: Scene) -> None:
    exporters = [await scene.exporter(name) for name in ("first", "second")]
    for exporter in exporters:
        watch = exporter.config.watch.model_copy(update={"max_label_values": 1})
        await exporter.configure(watch=watch)
    for number, campaign in enumerate(("otp", "reminder", "otp", "otp", "reminder"), 1):
        calls = names(2, f"{campaign}-{number}")
        await exporters[number % 2].push(*calls, campaign=campaign)
        # The series of a call are there at 0, wherever it is polled, before it finishes.
        await until(partial(in_series, exporters, campaign))
        scene.finish(*calls, answer=ANSWERED)
        await until(partial(seen, exporters, 2 * number))
    assert exporters[0].shown() == exporters[1].shown()


async def test_labels_change_while_others_finish_calls(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await scene.exporter("first")
    second = await scene.exporter("second")
    await first.push(*names(4, "early"), campaign="otp")
    scene.finish(*names(4, "early"), *names(4, "late"), *names(4, "new"))
    await until(lambda: first.counted() == second.counted() == 4)
    store, read, go_on = first.service.ledger.store, threading.Event(), threading.Event()
    snapshot = store.snapshot

    def slow() -> Snapshot:
        found = snapshot()
        read.set()
        assert go_on.wait(DEADLINE)
        return found

    monkeypatch.setattr(store, "snapshot", slow)
    seen: list[float] = []
    show = first.service._show_totals

    def watched(*args: Any) -> None:  # Any: those of `_show_totals`
        show(*args)
        seen.append(first.counted())

    monkeypatch.setattr(first.service, "_show_totals", watched)
    watch = first.config.watch.model_copy(update={"labels": ("batch", "campaign")})
    reload = asyncio.create_task(first.configure(watch=watch))
    await until(read.is_set)
    await second.push(*names(4, "late"), campaign="otp")
    await second.push(*names(4, "new"), campaign="reminder", batch="7")
    await until(lambda: first.counted() == second.counted() == 12)
    go_on.set()
    await reload
    # What was shown is shown still, also that of labels which the snapshot does not know.
    assert seen == [12]
    assert (
        first.shown()[
            'esms_calls_total{account="main",result="success",status="answered",batch="7",'
            'campaign="reminder"}'
        ]
        == 4
    )
    for exporter in (first, second):
        assert today(exporter) == {(Result.SUCCESS, Status.ANSWERED): 12}
