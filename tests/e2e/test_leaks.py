"""With everything going wrong at once, at debug level, nothing tells a credential."""

from __future__ import annotations

import asyncio
import dataclasses
import html
import json
import re
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote, unquote, unquote_plus

import aiohttp
import pytest
from yarl import URL

from exporter.esms.codes import Outcome
from exporter.secrets import Secret
from exporter.simulator import Account, AccountState, Fault, FaultKind, Plan, Simulator
from exporter.web.callback import callback_url
from tests.databases import postgresql
from tests.e2e.processes import Exporter, total

KEY = "K3y+/with?odd=&chars-"
SECRET = "S3cr3t+/with?odd=&chars-"
TOKEN = "T0k3n+/with?odd={chars}-"
CALLBACK = "C4llb4ck+/with?odd={chars}-"
USER, PASSWORD, HOST, DATABASE = "sql-us3r", "sql-p4ssw0rd", "sql-h0st.invalid", "sql-d4tabase"
HOOK, HOOK_HOST = "h00k-t0k3n", "h00k-h0st.invalid"
SIGNING = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
HIDDEN = (
    *(KEY, SECRET, TOKEN, CALLBACK, USER, PASSWORD, HOST, DATABASE),
    *(HOOK, HOOK_HOST, SIGNING, SIGNING[6:]),
)
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


def queries(server: str) -> dict[str, str]:
    """Return addresses of databases, each of which fails in its own way."""
    login = f"{USER}:{PASSWORD}"
    return {
        "no-host": f"postgresql://{login}@{HOST}/{DATABASE}",
        "no-host-either": f"mysql://{login}@{HOST}/{DATABASE}",
        "no-server": f"postgresql://{login}@127.0.0.1:9/{DATABASE}",
        "refused": f"postgresql://{login}@{server}/{DATABASE}",
        "no-table": f"postgresql://{USER}:{PASSWORD}x@{server}/postgres",
        "no-file": f"sqlite:////{HOST}/{DATABASE}/{PASSWORD}.db",
        "no-driver-option": f"postgresql://{login}@{server}/{DATABASE}?{PASSWORD}={USER}",
    }


def targets(provider: str) -> dict[str, str]:
    """Return addresses to tell of calls, each of which fails in its own way."""
    return {
        "no-host": f"https://{HOOK}@{HOOK_HOST}/{HOOK}",
        "no-server": f"http://127.0.0.1:9/{HOOK}",
        "no-tls": provider.replace("http:", "https:") + f"/{HOOK}",
        "not-found": f"{provider}/{HOOK}?{HOOK}",
        "forbidden": f"http://0xa9fea9fe/{HOOK}",
    }


def configuration(folder: Path, simulator: Simulator, server: str) -> str:
    (folder / "token").write_text(f"{TOKEN}file\n")
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
            f"secret_key_file: '{folder}/{name}.key', base_url: '{url}', "
            f"balance_url: '{url}', "
            f"callback_token: {json.dumps(CALLBACK + name)}}}"
        )
    lines += [
        f"ledger: {{url: 'sqlite:///{folder}/ledger.db'}}",
        "balance: {interval: 1s}",
        "polling: {interval: 100ms, max_interval: 100ms, timeout: 1s}",
        "notify:",
    ]
    (folder / "signing").write_text(f"{SIGNING}\n")
    for name, url in targets(simulator.url).items():
        (folder / f"{name}.hook").write_text(f"{url}\n")
        lines.append(f"  - {{name: {name}, url_file: {name}.hook, secret_file: signing}}")
    lines += [
        "watch:",
        "  api:",
        "    tokens:",
        f"      - {{name: plain, token: {json.dumps(TOKEN)}}}",
        "      - {name: file, token_file: token}",
        "  sql:",
    ]
    for name, url in queries(server).items():
        (folder / f"{name}.url").write_text(f"{url}\n")
        lines.append(
            f"    - {{name: {name}, url_file: {name}.url, interval: 1s, account: good,"
            " query: SELECT reference_id FROM nothing}"
        )
    lines += [
        "  calls:",
        *(f"    - {{account: {name}, reference_id: call-{name}}}" for name in ACCOUNTS),
    ]
    return "\n".join(lines) + "\n"


def damage(good: str) -> Iterator[str]:
    """Yield configurations whose problems are about credentials."""
    for account in (f"api_key: [{json.dumps(KEY)}]", f"x: {json.dumps(KEY)}", f'"{SECRET}'):
        yield good.replace("accounts:\n", f"accounts:\n  - {{{account}\n", 1)
    for target in (
        f"name: a, secret: '{SIGNING}', url: '{HOOK_HOST}/{HOOK}'",
        f"name: a, secret: '{SIGNING}=='",
        f"'http://{HOOK_HOST}/{HOOK}': 5",
    ):
        yield good.replace("notify:\n", f"notify:\n  - {{{target}}}\n", 1)
    same, login = f"token: {json.dumps(TOKEN)}", f"{USER}:{PASSWORD}@{HOST}"
    for source in (
        f"api: {{tokens: [{{name: a, {same}}}, {{name: b, {same}}}]}}",
        f"api: {{tokens: [{json.dumps(TOKEN)}]}}",
        f"sql: [{{name: a, query: q, url: '{login}/{DATABASE}'}}]",
        f"sql: [{{name: a, query: q, url: 'nothing://{login}/{DATABASE}'}}]",
        f"sql: ['postgresql://{login}/{DATABASE}']",
    ):
        yield f"{good.partition('watch:')[0]}watch:\n  {source}\n"


def read(path: Path) -> str:
    return path.read_bytes().decode("latin-1")


async def asked(http: aiohttp.ClientSession, url: str) -> AsyncIterator[tuple[int, str]]:
    """Yield the answers to good and bad requests of those who hold credentials, and who do not."""
    bodies: list[object] = [{"calls": [{"reference_id": "a", "account": "good"}]}, {"calls": [{}]}]
    for token in (TOKEN, f"{TOKEN}file", f"{TOKEN}x", TOKEN.lower()):
        headers = {"Authorization": f"Bearer {token}"}
        requests: list[tuple[str, str, object]] = [
            *(("GET", f"/{name}", None) for name in ("status", "openapi.json", "calls", "no")),
            *(("GET", f"/calls/good/{name}", None) for name in ("call-good", "nobody")),
            *(("POST", "/calls", body) for body in bodies),
            ("PUT", "/calls", None),
        ]
        for method, path, content in requests:
            async with http.request(
                method, f"{url}/api/v1{path}", json=content, headers=headers
            ) as answer:
                yield answer.status, f"{answer.headers}\n{await answer.text()}"
    for token in (f"{CALLBACK}good", f"{CALLBACK}no", f"{CALLBACK}good/more"):
        for query in ("?ReferenceId=call-good&SendStatus=5", "?ReferenceId=", ""):
            for method in ("GET", "POST"):
                place = URL(callback_url(url, "good", Secret(token)) + query, encoded=True)
                async with http.request(method, place) as answer:
                    yield answer.status, f"{answer.headers}\n{await answer.text()}"


@asynccontextmanager
async def database() -> AsyncIterator[str]:
    """Run a server that knows the user, by another password, and give its host and port."""
    with postgresql() as server:
        server.execute(f"CREATE USER \"{USER}\" PASSWORD '{PASSWORD}x'")
        yield server.url.partition("@")[2].partition("/")[0]


@pytest.mark.parametrize("log_format", ["logfmt", "json"])
async def test_nothing_leaks(tmp_path: Path, log_format: str) -> None:
    accounts = [Account(name, *credentials(name)) for name in (*PLAIN[:2], *DAMAGED)]
    accounts.append(Account("revoked", *credentials("revoked"), state=AccountState.REVOKED))
    config = tmp_path / "config.yaml"
    shown: list[str] = []
    async with (
        Simulator(accounts=accounts) as simulator,
        aiohttp.ClientSession() as http,
        database() as server,
    ):
        for account in accounts[:1] + accounts[2:]:
            simulator.add_call(account.name, f"call-{account.name}", Plan(queued=5))
        for name, fault in DAMAGED.items():
            simulator.faults.set(name, dataclasses.replace(fault, account=name))
        config.write_text(configuration(tmp_path, simulator, server))
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
            sources = [f"sql:{name}" for name in queries(server)]
            await exporter.until(
                lambda samples: all(
                    total(samples, "esms_source_errors_total", source=source) > 1
                    for source in sources
                )
            )
            await exporter.until(
                lambda samples: all(
                    total(samples, "esms_notification_requests_total", target=target) > 1
                    for target in targets(simulator.url)
                )
            )
            statuses = set()
            async for status, text in asked(http, exporter.url):
                statuses.add(status)
                shown.append(text)
            assert statuses == {200, 202, 400, 401, 404, 405}
            for damaged in damage(config.read_text()):
                good = config.read_text()
                config.write_text(damaged)
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
            assert await exporter.wait() == 0
        log = exporter.output
    shown.append(log)
    shown.append(read(tmp_path / "ledger.db"))
    assert log.count("account paused") >= len(DAMAGED) // 2
    assert log.count("balance request failed") >= len(DAMAGED) // 2
    assert log.count("configuration reload failed") >= 8
    assert log.count("source problem") >= len(sources)
    assert log.count("notification failed") >= len(targets(simulator.url))
    assert "Traceback" not in log
    text = "\n".join(shown)
    # In whatever form it may have been written.
    forms = (text, unquote(text), unquote_plus(text), html.unescape(text), text.replace("\\", ""))
    for credential in HIDDEN:
        assert not any(credential in form for form in forms), credential
    # The word alone is in the paths of keys, such as `accounts[0].api_key`; not the parameter.
    assert not re.search(r"(?i)(ApiKey|SecretKey)(=|%3d)", text)
