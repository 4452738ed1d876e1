"""A poller that may have one request under way."""

from __future__ import annotations

import time
from dataclasses import replace

from exporter.calls import WatchedCall, reference_id
from exporter.polling.poller import Poller
from exporter.polling.stats import AccountStats
from tests.polling.test_poller import FAST, Provider
from tests.waiting import deadline, until


async def test_one_call_is_asked_for_again_and_again() -> None:
    provider = Provider()
    one = replace(FAST, max_concurrency=1)
    poller = Poller("main", provider, one, AccountStats(), lambda *_: None)
    poller.watch(WatchedCall(1, reference_id("a"), time.time()))
    poller.wake()
    try:
        async with deadline():
            await until(lambda: len(provider.asked) > 4)
    finally:
        await poller.stop(1)
