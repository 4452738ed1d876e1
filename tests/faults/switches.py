"""What goes wrong at the provider: each a block in which it does."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from email.utils import formatdate

import trustme

from exporter.simulator import AccountState, Fault, FaultKind, Simulator

Switch = Callable[[Simulator, str], AbstractAsyncContextManager[None]]


def answers(kind: FaultKind, **options: object) -> Switch:
    """Every answer is wrong in one way; see `Fault`. Functions are asked when it begins."""

    @asynccontextmanager
    async def switch(simulator: Simulator, account: str) -> AsyncIterator[None]:
        given = {name: value() if callable(value) else value for name, value in options.items()}
        simulator.faults.set("fault", Fault(kind, **given))  # type: ignore[arg-type]
        yield
        simulator.faults.clear()

    return switch


def throttled(status: int = 429, **options: object) -> Switch:
    """Answers ask for a pause; `retry_after` and `date` may be functions."""
    return answers(FaultKind.STATUS, status=status, **options)


def says(body: dict[str, object]) -> Switch:
    return answers(FaultKind.RAW, body=json.dumps(body))


def in_seconds(seconds: float) -> Callable[[], str]:
    """Return what says a time from now as an HTTP date."""
    return lambda: formatdate(time.time() + seconds, usegmt=True)


@asynccontextmanager
async def down(simulator: Simulator, account: str) -> AsyncIterator[None]:
    await simulator.stop()
    yield
    await simulator.start()


@asynccontextmanager
async def revoked(simulator: Simulator, account: str) -> AsyncIterator[None]:
    good = simulator.provider.accounts[account]
    simulator.put_account(replace(good, state=AccountState.REVOKED))
    yield
    simulator.put_account(good)


def shows(
    context: ssl.SSLContext, bad: trustme.LeafCert, good: trustme.LeafCert
) -> Switch:  # fmt: skip
    """The server shows a certificate that is not to be trusted, on connections made anew."""

    @asynccontextmanager
    async def switch(simulator: Simulator, account: str) -> AsyncIterator[None]:
        await simulator.stop()
        bad.configure_cert(context)
        await simulator.start()
        yield
        await simulator.stop()
        good.configure_cert(context)
        await simulator.start()
        await asyncio.sleep(0)

    return switch
