"""The command `canary`, with and without a running exporter."""

from __future__ import annotations

import signal
from pathlib import Path

from exporter.simulator import Fault, FaultKind
from tests.canaries.scene import (
    NO_STATUS,
    PHONE,
    UNANSWERED,
    Hastened,
    Placed,
    configured,
    rows,
    runs,
    simulator,
)
from tests.e2e.commands import Command, Ended, run
from tests.e2e.processes import total
from tests.subprocesses import UNMEASURED
from tests.waiting import until

TEMPLATE = "template: '1', variables: [Trung], max_per_day: 2, within: 60s"
COMMAND = ("canary", "hourly", "--config.file=config.yaml")


def tells_nothing(ended: Ended) -> None:
    for secret in (PHONE, PHONE[1:], "key-main"):
        assert secret not in ended.output + ended.errors


async def test_what_would_be_sent(tmp_path: Path) -> None:
    async with simulator() as provider:
        placed = Placed(provider)
        configured(tmp_path, provider.url, TEMPLATE)
        ended = await run(tmp_path, *COMMAND, "--dry-run")
    assert ended.code == 0
    head, _, due = ended.output.partition("due:\n")
    assert f"GET {provider.url}/MakeCallTemplate_V2\n" in head
    assert "  Phone=***\n  TemplateId=1\n  VariableListStr=Trung\n" in head
    assert len(due.splitlines()) == 5
    tells_nothing(ended)
    assert placed.codes == []
    assert not (tmp_path / "ledger.db").exists()


async def test_a_call_without_an_exporter(tmp_path: Path) -> None:
    async with simulator() as provider:
        placed = Placed(provider)
        configured(tmp_path, provider.url, TEMPLATE)
        for _ in range(2):
            ended = await run(tmp_path, *COMMAND, "--now")
            assert ended.code == 0, ended
            stages = [line.split()[1] for line in ended.output.splitlines()]
            assert stages == ["placing", "accepted", "success"]
            tells_nothing(ended)
        ended = await run(tmp_path, *COMMAND, "--now")
        assert ended.code == 1
        assert "`max_per_day` (2 calls) is reached" in ended.errors
        assert placed.codes == ["100", "100"]


async def test_a_call_beside_an_exporter_shows_in_its_metrics(tmp_path: Path) -> None:
    async with simulator(UNANSWERED) as provider:
        placed = Placed(provider)
        config = configured(tmp_path, provider.url, TEMPLATE)
        async with Hastened(config, 1e6) as exporter:
            await exporter.ready()
            ended = await run(tmp_path, *COMMAND, "--now")
            assert ended.code == 1
            assert "failure status=no_answer" in ended.output
            found = await exporter.until(lambda samples: runs(samples) == 1)
            assert runs(found, "failure") == 1
            assert total(found, "esms_canary_success") == 0
    assert placed.codes == ["100"]
    assert rows(tmp_path, "PRAGMA integrity_check") == [("ok",)]


async def test_a_running_exporter_goes_on_with_what_was_interrupted(tmp_path: Path) -> None:
    async with simulator() as provider:
        placed = Placed(provider)
        provider.faults.set("x", NO_STATUS)
        config = configured(tmp_path, provider.url, TEMPLATE)
        async with Hastened(config, 1e6) as exporter:
            await exporter.ready()
            command = Command(tmp_path, *COMMAND, "--now", environ=UNMEASURED)
            accepted = "SELECT 1 FROM canary_runs WHERE reference_id IS NOT NULL"
            await until(lambda: bool(rows(tmp_path, accepted)))
            command.send_signal(signal.SIGKILL)
            assert (await command.end()).code == -signal.SIGKILL
            provider.faults.clear()
            await exporter.until(lambda samples: runs(samples, "success") == 1)
        assert placed.codes == ["100"]


async def test_what_the_provider_refuses(tmp_path: Path) -> None:
    async with simulator() as provider:
        configured(tmp_path, provider.url, TEMPLATE)
        body = f'{{"CodeResult":"103","ErrorMessage":"no money to call {PHONE}"}}'
        provider.faults.set("x", Fault(FaultKind.RAW, body=body))
        ended = await run(tmp_path, *COMMAND, "--now")
    assert ended.code == 1
    assert "refused code=103 message=(withheld: it repeats the request)" in ended.output
    tells_nothing(ended)


async def test_wrong_usage(tmp_path: Path) -> None:
    configured(tmp_path, "http://127.0.0.1:9", TEMPLATE)
    both = await run(tmp_path, *COMMAND, "--now", "--dry-run")
    neither = await run(tmp_path, *COMMAND)
    unknown = await run(tmp_path, "canary", "daily", COMMAND[2], "--dry-run")
    assert [ended.code for ended in (both, neither, unknown)] == [2, 2, 2]
    assert "no such canary; configured: hourly" in unknown.errors


async def test_an_interrupt_is_no_traceback(tmp_path: Path) -> None:
    async with simulator() as provider:
        provider.faults.set("x", Fault(FaultKind.HANG, operation="GetSendStatus"))
        placed = Placed(provider)
        configured(tmp_path, provider.url, TEMPLATE)
        command = Command(tmp_path, *COMMAND, "--now")
        await until(lambda: bool(placed.codes))
        command.send_signal(signal.SIGINT)
        ended = await command.end()
    assert ended.code == 1
