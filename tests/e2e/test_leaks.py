"""With everything going wrong at once, at debug level, nothing tells a credential."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import signal
from pathlib import Path
from urllib.parse import quote, quote_plus

import aiohttp
import pytest

from exporter.esms.codes import Outcome
from exporter.simulator import Account, AccountState, Fault, FaultKind, Plan, Simulator
from tests.e2e.processes import Exporter, total

KEY = "K3y+/with?odd=&chars-"
SECRET = "S3cr3t+/with?odd=&chars-"
ECHO = {"CodeResult": "104", "ErrorMessage": f"ApiKey={KEY}raw {SECRET}raw"}
PLAIN = ["good", "not-found", "revoked", "no-connection", "no-tls"]
DAMAGED = {
    **{kind.value.replace("_", "-"): Fault(kind, seconds=0.5) for kind in FaultKind},
    "status": Fault(FaultKind.STATUS, status=500, body=f"ApiKey={KEY}"),
    "html": Fault(FaultKind.HTML, body=f"<p>SecretKey={SECRET}</p>"),
    "raw": Fault(FaultKind.RAW, body=json.dumps(ECHO)),
    "busy": Fault(FaultKind.STATUS, status=503, retry_after="1"),
    "redirect": Fault(FaultKind.REDIRECT, location=f"/?ApiKey={quote(KEY)}"),
}
ACCOUNTS = [*PLAIN, *DAMAGED]


def credentials(account: str) -> tuple[str, str]:
    return f"{KEY}{account}", f"{SECRET}{account}"


def configuration(folder: Path, simulator: Simulator) -> str:
    lines = ["accounts:"]
    for name in ACCOUNTS:
        key, secret = credentials(name)
        (folder / f"{name}.key").write_text(f"{secret}\n")
        url = simulator.url
        if name == "no-connection":
            url = "http://127.0.0.1:9/json"
        elif name == "no-tls":
            url = url.replace("http:", "https:")
        lines.append(
            f"  - {{name: {name}, api_key: {json.dumps(key)}, "
            f"secret_key_file: '{folder}/{name}.key', base_url: '{url}'}}"
        )
    lines += [
        f"ledger: {{url: 'sqlite:///{folder}/ledger.db'}}",
        "polling: {interval: 100ms, max_interval: 100ms, timeout: 1s}",
        "watch:",
        "  calls:",
        *(f"    - {{account: {name}, reference_id: call-{name}}}" for name in ACCOUNTS),
    ]
    return "\n".join(lines) + "\n"


def read(path: Path) -> str:
    return path.read_bytes().decode("latin-1")


@pytest.mark.parametrize("log_format", ["logfmt", "json"])
async def test_nothing_leaks(tmp_path: Path, log_format: str) -> None:
    accounts = [Account(name, *credentials(name)) for name in (*PLAIN[:2], *DAMAGED)]
    accounts.append(Account("revoked", *credentials("revoked"), state=AccountState.REVOKED))
    config = tmp_path / "config.yaml"
    shown: list[str] = []
    async with Simulator(accounts=accounts) as simulator, aiohttp.ClientSession() as http:
        for account in accounts[:1] + accounts[2:]:
            simulator.add_call(account.name, f"call-{account.name}", Plan(queued=5))
        for name, fault in DAMAGED.items():
            simulator.faults.set(name, dataclasses.replace(fault, account=name))
        config.write_text(configuration(tmp_path, simulator))
        options = ("--log.level=debug", f"--log.format={log_format}")
        async with Exporter(config, *options) as exporter:
            await exporter.ready()
            samples = await exporter.until(
                lambda samples: all(
                    total(samples, "esms_api_requests_total", account=name) for name in ACCOUNTS
                )
            )
            for outcome in Outcome:
                assert total(samples, "esms_api_requests_total", outcome=outcome) > 0, outcome
            for damage in (f"api_key: [{json.dumps(KEY)}]", f"x: {json.dumps(KEY)}", f'"{SECRET}'):
                good = config.read_text()
                config.write_text(good.replace("accounts:\n", f"accounts:\n  - {{{damage}\n", 1))
                async with http.post(f"{exporter.url}/-/reload") as answer:
                    assert answer.status == 400
                    shown.append(await answer.text())
                exporter.send(signal.SIGHUP)
                await asyncio.sleep(0.2)
                config.write_text(good)
            for path in ("/", "/metrics", "/-/ready", "/-/healthy", f"/no?ApiKey={quote(KEY)}"):
                async with http.get(exporter.url + path) as answer:
                    shown.append(f"{answer.headers}\n{await answer.text()}")
            process = Path(f"/proc/{exporter.running.pid}")
            shown.append(read(process / "cmdline"))
            exporter.send(signal.SIGTERM)
            await exporter.wait(30)
        log = exporter.output
    shown.append(log)
    shown += [read(tmp_path / f"ledger.db{part}") for part in ("", ".lock")]
    assert log.count("account paused") >= len(DAMAGED) // 2
    assert log.count("configuration not reloaded") >= 3
    assert "Traceback" not in log
    text = "\n".join(shown)
    for credential in (KEY, SECRET):
        for form in (credential, quote(credential), quote(credential, safe=""),
                     quote_plus(credential), json.dumps(credential)[1:-1]):  # fmt: skip
            assert form not in text
    # The word alone is in the paths of keys, such as `accounts[0].api_key`; not the parameter.
    assert not re.search(r"(?i)(ApiKey|SecretKey)(=|%3d)", text)
