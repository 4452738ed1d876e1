"""Notifications that were given up, and are sent again by hand."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import aiohttp
import pytest

from exporter.calls import Finished, Result, Status
from exporter.errors import ExporterError
from exporter.ids import ReferenceId
from exporter.ledger.clock import LedgerClock
from exporter.ledger.engine import open_database
from exporter.ledger.outbox import Claim, Route
from exporter.ledger.store import Store
from exporter.ledger.types import NewCall, Observation
from exporter.simulator import Plan, Simulator
from exporter.web.schemas import Notification
from tests.e2e.commands import CONFIG, Ended, in_csv, in_json, invoke, run
from tests.e2e.processes import API, TOKEN, Exporter, configure, listed, push, total
from tests.notify.receiver import SECRET, Receiver
from tests.waiting import deadline


async def shown(http: aiohttp.ClientSession, url: str, token: str = TOKEN) -> str:
    async with http.get(url, headers={"Authorization": f"Bearer {token}"}) as answer:
        return await answer.text()


async def test_a_receiver_gets_what_it_had_refused(
    tmp_path: Path, simulator: Simulator, http: aiohttp.ClientSession, url: str
) -> None:
    async def notifications(*arguments: str) -> Ended:
        return await invoke(tmp_path, "notifications", *arguments, CONFIG)

    for name in ("a", "b"):
        simulator.add_call("main", name, Plan())
    async with Receiver() as receiver:
        receiver.answers(500)
        target = {"name": "crm", "url": receiver.url, "secret": SECRET}
        config = configure(
            *(tmp_path, simulator),
            watch={"api": API},
            ledger={"url": url},
            notify=[{**target, "give_up_after": "1s"}],
        )
        async with Exporter(config) as exporter:
            await exporter.ready()
            await push(exporter, [listed("a"), listed("b")])
            count = "esms_notifications_total"
            await exporter.until(lambda found: total(found, count, outcome="gave_up") == 2)
            found = await notifications("list", "--output=json", "--state=given_up")
            first, second = in_json(found.output)
            assert (first["target"], first["account"], first["state"]) == (
                *("crm", "main", "given_up"),
            )
            assert {first["reference_id"], second["reference_id"]} == {"a", "b"}
            assert first["last_answer"] == "http_error: the response has the status 500"
            rows = in_csv((await notifications("list", "--output=csv")).output)
            assert [list(row) for row in rows] == [list(Notification.model_fields)] * 2
            found = await notifications("list", "--account=main", "--target=crm")
            assert [line.split()[:5] for line in found.output.splitlines()[1:]] == [
                [str(one["id"]), "given_up", "crm", "main", one["reference_id"]]
                for one in (first, second)
            ]
            # The page shows them to those who may see ids.
            async with deadline():
                while "Notifications given up" not in await shown(http, exporter.url):  # noqa: ASYNC110
                    await asyncio.sleep(0.2)
            assert "Notifications given up" not in await shown(http, exporter.url, "")
            # The receiver works again.
            receiver.answers(204)
            before = len(receiver.told)
            assert receiver.bad == []
            assert await notifications("drop", str(second["id"])) == (
                *(0, "notifications dropped: 1\n", ""),
            )
            found = await notifications("retry", "--target=crm")
            assert (found.code, found.output) == (0, "notifications retried: 1\n")
            await exporter.until(lambda found: total(found, count, outcome="delivered") == 1)
            (told,) = receiver.told[before:]
            assert told.call == first["reference_id"]
            ids = {one.event["id"] for one in receiver.told if one.call == told.call}
            assert ids == {told.event["id"]}
            assert (await notifications("list", "--output=json")).output == ""
            call = await shown(http, f"{exporter.url}/api/v1/calls/main/{told.call}")
            events = json.loads(call)["history"]
            assert [one["event"] for one in events if one["subject"] == "crm"] == [
                *("failed", "gave_up", "retried", "delivered"),
            ]
    missing = await run(tmp_path, "notifications", "retry", str(first["id"]), "99", CONFIG)
    problems = "\n".join(f"{row}: no such notification" for row in (first["id"], 99))
    assert missing == (1, "notifications retried: 0\n", f"esms-exporter: {problems}\n")


async def test_why_a_notification_was_left_alone(tmp_path: Path, simulator: Simulator) -> None:
    configure(tmp_path, simulator)
    database = open_database(f"sqlite:///{tmp_path}/ledger.db")
    clock = LedgerClock()
    store = Store(database, clock)
    store.outbox.set_routes([Route("removed", 3600.0)])
    added = store.watch(None, [NewCall("main", ReferenceId("a"), {})], clock.now()).added
    finished = Finished(Result.SUCCESS, Status.ANSWERED)
    store.commit([Observation("main", one.call, finished, clock.now()) for one in added])
    claims = [Claim(retry=False, limit=1, each=1)]
    (claimed,) = database.run(store.outbox.claim, "removed", [], claims, 1, 3600.0).claimed
    database.close()
    for command, reason in (
        ("drop", "is being sent now"),
        ("retry", "the target removed is not configured"),
    ):
        with pytest.raises(ExporterError, match=f"{claimed.id}: {reason}"):
            await invoke(tmp_path, "notifications", command, str(claimed.id), CONFIG)
