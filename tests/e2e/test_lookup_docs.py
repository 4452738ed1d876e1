"""The examples of docs/lookup.md, run as they stand there."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import sys
from pathlib import Path

import aiohttp
import pytest

from exporter.simulator import Account, Plan, Simulator
from tests import subprocesses
from tests.e2e.processes import Exporter, total
from tests.web.certificates import Certificates

DOCS = (Path(__file__).parents[2] / "docs/lookup.md").read_text()
EXAMPLES = re.findall(r"^```console\n\$ (.+)\n((?:.+\n)*)```", DOCS, re.MULTILINE)
ANSWERED = "505139D7-54F8-48A9-88FA-9460A78731DD"
UNANSWERED = "8eb2af6d-fb4c-4814-b9cc-4c0e3ed32edf"
QUEUED = "6d8a1c2e-2f67-4c3b-9c55-0b8f0f4a7d11"
TIME = re.compile(r"\d{4}-\d\d-\d\d([T ])\d\d:\d\d:\d\dZ")


def prepare(folder: Path, simulator: Simulator) -> Path:
    config = folder / "config.yaml"
    config.write_text(
        f"accounts: [{{name: main, api_key: k, secret_key: s, base_url: '{simulator.url}'}}]\n"
        "balance: {interval: 0}\n"
        f"ledger: {{url: 'sqlite:///{folder}/ledger.db'}}\n"
        "watch: {labels: [campaign], api: {tokens: [{name: docs, token_file: token}]}}\n"
    )
    Certificates(folder)
    (folder / "web.yml").write_text(
        "tls_server_config: {cert_file: server.crt, key_file: server.key}\n"
    )
    (folder / "token").write_text("made-up-token\n")
    (folder / "ids.csv").write_text(f"reference_id\n{ANSWERED}\n{UNANSWERED}\n{QUEUED}\n")
    (folder / "bin").mkdir()
    script = folder / "bin/esms-exporter"
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m exporter "$@"\n')
    script.chmod(0o755)
    return config


async def shown(folder: Path, command: str, url: str) -> str:
    environ = {
        "PATH": f"{folder}/bin:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "ESMS_EXPORTER_URL": url,
    }
    process = await subprocesses.start(
        *("bash", "-o", "pipefail", "-c", command),
        cwd=folder,
        env={**os.environ, **environ},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await subprocesses.output(process)
    assert process.returncode == 0, output
    return output


def compared(text: str) -> list[str]:
    return [TIME.sub(r"2026-01-31\g<1>09:30:00Z", line).rstrip() for line in text.splitlines()]


async def test_every_example(tmp_path: Path) -> None:
    assert len(EXAMPLES) == DOCS.count("```console") == 8
    async with Simulator(accounts=[Account("main", "k", "s")]) as simulator:
        simulator.add_call("main", ANSWERED, Plan(duration=13, ivr="1"))
        simulator.add_call("main", UNANSWERED, Plan(duration=0, call_status="NOANSWERED"))
        simulator.add_call("main", QUEUED, Plan(queued=1000))
        config = prepare(tmp_path, simulator)
        async with (
            Exporter(config) as exporter,
            aiohttp.ClientSession(headers={"Authorization": "Bearer made-up-token"}) as http,
        ):
            url = await exporter.ready()
            calls = [
                {"reference_id": name, "labels": {"campaign": "otp"}}
                for name in (ANSWERED, UNANSWERED, QUEUED)
            ]
            async with http.post(f"{url}/api/v1/calls", json={"calls": calls}) as answer:
                assert answer.status == 202
            await exporter.until(
                lambda found: (
                    total(found, "esms_calls_total") == 2
                    and total(found, "esms_calls_watched", state="queued") == 1
                )
            )
            *plain, (over_tls, _) = EXAMPLES
            for command, output in plain:
                found = await shown(tmp_path, command, url)
                if output.strip() == "...":  # how many there are is the reader's
                    assert found.strip() == "3", command
                else:
                    assert compared(found) == compared(output), command
            await exporter.stop()
        async with Exporter(config, f"--web.config.file={tmp_path}/web.yml") as exporter:
            address = (await exporter.ready()).replace("127.0.0.1", "localhost")
            command = over_tls.replace("https://exporter.example.com:10375", address)
            assert QUEUED in await shown(tmp_path, command, "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_as_it_is_tested(shell: str) -> None:
    tests = (Path(__file__).parent / "test_completion.py").read_text()
    (line,) = re.findall(rf"^\| {shell}.*\| `(.+?)` in", DOCS, re.MULTILINE)
    assert line.replace("\\|", "|") in tests
