from __future__ import annotations

import threading

import pytest

from exporter.threads import THREADS, ready_threads
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
