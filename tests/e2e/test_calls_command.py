"""What `calls` lists of a real exporter."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from click.testing import CliRunner

from exporter.cli import commands
from exporter.cli.calls import COLUMNS
from exporter.simulator import Account, Plan, Simulator
from tests.e2e.commands import Ended, piped, run
from tests.e2e.lookups import in_csv, in_json
from tests.e2e.processes import Exporter, total
from tests.web.certificates import Certificates

TOKEN = "made-up-token"
ENVIRON = {"ESMS_EXPORTER_TOKEN": TOKEN}
COUNT = 1500  # more than a page


@pytest_asyncio.fixture
async def simulator() -> AsyncIterator[Simulator]:
    accounts = [Account("main", "k", "s"), Account("b", "kb", "s")]
    async with Simulator(accounts=accounts) as simulator:
        yield simulator


def configuration(folder: Path, simulator: Simulator) -> Path:
    path = folder / "config.yaml"
    (folder / "token").write_text(f"{TOKEN}\n")
    path.write_text(
        f"accounts:\n  - {{name: main, api_key: k, secret_key: s, base_url: '{simulator.url}'}}\n"
        f"  - {{name: b, api_key: kb, secret_key: s, base_url: '{simulator.url}'}}\n"
        "polling: {interval: 1h, max_interval: 1h}\n"
        "balance: {interval: 0}\n"
        f"ledger: {{url: 'sqlite:///{folder}/ledger.db'}}\n"
        "watch: {labels: [campaign], api: {tokens: [{name: test, token_file: token}]}}\n"
    )
    return path


async def watch(url: str, *calls: Mapping[str, object]) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with aiohttp.ClientSession(headers=headers) as http:
        body = {"calls": calls}
        async with http.post(f"{url}/api/v1/calls", json=body) as answer:
            assert answer.status == 202


async def test_what_it_lists(tmp_path: Path, simulator: Simulator) -> None:
    simulator.add_call("b", "ended", Plan(duration=7, ivr="*"))
    simulator.add_call("b", "queued", Plan(queued=1000))
    async with Exporter(configuration(tmp_path, simulator)) as exporter:
        url = await exporter.ready()
        await watch(
            url,
            {"reference_id": "ended", "account": "b", "labels": {"campaign": "otp, x"}},
            {"reference_id": "queued", "account": "b", "labels": {"campaign": "[red]a"}},
            *({"reference_id": f"c{n}", "account": "main"} for n in range(COUNT)),
        )
        await exporter.until(lambda found: total(found, "esms_calls_total", account="b") == 1)

        async def listed(*arguments: str, **environ: str) -> Ended:
            told = {"ESMS_EXPORTER_URL": url, **ENVIRON, **environ}
            return await run(tmp_path, "calls", *arguments, environ=told)

        found = await listed("--output=json")
        assert (found.code, found.errors) == (0, "")
        lines = in_json(found.output)
        assert [line["reference_id"] for line in lines] == [
            "queued",
            *(f"c{number}" for number in range(COUNT)),
        ]
        assert lines[0]["labels"] == {"campaign": "[red]a"}
        assert datetime.fromisoformat(lines[0]["first_watched"]).tzinfo

        # The token of the environment is not looked at where there is a file.
        found = await listed(
            *("--account=b", "--state=all", "--output=csv", "--token-file=token", f"--url={url}/"),
            ESMS_EXPORTER_TOKEN="wrong",
        )
        assert found.code == 0
        ended, queued = in_csv(found.output)
        del ended["first_watched"], ended["finished_at"]
        assert ended == {
            "account": "b",
            "reference_id": "ended",
            "state": "finished",
            "result": "success",
            "status": "answered",
            "duration": "7.0",
            "key": "star",
            "labels": json.dumps({"campaign": "otp, x"}, separators=(",", ":")),
        }
        assert queued["state"] == "queued"

        for arguments in (["--state=finished"], ["--result=success"]):
            found = await listed(*arguments)
            head, row = found.output.splitlines()
            assert head.split()[:3] == ["reference_id", "account", "state"]
            assert row.split()[:6] == ["ended", "b", "success", "answered", "7", "s"]
            assert row.rstrip().endswith("campaign=otp, x")
        found = await listed("--account=b", "--state=queued")
        assert "campaign=[red]a" in found.output
        assert "c0" not in found.output

        assert await listed("--account=b", "--state=awaiting_report", "--output=json") == (
            0,
            "",
            "",
        )

        environ = {**ENVIRON, "ESMS_EXPORTER_URL": url}
        with piped(tmp_path, "calls", "--output=csv", environ=environ) as (command, output):
            first = await asyncio.to_thread(output.readline)
        assert first.decode() == ",".join(COLUMNS) + "\n"
        assert await command.end() == (1, "", "")

        refused = await listed(ESMS_EXPORTER_TOKEN="wrong-1")
        assert (refused.code, refused.output) == (1, "")
        assert refused.errors.startswith(
            f"esms-exporter: {url}/api/v1/calls: refused with the HTTP status 401: expected a valid"
        )
        unknown = await listed("--account=nobody")
        assert unknown.code == 1
        assert "account: expected the name of one of the accounts" in unknown.errors
        assert all(hidden not in refused.errors + unknown.errors for hidden in (TOKEN, "wrong-1"))


async def test_over_tls(tmp_path: Path, simulator: Simulator) -> None:
    Certificates(tmp_path)
    (tmp_path / "web.yml").write_text(
        "tls_server_config: {cert_file: server.crt, key_file: server.key}\n"
    )
    options = (f"--web.config.file={tmp_path}/web.yml",)
    async with Exporter(configuration(tmp_path, simulator), *options) as exporter:
        url = f"--url={await exporter.ready()}"
        found = await run(tmp_path, "calls", url, environ=ENVIRON)
        assert found.code == 1
        assert (
            "cannot verify the TLS certificate; pass the CA certificate with --ca-file"
            in found.errors
        )
        found = await run(tmp_path, "calls", url, "--ca-file=ca.crt", environ=ENVIRON)
        assert (found.code, found.errors) == (0, "")


@asynccontextmanager
async def answering(
    answer: Callable[[web.BaseRequest], Awaitable[web.Response]],
) -> AsyncIterator[str]:
    """Serve in place of an exporter; yields the address."""
    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_what_is_no_exporter(tmp_path: Path) -> None:
    asked: list[str] = []

    async def answer(request: web.BaseRequest) -> web.Response:
        asked.append(request.path)
        if request.path.startswith("/moved"):
            return web.Response(status=302, headers={"Location": "/elsewhere"})
        return web.Response(text='{"calls": 1}')

    async with answering(answer) as base:
        for path, expected in (
            ("", "the server at this URL is not esms-exporter"),
            (
                "/moved",
                "refused with the HTTP status 302; the server at this URL is not esms-exporter",
            ),
        ):
            url = f"{base}{path}"
            found = await run(tmp_path, "calls", f"--url={url}", environ=ENVIRON)
            assert (found.code, found.output) == (1, "")
            assert found.errors == f"esms-exporter: {url}/api/v1/calls: {expected}\n"
        assert asked == ["/api/v1/calls", "/moved/api/v1/calls"]
    found = await run(tmp_path, "calls", f"--url={base}", environ=ENVIRON)
    assert found.code == 1
    assert found.errors.startswith(f"esms-exporter: {base}/api/v1/calls: the connection failed")


async def test_pages_that_are_empty_or_refused_for_a_moment(tmp_path: Path) -> None:
    call = {
        "account": "main", "reference_id": "a", "labels": {}, "state": "queued",
        "first_watched": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    answers: list[tuple[int, dict[str, object]]] = [
        (200, {"calls": [], "next": "5"}),
        (429, {"title": "Too Many Requests", "status": 429, "detail": "too many listings"}),
        (200, {"calls": [call], "next": "6"}),
        (200, {"calls": [], "next": None}),
    ]
    asked: list[str] = []

    async def answer(request: web.BaseRequest) -> web.Response:
        asked.append(request.query["after"])
        status, body = answers[len(asked) - 1]
        return web.json_response(body, status=status)

    async with answering(answer) as url:
        found = await run(tmp_path, "calls", f"--url={url}", "--output=json", environ=ENVIRON)
    assert (found.code, found.errors) == (0, "")
    assert [line["reference_id"] for line in in_json(found.output)] == ["a"]
    assert asked == ["0", "5", "5", "6"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--url=ftp://x", "--url"),
        ("--url=http://[::1", "--url"),
        ("--token-file=missing", "--token-file"),
        ("--token-file=empty", "expected a token"),
        ("--ca-file=missing", "--ca-file"),
        ("--ca-file=empty", "--ca-file"),
        ("--state=x", "--state"),
    ],
)
def test_wrong_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, expected: str
) -> None:
    (tmp_path / "empty").touch()
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(commands, ["calls", *arguments.split()], env=ENVIRON)
    assert (found.exit_code, found.stdout) == (2, "")
    assert expected in found.stderr.splitlines()[-1]


def test_without_a_token() -> None:
    found = CliRunner().invoke(commands, ["calls"])
    assert found.exit_code == 2
    assert "ESMS_EXPORTER_TOKEN" in found.stderr.splitlines()[-1]
