"""With everything going wrong at once, at debug level, no credential or phone number is told."""

from __future__ import annotations

import asyncio
import dataclasses
import html
import json
import re
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, unquote, unquote_plus

import aiohttp
import pytest
from yarl import URL

from exporter.esms.codes import Outcome
from exporter.ids import Kind
from exporter.secrets import Secret
from exporter.simulator import Account, AccountState, Fault, FaultKind, Plan, Simulator
from exporter.web.callback import callback_url
from tests.databases import postgresql
from tests.e2e.commands import CONFIG, contents, invoke
from tests.e2e.processes import Exporter, total

KEY = "K3y+/with?odd=&chars-"
SECRET = "S3cr3t+/with?odd=&chars-"
TOKEN = "T0k3n+/with?odd={chars}-"
CALLBACK = "C4llb4ck+/with?odd={chars}-"
USER, PASSWORD, HOST, DATABASE = "sql-us3r", "sql-p4ssw0rd", "sql-h0st.invalid", "sql-d4tabase"
LOGIN = f"{USER}:{PASSWORD}"
HOOK, HOOK_HOST, PROXY = "h00k-t0k3n", "h00k-h0st.invalid", "pr0xy-p4ssw0rd"
PHONE = "0901888484"
SIGNING = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
HIDDEN = (
    *(KEY, SECRET, TOKEN, CALLBACK, USER, PASSWORD, HOST, DATABASE),
    *(HOOK, HOOK_HOST, PROXY, SIGNING, SIGNING[6:], PHONE),
)
ECHO = {"CodeResult": "104", "ErrorMessage": f"ApiKey={KEY}raw {SECRET}raw"}
PLAIN = ["good", "not-found", "revoked", "no-connection", "no-tls"]
DAMAGED = {
    **{kind.value.replace("_", "-"): Fault(kind, seconds=0.5) for kind in FaultKind},
    "status": Fault(FaultKind.STATUS, status=500, body=f"ApiKey={KEY}"),
    "html": Fault(FaultKind.HTML, body=f"<p>SecretKey={SECRET}</p>"),
    "raw": Fault(FaultKind.RAW, body=json.dumps(ECHO)),
    "phone": Fault(FaultKind.RAW, body=json.dumps({**ECHO, "ErrorMessage": f"to {PHONE}"})),
    "busy": Fault(FaultKind.STATUS, status=503, retry_after="1"),
    "redirect": Fault(FaultKind.REDIRECT, location=f"/?ApiKey={quote(KEY)}"),
}
ACCOUNTS = [*PLAIN, *DAMAGED]


def credentials(account: str) -> tuple[str, str]:
    return f"{KEY}{account}", f"{SECRET}{account}"


def queries(server: str) -> dict[str, str]:
    """Return addresses of databases, each of which fails in its own way."""
    return {
        "no-host": f"postgresql://{LOGIN}@{HOST}/{DATABASE}",
        "no-host-either": f"mysql://{LOGIN}@{HOST}/{DATABASE}",
        "no-server": f"postgresql://{LOGIN}@127.0.0.1:9/{DATABASE}",
        "refused": f"postgresql://{LOGIN}@{server}/{DATABASE}",
        "no-table": f"postgresql://{LOGIN}x@{server}/postgres",
        "no-file": f"sqlite:////{HOST}/{DATABASE}/{PASSWORD}.db",
        "no-driver-option": f"postgresql://{LOGIN}@{server}/{DATABASE}?{PASSWORD}={USER}",
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


def configuration(folder: Path, provider: str, server: str, ledger: str) -> str:
    def written(name: str, text: str) -> str:
        (folder / name).write_text(f"{text}\n")
        return name

    accounts = []
    for name in ACCOUNTS:
        key, secret = credentials(name)
        url = provider.replace("http:", "https:") if name == "no-tls" else provider
        proxy = {"proxy_url": f"http://u:{PROXY}@127.0.0.1:9"}
        accounts.append(
            {
                "name": name,
                "api_key": key,
                "base_url": url,
                "balance_url": url,
                "message_url": url,
                "secret_key_file": written(f"{name}.key", secret),
                "callback_token": CALLBACK + name,
                **(proxy if name == "no-connection" else {}),
            }
        )
    tokens = [
        {"name": "plain", "token": TOKEN},
        {"name": "file", "token_file": written("token", f"{TOKEN}file")},
    ]
    query = {"interval": "1s", "account": "good", "query": "SELECT reference_id FROM nothing"}
    sections: dict[str, object] = {
        "accounts": accounts,
        "ledger": {"url_file": written("ledger.url", ledger)},
        "balance": {"interval": "1s"},
        "polling": {"interval": "100ms", "max_interval": "100ms", "timeout": "1s"},
        "notify": [
            {
                "name": name,
                "url_file": written(f"{name}.hook", url),
                "secret_file": written("signing", SIGNING),
            }
            for name, url in targets(provider).items()
        ],
        "watch": {
            "api": {"tokens": tokens},
            "sql": [
                {"name": name, "url_file": written(f"{name}.url", url), **query}
                for name, url in queries(server).items()
            ],
            "calls": [
                {"account": name, "reference_id": f"{kind}-{name}", "kind": kind}
                for name in ACCOUNTS
                for kind in Kind
            ],
        },
    }
    # A section a line, for `damage`.
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in sections.items())


def damage(good: str) -> Iterator[str]:
    """Yield configurations whose problems are about credentials."""
    for account in (f"api_key: [{json.dumps(KEY)}]", f"x: {json.dumps(KEY)}", f'"{SECRET}'):
        yield good.replace("accounts: [", f"accounts: [{{{account}}}, ", 1)
    for target in (
        f"name: a, secret: '{SIGNING}', url: '{HOOK_HOST}/{HOOK}'",
        f"name: a, secret: '{SIGNING}=='",
        f"'http://{HOOK_HOST}/{HOOK}': 5",
    ):
        yield good.replace("notify: [", f"notify: [{{{target}}}, ", 1)
    same = f"token: {json.dumps(TOKEN)}"
    for source in (
        f"api: {{tokens: [{{name: a, {same}}}, {{name: b, {same}}}]}}",
        f"api: {{tokens: [{json.dumps(TOKEN)}]}}",
        f"sql: [{{name: a, query: q, url: '{LOGIN}@{HOST}/{DATABASE}'}}]",
        f"sql: [{{name: a, query: q, url: 'nothing://{LOGIN}@{HOST}/{DATABASE}'}}]",
        f"sql: ['postgresql://{LOGIN}@{HOST}/{DATABASE}']",
    ):
        yield f"{good.partition('watch:')[0]}watch:\n  {source}\n"


def read(path: Path) -> str:
    return path.read_bytes().decode("latin-1")


def write(path: Path, text: str) -> None:
    path.write_text(text)


async def asked(http: aiohttp.ClientSession, url: str) -> AsyncIterator[tuple[int, str]]:
    """Yield the answers to good and bad requests of those who hold credentials, and who do not."""
    bodies: list[object] = [{"calls": [{"reference_id": "a", "account": "good"}]}, {"calls": [{}]}]
    for token in (TOKEN, f"{TOKEN}file", f"{TOKEN}x", TOKEN.lower()):
        headers = {"Authorization": f"Bearer {token}"}
        requests: list[tuple[str, str, object]] = [
            *(
                ("GET", f"/{name}", None)
                for name in ("status", "openapi.json", "calls", "notifications", "no")
            ),
            *(
                ("GET", f"/calls/good/{name}", None)
                for name in ("call-good", "message-good", "nobody")
            ),
            *(("POST", "/calls", body) for body in bodies),
            ("PUT", "/calls", None),
        ]
        for method, path, content in requests:
            async with http.request(
                method, f"{url}/api/v1{path}", json=content, headers=headers
            ) as answer:
                yield answer.status, f"{answer.headers}\n{await answer.text()}"
        for name in ("call-good", "message-good", "nobody", quote(KEY, safe="")):
            async with http.get(f"{url}/calls/good/{name}", headers=headers) as answer:
                yield answer.status, f"{answer.headers}\n{await answer.text()}"
    for token in (f"{CALLBACK}good", f"{CALLBACK}no", f"{CALLBACK}good/more"):
        for query in (
            "?ReferenceId=call-good&SendStatus=5",
            f"?SMSID=message-good&SendStatus=5&SendSuccess=1&phonenumber={PHONE}",
            f"?SMSID=&phonenumber={PHONE}",
            "",
        ):
            for method in ("GET", "POST"):
                place = URL(callback_url(url, "good", Secret(token)) + query, encoded=True)
                async with http.request(method, place) as answer:
                    yield answer.status, f"{answer.headers}\n{await answer.text()}"


@contextmanager
def database() -> Iterator[str]:
    """Run a server that knows the user, by another password; yields its host and port."""
    with postgresql() as server:
        server.execute(f"CREATE USER \"{USER}\" SUPERUSER PASSWORD '{PASSWORD}x'")
        yield server.url.partition("@")[2].partition("/")[0]


async def until_all_has_failed(exporter: Exporter, server: str, provider: str) -> None:
    requests = "esms_api_requests_total"
    first = [
        *((requests, "account", name) for name in ACCOUNTS),
        *((requests, "outcome", outcome) for outcome in Outcome),
    ]
    await exporter.until(
        lambda samples: all(total(samples, name, **{key: of}) for name, key, of in first)
    )
    series = [
        ("esms_api_requests_total", "operation", "get_message_status"),
        *(("esms_source_errors_total", "source", f"sql:{name}") for name in queries(server)),
        *(("esms_notification_requests_total", "target", name) for name in targets(provider)),
    ]
    await exporter.until(
        lambda samples: all(total(samples, name, **{key: of}) > 1 for name, key, of in series)
    )


async def diagnosed(config: Path, *options: str) -> str:
    """Return what a bug report contains."""
    archive = config.with_name("diagnostics.tar.gz")
    archive.unlink(missing_ok=True)
    ended = await invoke(config.parent, "diagnostics", CONFIG, f"--output={archive}", *options)
    assert ended.code == 0, ended.errors
    text = "\n".join([ended.output, ended.errors, *contents(archive).values()])
    for name in ACCOUNTS:
        assert not any(f"{kind}-{name}" in text for kind in Kind), name
    return text


async def looked_at(http: aiohttp.ClientSession, exporter: Exporter, config: Path) -> list[str]:
    """Return what everybody is told who asks, and tries configurations that are no good."""
    answers = [answer async for answer in asked(http, exporter.url)]
    assert {status for status, _ in answers} == {200, 202, 400, 401, 404, 405}
    shown, good = [text for _, text in answers], read(config)
    for damaged in damage(good):
        write(config, damaged)
        async with http.post(f"{exporter.url}/-/reload") as answer:
            assert answer.status == 400
            shown.append(await answer.text())
        # Metrics and the log, which do not depend on the file, come below.
        shown.append(await diagnosed(config, "--web.listen-address=127.0.0.1:9"))
        exporter.send(signal.SIGHUP)
        await asyncio.sleep(0.2)
    write(config, good)
    address = f"--web.listen-address={exporter.url.removeprefix('http://')}"
    shown.append(await diagnosed(config, address, f"--log-file={config.with_suffix('.log')}"))
    for path in ("/", "/metrics", "/-/ready", "/-/healthy", f"/no?ApiKey={quote(KEY)}"):
        async with http.get(exporter.url + path) as answer:
            shown.append(f"{answer.headers}\n{await answer.text()}")
    return shown


@pytest.mark.parametrize("log_format", ["logfmt", "json"])
async def test_nothing_leaks(tmp_path: Path, http: aiohttp.ClientSession, log_format: str) -> None:
    accounts = [Account(name, *credentials(name)) for name in (*PLAIN[:2], *DAMAGED)]
    accounts.append(Account("revoked", *credentials("revoked"), state=AccountState.REVOKED))
    config, file = tmp_path / "config.yaml", tmp_path / "ledger.db"
    async with Simulator(accounts=accounts) as simulator:
        for account in accounts[:1] + accounts[2:]:
            for kind in Kind:
                plan = Plan(queued=5, receivers=int(kind is Kind.MESSAGE))
                simulator.add_call(account.name, f"{kind}-{account.name}", plan)
        for name, fault in DAMAGED.items():
            simulator.faults.set(name, dataclasses.replace(fault, account=name))
        with database() as server:
            shared = f"postgresql://{LOGIN}x@{server}/postgres"
            ledger = f"sqlite:///{file}" if log_format == "logfmt" else shared
            config.write_text(configuration(tmp_path, simulator.url, server, ledger))
            options = ("--log.level=debug", f"--log.format={log_format}")
            async with Exporter(config, *options) as exporter:
                await exporter.ready()
                await until_all_has_failed(exporter, server, simulator.url)
                shown = await looked_at(http, exporter, config)
                shown += (await invoke(tmp_path, "notifications", "list", CONFIG))[1:]
                assert "http_error" in shown[-2]
                shown.append(read(Path(f"/proc/{exporter.running.pid}/cmdline")))
                exporter.send(signal.SIGTERM)
                assert await exporter.wait() == 0
    log = exporter.output
    shown += [log, read(file) if file.exists() else ""]
    for event, count in {
        "account paused": len(DAMAGED) // 2,
        "balance request failed": len(DAMAGED) // 2,
        "configuration reload failed": 8,
        "source problem": len(queries("")),
        "notification failed": len(targets("")),
    }.items():
        assert log.count(event) >= count, event
    assert "Traceback" not in log
    text = "\n".join(shown)
    # In whatever form it may have been written.
    forms = (text, unquote(text), unquote_plus(text), html.unescape(text), text.replace("\\", ""))
    for credential in HIDDEN:
        assert not any(credential in form for form in forms), credential
    # The word alone is in the paths of keys, such as `accounts[0].api_key`; not the parameter.
    assert not re.search(r"(?i)(ApiKey|SecretKey|phonenumber)(=|%3d)", text)
