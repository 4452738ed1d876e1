"""Requests that are not polls, at the pace of the account's polls."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from exporter.esms.answers import Answer
from exporter.esms.codes import Outcome
from exporter.polling.poller import Poller

T = TypeVar("T")

_LOOK_EVERY: Final = 0.01
"""Seconds after which it is looked again whether there is a turn, where nobody knows when there
will be one. A turn that is shared with other exporters is soon lost."""

_LOOK_AT_LEAST_EVERY: Final = 1.0
"""Seconds after which it is looked again in any case: a pause may end before its time."""

_CUT_OFF: Final = Answer(Outcome.CONNECTION, message="cut off")


async def ask(
    poller: Poller,
    name: str,
    request: Callable[[], Awaitable[T]],
    answer_of: Callable[[T], Answer],
    within: float,
    wanted: Callable[[], bool] = lambda: True,
) -> tuple[T, float] | None:
    """Send a request as soon as the account may be asked.

    Args:
        poller: of the account.
        name: of the request; one that keeps failing alone says nothing about the account.
        request: sends it.
        answer_of: what the provider said, or the failure, in what `request` returns.
        within: seconds to wait for a turn, at most.
        wanted: whether it is still to be sent, asked while it waits.

    Returns:
        What `request` returns, and the seconds that it took; None where there was no turn, or it
        is not wanted any more, and nothing was sent.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + within
    while wanted():
        if not (wait := poller.take_turn()):
            break
        left = until - loop.time()
        if left <= 0 or poller.stopping:
            return None
        pause = _LOOK_EVERY if wait == float("inf") else min(wait, _LOOK_AT_LEAST_EVERY)
        await asyncio.sleep(min(left, pause))
    else:
        return None
    sent_at = loop.time()
    answer = _CUT_OFF
    try:
        done = await request()
        answer = answer_of(done)
    finally:
        poller.answered(name, answer, sent_at)
    return done, loop.time() - sent_at
