from __future__ import annotations

import asyncio
import gc
import threading
import time
from functools import partial

import pytest
import uvloop

from exporter.errors import SourceError
from exporter.threads import THREADS, DetachedThreads, SerialThread, ready_threads
from tests.waiting import DEADLINE


def no_thread(_self: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_the_threads_are_there_before_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    with ready_threads() as pool:
        monkeypatch.setattr(threading.Thread, "start", no_thread)
        # Opens only for all at the same time.
        together = threading.Barrier(THREADS, timeout=DEADLINE)
        work = [pool.submit(together.wait) for _ in range(THREADS)]
        assert sorted(each.result() for each in work) == list(range(THREADS))


def test_a_machine_that_has_too_few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    start, started = threading.Thread.start, list[threading.Thread]()

    def start_some(thread: threading.Thread) -> None:
        if len(started) == THREADS - 1:
            no_thread(thread)
        start(thread)
        started.append(thread)

    monkeypatch.setattr(threading.Thread, "start", start_some)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        ready_threads()
    # None is left waiting for the others, or the process could not end.
    for thread in started:
        thread.join(DEADLINE)
        assert not thread.is_alive()


async def test_work_is_done_in_order_in_one_thread_also_where_nobody_waits() -> None:
    worker, done = SerialThread("test"), list[tuple[int, threading.Thread]]()
    go_on = threading.Event()
    first = worker.submit(lambda: go_on.wait(DEADLINE))
    for number in range(3):
        worker.submit(partial(lambda n: done.append((n, threading.current_thread())), number))
    last = worker.submit(lambda: "end")
    worker.close()
    first.cancel()
    go_on.set()
    assert await last == "end"
    assert [number for number, _ in done] == [0, 1, 2]
    (thread,) = {thread for _, thread in done}
    assert thread.daemon
    await asyncio.to_thread(thread.join, DEADLINE)
    assert not thread.is_alive()


async def test_what_work_raises_is_raised_where_it_is_waited_for() -> None:
    worker = SerialThread("test")
    with pytest.raises(ZeroDivisionError):
        await worker.submit(lambda: 1 / 0)
    assert await worker.submit(lambda: 1) == 1
    worker.close()


def test_work_that_outlives_the_loop_ends_in_silence() -> None:
    go_on, threads = threading.Event(), list[threading.Thread]()

    async def leave() -> None:
        worker = SerialThread("test")
        await worker.submit(lambda: threads.append(threading.current_thread()))
        worker.submit(lambda: go_on.wait(DEADLINE))
        worker.close()

    asyncio.run(leave())
    go_on.set()
    threads[0].join(DEADLINE)
    assert not threads[0].is_alive()


async def test_a_machine_without_threads_is_told_to_who_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    worker = SerialThread("test")
    with monkeypatch.context() as none_left:
        none_left.setattr(threading.Thread, "start", start)
        with pytest.raises(SourceError, match="no thread can be started"):
            await worker.submit(lambda: 1)
        worker.submit(lambda: 1)  # and nobody waits
        gc.collect()
    assert await worker.submit(lambda: 1) == 1
    worker.close()


def test_work_that_ends_as_its_time_is_over_leaves_its_key_free() -> None:
    async def hangs() -> bool:
        threads = DetachedThreads(0.05)
        await threads.run("key", lambda: time.sleep(0.01))
        return threads.hangs("key")

    async def run() -> bool:
        running = asyncio.create_task(hangs())
        await asyncio.sleep(0)
        time.sleep(0.2)  # noqa: ASYNC251 - the loop learns both at once
        return await running

    assert not uvloop.run(run())
