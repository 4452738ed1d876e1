from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from exporter.systemd import STATUS_INTERVAL, Notifier
from tests.manager import Manager
from tests.waiting import DEADLINE


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    path = f"{tmp_path}/notify" if request.param == "path" else f"@esms-{os.getpid()}-{id(request)}"
    with Manager(path) as manager:
        yield manager


async def test_each_word_is_as_systemd_wants_it(manager: Manager) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.address})
    notifier.ready("3 calls\nwatched")
    assert await manager.told() == ["READY=1", "STATUS=3 calls watched"]
    notifier.close()


@pytest.mark.parametrize(
    ("environ", "every", "first"),
    [
        ({"WATCHDOG_USEC": "200000"}, 0.1, ["WATCHDOG=1", "STATUS=good"]),
        ({"WATCHDOG_USEC": "200000", "WATCHDOG_PID": str(os.getpid())}, 0.1, ["WATCHDOG=1"]),
        ({"WATCHDOG_USEC": "200000", "WATCHDOG_PID": "1"}, STATUS_INTERVAL, ["STATUS=good"]),
        ({"WATCHDOG_USEC": "3600000000"}, STATUS_INTERVAL, ["WATCHDOG=1"]),
        ({"WATCHDOG_USEC": "0"}, STATUS_INTERVAL, ["STATUS=good"]),
        ({"WATCHDOG_USEC": "soon"}, STATUS_INTERVAL, ["STATUS=good"]),
        ({}, STATUS_INTERVAL, ["STATUS=good"]),
    ],
)
async def test_the_watchdog_hears_twice_in_its_time(
    tmp_path: Path, environ: dict[str, str], every: float, first: list[str]
) -> None:
    with Manager(f"{tmp_path}/notify") as manager:
        environ |= {"NOTIFY_SOCKET": manager.address, "OTHER": "stays"}
        notifier = Notifier(environ)
        assert environ == {"OTHER": "stays"}
        assert notifier.interval == pytest.approx(every)
        beat = asyncio.create_task(notifier.beat(lambda: "good"))
        assert (await manager.told())[: len(first)] == first
        if every < 1:
            assert (await manager.told())[: len(first)] == first
        beat.cancel()
        notifier.close()


@pytest.mark.parametrize("address", ["", "vsock:2:1234", "relative/path"])
async def test_without_a_socket_of_systemds_nothing_is_told(address: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "200000"})
    notifier.ready("good")
    await asyncio.wait_for(notifier.beat(lambda: "good"), DEADLINE)
    notifier.close()


async def test_a_manager_that_is_gone_or_does_not_listen_stops_nothing(tmp_path: Path) -> None:
    address = f"{tmp_path}/notify"
    with structlog.testing.capture_logs() as logged:
        notifier = Notifier({"NOTIFY_SOCKET": address})
        for _ in range(3):
            notifier.ready("good")
        with Manager(address) as manager:
            notifier.ready("back")
            assert await manager.told() == ["READY=1", "STATUS=back"]
            # A queue that nobody empties fills up, and does not block.
            for _ in range(10_000):
                notifier.ready("good")
            assert 0 < manager.drop_all() < 10_000
            notifier.ready("good again")
        notifier.close()
    # Once for each time that it was lost.
    assert [line["event"] for line in logged] == ["systemd notification failed"] * 2
