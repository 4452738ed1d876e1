"""Whatever the provider does: one exporter, and an account for each fault, all at once."""

from __future__ import annotations

import asyncio
import gc
import json
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from functools import partial
from pathlib import Path

import pytest
import trustme

from exporter.simulator import AccountState, Fault, FaultKind, Simulator
from tests.e2e.processes import total
from tests.faults.scene import Outcomes, Scene, judge, run_together
from tests.waiting import until

LASTS = 4.0  # seconds
CALM = "calm"
ELSEWHERE = "redirect-other-host"  # never asked, except by who follows a redirect
DUPLICATE = '{"CodeResponse": "101", "CodeResponse": "100", "SendStatus": 5, "SendStatus": 2}'

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


@asynccontextmanager
async def shows(
    context: ssl.SSLContext,
    bad: trustme.LeafCert,
    good: trustme.LeafCert,
    simulator: Simulator,
    _account: str,
) -> AsyncIterator[None]:
    """The server shows a certificate that is not to be trusted, on connections made anew."""
    await simulator.stop()
    bad.configure_cert(context)
    await simulator.start()
    yield
    await simulator.stop()
    good.configure_cert(context)
    await simulator.start()
    await asyncio.sleep(0)


@dataclass(frozen=True)
class Case:
    """A fault.

    Attributes:
        switch: has it happen.
        outcome: how requests end meanwhile.
        odd_durations: calls may finish without a duration.
        ended_by_user: it pauses the account for longer than a test can wait.
    """

    switch: Switch
    outcome: str
    odd_durations: bool = False
    ended_by_user: bool = False


CASES = {
    "down": Case(down, "connection"),
    "hanging": Case(answers(FaultKind.HANG), "timeout"),
    "resetting": Case(answers(FaultKind.RESET), "connection"),
    "trickle": Case(answers(FaultKind.TRICKLE, seconds=50), "timeout"),
    "status-500": Case(answers(FaultKind.STATUS, status=500), "http_error"),
    "status-502": Case(answers(FaultKind.STATUS, status=502, body=""), "http_error"),
    "html": Case(answers(FaultKind.HTML), "bad_response"),
    "empty": Case(answers(FaultKind.EMPTY), "bad_response"),
    "truncated": Case(answers(FaultKind.TRUNCATED), "bad_response"),
    "over-64-kib": Case(answers(FaultKind.HUGE, size=64 << 10), "bad_response"),
    "over-8-mib": Case(answers(FaultKind.HUGE, size=8 << 20), "bad_response"),
    "gzip-bomb": Case(answers(FaultKind.GZIP_BOMB, size=48 << 20), "bad_response"),
    "wrong-types": Case(answers(FaultKind.WRONG_TYPES), "bad_response"),
    "no-object": Case(answers(FaultKind.NOT_OBJECT), "bad_response"),
    "nan": Case(answers(FaultKind.NAN), "ok", odd_durations=True),
    "duplicate-keys": Case(answers(FaultKind.RAW, body=DUPLICATE), "ok"),
    "wrong-id": Case(answers(FaultKind.WRONG_ID), "bad_response"),
    "text-numbers": Case(answers(FaultKind.TEXT_NUMBERS), "ok"),
    "numeric-code": Case(answers(FaultKind.NUMERIC_CODE), "ok"),
    "moved-code": Case(answers(FaultKind.MOVED_CODE), "ok"),
    "respelled-id": Case(answers(FaultKind.RESPELLED_ID), "ok"),
    "missing-fields": Case(answers(FaultKind.MISSING_FIELDS), "ok"),
    "redirect-loop": Case(answers(FaultKind.REDIRECT), "http_error"),
    # Who follows it is refused, since it names no keys.
    "redirect-same-host": Case(
        answers(
            FaultKind.REDIRECT,
            status=307,
            location="/MainService.svc/json/MakeCallRecord_V2",
            operation="GetSendStatus",
        ),
        "http_error",
    ),
    "throttled": Case(throttled(), "throttled"),
    "throttled-by-code": Case(
        answers(FaultKind.RAW, body=json.dumps({"CodeResult": "160"})), "throttled"
    ),
    "throttled-for-seconds": Case(throttled(retry_after="6"), "throttled"),
    "throttled-until": Case(throttled(503, retry_after=in_seconds(6)), "throttled"),
    "throttled-until-1970": Case(
        throttled(retry_after="Thu, 01 Jan 1970 00:00:00 GMT"), "throttled"
    ),
    "throttled-negative": Case(throttled(retry_after="-1"), "throttled"),
    "throttled-oddly": Case(throttled(retry_after="soon, 99:99"), "throttled"),
    "throttled-for-ages": Case(throttled(retry_after="9" * 20), "throttled", ended_by_user=True),
    # By a clock that is an hour ahead, in 6 s.
    "clock-ahead": Case(
        throttled(retry_after=in_seconds(3606), date=in_seconds(3600)), "throttled"
    ),
    "clock-behind": Case(
        throttled(503, retry_after=in_seconds(-3594), date=in_seconds(-3600)), "throttled"
    ),
    "revoked": Case(revoked, "auth"),
}
TLS_CASES = ("certificate-expired", "certificate-of-another-name", "certificate-changed")
NAMES = (*CASES, *TLS_CASES, ELSEWHERE)


def tls_cases(folder: Path) -> dict[str, tuple[ssl.SSLContext, Case]]:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    yesterday = datetime.now(UTC) - timedelta(days=1)
    host = "127.0.0.1"
    bad = (
        authority.issue_cert(host, not_after=yesterday),
        authority.issue_cert("elsewhere.example"),
        trustme.CA().issue_cert(host),
    )
    cases = {}
    for name, certificate in zip(TLS_CASES, bad, strict=True):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        good = authority.issue_cert(host)
        good.configure_cert(context)
        cases[name] = context, Case(partial(shows, context, certificate, good), "tls")
    return cases


async def withstand(scene: Scene, name: str, case: Case, served: asyncio.Event) -> None:
    """Have a fault last until an account without one has been served."""
    scene.place(name, "before")
    await scene.until_counted(name)
    if case.odd_durations:
        scene.odd_durations.add(name)
    before = scene.requests(name, case.outcome)
    scene.place(name, "during", LASTS / 2)
    async with case.switch(scene.simulators[name], name):
        await asyncio.sleep(LASTS)
        await scene.until_requests(name, case.outcome, before)
        await served.wait()
        assert await scene.ask("/-/ready") == (200, "esms-exporter is ready.\n")
        if case.ended_by_user:
            await until(lambda: paused_until(scene, name) > 0)  # a second call confirms it
    scene.place(name, "after")
    if case.ended_by_user:
        # It ends by itself, if only in a quarter of an hour; and now: another address, if only for
        # the balance, is tried at once.
        assert 0 < paused_until(scene, name) - time.time() <= 900
        scene.configure(**{name: {"balance_url": "http://127.0.0.1:9/"}})
    await scene.until_counted(name)


def paused_until(scene: Scene, name: str) -> float:
    return total(scene.newest(name), "esms_account_paused_until_timestamp_seconds")


async def stay_calm(scene: Scene, served: asyncio.Event) -> None:
    """Nothing is wrong with this account: its calls are counted before other troubles end."""
    try:
        scene.place(CALM, "before")
        await scene.until_counted(CALM)
        await asyncio.sleep(LASTS / 2)  # by now, nearly all others are in trouble
        scene.place(CALM, "during")
        await scene.until_counted(CALM)
    finally:
        served.set()
    await asyncio.sleep(LASTS)  # and now they are paused, or try again
    scene.place(CALM, "after")
    await scene.until_counted(CALM)


async def withstand_all(folder: Path) -> Outcomes:
    tls = tls_cases(folder)
    async with AsyncExitStack() as stack:
        elsewhere = await stack.enter_async_context(Simulator())
        location = f"{elsewhere.url}/GetSendStatus"
        redirect = answers(FaultKind.REDIRECT, status=308, location=location)
        cases = {
            **CASES,
            **{name: case for name, (_, case) in tls.items()},
            ELSEWHERE: Case(redirect, "http_error"),
        }
        simulators = {
            name: Simulator(ssl_context=tls[name][0] if name in tls else None)
            for name in (CALM, *cases)
        }
        trusted = {"SSL_CERT_FILE": str(folder / "authority.pem")}
        scene = await stack.enter_async_context(
            Scene(folder, simulators, calls=3, environ=trusted, interval="1s", scrape_every=1.0)
        )
        scene.settle()
        served = asyncio.Event()
        running = {name: withstand(scene, name, case, served) for name, case in cases.items()}
        outcomes = dict(await run_together({CALM: stay_calm(scene, served), **running}))
        outcomes |= await run_together({"promise": scene.keeps_its_promise()})
    if elsewhere.traffic.total():
        outcomes[ELSEWHERE] = AssertionError("a redirect was followed, with the credentials")
    return outcomes


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    # Servers of asyncio cannot end connections whose TLS handshake goes on: these are reported when
    # they are collected, in whatever test that is.
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        found = asyncio.run(withstand_all(tmp_path_factory.mktemp("provider")))
        gc.collect()
    finally:
        sys.unraisablehook = hook
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_call_is_counted_once_in_time(outcomes: Outcomes, name: str) -> None:
    judge(outcomes, name)


def test_an_account_without_a_fault_is_not_delayed(outcomes: Outcomes) -> None:
    judge(outcomes, CALM)


def test_the_process_is_as_before(outcomes: Outcomes) -> None:
    judge(outcomes, "promise")
