"""Signals that stop a command."""

from __future__ import annotations

import asyncio
import os
import signal

from exporter.signals import handled_signals
from tests.waiting import deadline


async def test_a_hangup_stops_a_command_unless_nohup_ignores_it() -> None:
    stopped = asyncio.Event()
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with handled_signals(stopped.set):
            os.kill(os.getpid(), signal.SIGHUP)
            async with deadline():
                await stopped.wait()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with handled_signals(stopped.clear):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert stopped.is_set()
    finally:
        signal.signal(signal.SIGHUP, before)
