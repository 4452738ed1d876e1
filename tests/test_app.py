from __future__ import annotations

import asyncio
import gc
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import trustme
from structlog.testing import capture_logs

from exporter.app import App
from exporter.calls import CallbackOutcome, Finished, Result, Status, WatchedCall
from exporter.config import CallConfig, Config, WatchConfig, load_config
from exporter.errors import ConfigError, ExporterError, LedgerError
from exporter.esms.answers import Answer
from exporter.esms.client import CallRequest
from exporter.esms.codes import Outcome
from exporter.ids import Kind, reference_id
from exporter.ledger.calls import prune_finished
from exporter.ledger.types import BATCH_SIZE, InsertResult, NewCall, Observation, StoredCall
from exporter.polling.intervals import ENOUGH
from exporter.secrets import Secret
from exporter.simulator import Account, Plan, Simulator
from exporter.sources.configuration import ConfigFile
from tests.notify.bench import ACCOUNTS, Bench
from tests.notify.receiver import SECRET
from tests.samples import value
from tests.waiting import DEADLINE, deadline, until

BUSY = Finished(Result.SUCCESS, Status.BUSY)


@pytest_asyncio.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with Simulator(accounts=ACCOUNTS) as it:
        yield it


def of_main(
    simulator: Simulator, folder: Path, app: Callable[..., App] = App, **sections: Any
) -> Bench:
    """Return an exporter with the account `main` alone; see `Bench` for its parameters."""
    bench = Bench(simulator, folder, app, shutdown_timeout=1, **sections)
    bench.config = bench.config.model_copy(update={"accounts": bench.accounts[:1]})
    return bench


@pytest_asyncio.fixture
async def bench(simulator: Simulator, tmp_path: Path) -> AsyncIterator[Bench]:
    async with of_main(simulator, tmp_path) as bench:
        yield bench


async def test_calls_are_polled_though_nobody_waits_for_their_commit(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, begun, go_on = bench.service.ledger.store, threading.Event(), threading.Event()
    watch = store.watch

    def slow(*args: Any, **kwargs: Any) -> InsertResult:  # Any: whatever the store is given
        begun.set()
        assert go_on.wait(DEADLINE)
        return watch(*args, **kwargs)

    monkeypatch.setattr(store, "watch", slow)
    task = asyncio.create_task(bench.watch("a", "b"))
    await until(begun.is_set)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    await until(lambda: bench.service.calls.count == 2)


async def test_the_calls_of_an_account_wait_for_it(bench: Bench, simulator: Simulator) -> None:
    simulator.add_call("b.1", "x", Plan())
    await bench.watch("x", account="b.1")
    assert bench.service.calls.count == 0
    await bench.change(accounts=bench.accounts)
    await until(lambda: bench.counted(account="b.1", status="answered") == 1)
    # Gone, and its series with it; back, and its counts with it.
    await bench.change(accounts=bench.accounts[:1])
    assert bench.counted(account="b.1") == 0
    await bench.change(accounts=bench.accounts)
    assert bench.counted(account="b.1", status="answered") == 1


async def test_a_ledger_that_is_closed_while_open_calls_are_read(bench: Bench) -> None:
    await bench.watch("a")
    reading = asyncio.create_task(bench.service.calls.poll_open_calls("main"))
    await asyncio.sleep(0)  # the first page is asked for
    async with deadline():
        await bench.service.ledger.close()
        with pytest.raises(LedgerError, match="not open"):
            await reading


async def test_nothing_is_left_of_an_account_that_is_gone(bench: Bench) -> None:
    running = len(asyncio.all_tasks())
    for accounts in (bench.accounts, bench.accounts[:1]) * 2:
        await bench.change(accounts=accounts)
    await until(lambda: len(asyncio.all_tasks()) <= running)


async def test_what_an_account_left_behind_counts_still(bench: Bench) -> None:
    await bench.watch("a")
    (call,) = bench.service.accounts["main"].poller.calls.values()
    ledger = bench.service.ledger
    await bench.change(accounts=bench.accounts[1:])
    ledger.record("main", call, BUSY, call.first_watched + 1)
    await bench.change(accounts=bench.accounts[:1])
    await until(lambda: bench.counted(status="busy") == 1)
    await until(lambda: bench.service.calls.count == 0)
    # A second finish of the same call counts nothing.
    await ledger.commit([Observation("main", call, BUSY, call.first_watched + 2)])
    assert bench.counted(status="busy") == 1


async def test_a_callback_whose_account_leaves_meanwhile_finishes_nothing(bench: Bench) -> None:
    await bench.watch("a")
    call = await bench.service.calls.find("main", reference_id("a"))
    assert call is not None
    ended = Answer(Outcome.OK, "100", send_status=5, sent_result=1, call_status="BUSY")
    gone = bench.service.accounts.pop("main")
    assert await bench.service.calls.apply_callback(call, ended) is CallbackOutcome.HINT
    assert bench.counted() == 0
    bench.service.accounts["main"] = gone


async def test_a_reload_while_it_stops_is_no_failure(bench: Bench) -> None:
    service, loading, stopped = bench.service, threading.Event(), threading.Event()

    def load() -> Config:
        loading.set()
        assert stopped.wait(DEADLINE)
        return bench.config

    service.load = load
    reload = asyncio.create_task(service.reload())
    await until(loading.is_set)
    await bench.stop()
    with capture_logs() as logs:
        stopped.set()
        with pytest.raises(ExporterError, match="the exporter is stopping"):
            await reload
    assert not logs
    assert not service.config_status.problems


async def test_a_reload_that_met_a_broken_ledger_is_made_up_for(
    simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with of_main(simulator, tmp_path, partial(App, ledger_retry=0.05)) as bench:
        service = bench.service
        await bench.watch(*"xyz", account="b.1")
        # First before the account is there, then while its calls are read.
        for method in ("keep_only", "unfinished"):

            def fail(*_: object) -> None:
                raise LedgerError("ledger: is locked")

            with monkeypatch.context() as broken:
                broken.setattr(service.ledger.store, method, fail)
                with pytest.raises(LedgerError):
                    await bench.change(accounts=bench.accounts)
        assert service.calls.count == 0
        await until(lambda: not service.config_status.problems)
        assert service.calls.count == 3


async def test_configured_calls_wait_for_room(simulator: Simulator, tmp_path: Path) -> None:
    def watch(*names: str) -> WatchConfig:
        calls = tuple(CallConfig(reference_id(name), "main") for name in names)
        return WatchConfig(labels=("campaign",), calls=calls, max_calls=2)

    app = partial(App, changed=lambda: False, room_retry=0.1)
    async with Bench(simulator, tmp_path, app, watch=watch("a", "b")) as bench:
        # Others in their place find the room that they leave.
        await bench.change(watch=watch("c", "d"))
        poller = bench.service.accounts["main"].poller

        def watched() -> set[str]:
            return {call.reference_id for call in poller.calls.values()}

        await until(lambda: watched() == {"c", "d"})
        assert bench.counted() == 0


async def test_old_calls_are_pruned(
    simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruned: list[float] = []

    with capture_logs() as logs:
        async with Bench(simulator, tmp_path, partial(App, prune_interval=0.05)) as bench:
            real = bench.service.ledger.execute

            async def execute(statements: Any, *args: Any) -> object:  # Any: of the ledger
                if statements is not prune_finished:
                    return await real(statements, *args)
                pruned.append(args[0])
                if len(pruned) == 1:
                    raise LedgerError("ledger: is locked")
                return BATCH_SIZE if len(pruned) == 2 else 3

            monkeypatch.setattr(bench.service.ledger, "execute", execute)
            await until(lambda: len(pruned) >= 4)
    warnings = [line["event"] for line in logs if line["log_level"] == "warning"]
    assert warnings == ["pruning of old calls failed"]


async def test_a_part_that_fails_ends_the_exporter(bench: Bench, simulator: Simulator) -> None:
    async def buggy(reference_id: str, _: str) -> Answer:
        raise ZeroDivisionError(reference_id)

    config = bench.config
    bench.service.accounts["main"].poller.configure(config.accounts[0], config.polling, buggy)
    await bench.watch("a")
    async with deadline():
        with pytest.raises(ZeroDivisionError):
            await bench.service.supervisor.wait_for(asyncio.Event())
    await bench.stop(ZeroDivisionError)


async def test_a_ledger_that_stays_locked_does_not_keep_it_from_stopping(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.watch("a")

    def locked(_observations: object) -> None:
        raise LedgerError("ledger: is locked")

    monkeypatch.setattr(bench.service.ledger.store, "commit", locked)
    (call,) = bench.service.accounts["main"].poller.calls.values()
    bench.service.ledger.record("main", call, BUSY, call.first_watched + 1)
    with capture_logs() as logs:
        await until(lambda: bench.service.not_ready() == ["ledger: is locked"])
        async with deadline():
            await bench.stop()
    assert [line["event"] for line in logs if line["log_level"] == "error"] == [
        "ledger write failed",
        "ledger flush timed out",
    ]


@pytest.mark.parametrize(
    "numbers", [{Kind.CALL: ENOUGH}, {Kind.CALL: ENOUGH, Kind.MESSAGE: ENOUGH + 1}]
)
async def test_the_pace_goes_on_where_it_was(
    bench: Bench, simulator: Simulator, numbers: dict[Kind, int]
) -> None:
    for kind, number in numbers.items():
        names = [f"{kind}-{n}" for n in range(number)]
        for name in names:
            simulator.add_call("main", name, Plan(receivers=int(kind is Kind.MESSAGE)))
        await bench.watch(*names, kind=kind)
    await until(lambda: bench.service.calls.count == 0)
    await bench.restart()
    paces = bench.service.accounts["main"].poller.intervals
    assert {kind: pace.durations.calls for kind, pace in paces.items()} == numbers
    assert all(pace.plan for pace in paces.values())


async def test_the_collector_does_not_look_at_calls_that_stay(bench: Bench) -> None:
    gc.unfreeze()
    calls = [
        StoredCall("main", WatchedCall(n, reference_id(f"c{n}"), time.time()))
        for n in range(50_000)
    ]
    try:
        bench.service.calls.poll(calls[1:])
        assert gc.get_freeze_count() == 0
        bench.service.calls.poll(calls[:1])
        assert gc.get_freeze_count() > 3
        frozen = gc.get_objects()
        assert not [call for call in frozen if isinstance(call, WatchedCall)]
    finally:
        gc.unfreeze()


async def test_a_configuration_that_cannot_be_read_holds_up_no_file(
    simulator: Simulator, tmp_path: Path
) -> None:
    watch = WatchConfig(labels=("campaign",), files=(f"{tmp_path}/*.txt",))
    config = of_main(simulator, tmp_path, watch=watch).config
    hangs, free = threading.Event(), threading.Event()
    loads = 0

    def load() -> Config:
        nonlocal loads
        loads += 1
        if hangs.is_set():
            assert free.wait(120)
        return config

    service = App(load, changed=hangs.is_set)
    await service.open()
    await service.start()
    hangs.set()
    await until(lambda: loads == 2)
    (tmp_path / "a.txt").write_text("a\n")
    await until(lambda: service.calls.count == 1)
    # Nor the end; who asks for a reload meanwhile waits for the same.
    reload = asyncio.create_task(service.reload())
    (tmp_path / "a.txt").write_text("a\nb\n")
    await until(lambda: service.calls.count == 2)
    reload.cancel()
    await service.stop()
    free.set()
    assert loads == 2


async def test_a_new_bundle_of_authorities_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, bundle = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), tmp_path / "bundle.pem"
    bundle.write_bytes("# Chứng chỉ\n".encode("utf-16"))
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    path = tmp_path / "config.yaml"
    file = ConfigFile(path, lambda path, files: load_config(path, files=files))
    async with Simulator(accounts=[Account("main", "key", "s")], ssl_context=server) as simulator:
        path.write_text(
            f"accounts: [{{name: main, api_key: key, secret_key: s, base_url: {simulator.url},"
            f" balance_url: {simulator.url}}}]\n"
            "balance: {interval: 1s}\npolling: {interval: 100ms, pace: growing}\n"
            f"notify: [{{name: crm, url: '{simulator.origin}/x', secret: {SECRET}}}]\n"
            f"ledger: {{url: 'sqlite:///{tmp_path}/ledger.db'}}\nshutdown_timeout: 1s\n"
        )
        with pytest.raises(
            ConfigError, match=f"SSL_CERT_FILE: the file {bundle} contains no PEM certif"
        ):
            file.load()
        service = App(file.load, file.changed)

        def posts() -> float:
            return value(service.metrics, "esms_notification_requests_total", outcome="http_error")

        def changed_from(version: object) -> bool:
            return service.config is not None and service.config.tls != version

        async def everything_works(call: str) -> None:
            """Serve with another authority, and see that it is trusted once the bundle has it."""
            authority = trustme.CA()
            authority.issue_cert("127.0.0.1").configure_cert(server)
            authority.cert_pem.write_to_path(str(bundle))
            if service.config is None:
                await service.open()
                await service.start()
            else:
                version = service.config.tls
                await until(lambda: changed_from(version))
            before = time.time()
            posts_before = posts()
            simulator.add_call("main", call, Plan())
            labels: dict[str, str] = {}
            await service.calls.add(None, [NewCall("main", reference_id(call), labels)])
            await until(lambda: service.calls.count == 0)
            request = CallRequest(Secret("0900000000"), f"canary-{call}", template="1")
            placed = await service.accounts["main"].place(request, 60, lambda: True)
            assert placed is not None
            assert placed[0].outcome is Outcome.OK
            main = service.accounts["main"].stats
            await until(lambda: main.balance is not None and main.balance.known_at > before)
            # There is no such page; but that could be said.
            await until(lambda: posts() > posts_before)

        try:
            await everything_works("a")
            await everything_works("b")
            bundle.unlink()  # what was read last stays in force
            await until(lambda: bool(service.config_status.problems))
            await everything_works("c")
            assert not service.config_status.problems
        finally:
            await service.stop()
