"""What `calls` lists of a real exporter."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

from aiohttp import web
from aiohttp.test_utils import RawTestServer

from exporter.simulator import Plan, Simulator
from exporter.web.schemas import Call
from tests.e2e.commands import Ended, in_csv, in_json, run
from tests.e2e.processes import API, TOKEN, Exporter, configure, listed, push, total
from tests.web.certificates import Certificates

ENVIRON = {"ESMS_EXPORTER_TOKEN": TOKEN}
COUNT = 1500  # more than a page


async def test_what_it_lists(tmp_path: Path, simulator: Simulator) -> None:
    simulator.add_call("other", "ended", Plan(duration=7, ivr="*"))
    simulator.add_call("other", "queued", Plan(queued=1000))
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    hourly = {"interval": "1h", "max_interval": "1h"}
    config = configure(tmp_path, simulator, watch={"api": API}, polling=hourly)
    async with Exporter(config) as exporter:
        url = await exporter.ready()
        many = (listed(f"c{number}") for number in range(COUNT))
        ended = listed("ended", "other", campaign="otp, x")
        await push(exporter, [ended, listed("queued", "other", campaign="[red]a"), *many])
        await exporter.until(lambda found: total(found, "esms_calls_total", account="other") == 1)

        async def lists(*arguments: str, **environ: str) -> Ended:
            told = {"ESMS_EXPORTER_URL": url, **ENVIRON, **environ}
            return await run(tmp_path, "calls", *arguments, environ=told)

        found = await lists("--output=json")
        assert (found.code, found.errors) == (0, "")
        lines = in_json(found.output)
        assert [line["reference_id"] for line in lines] == [
            "queued",
            *(f"c{number}" for number in range(COUNT)),
        ]
        assert lines[0]["labels"] == {"campaign": "[red]a"}
        assert datetime.fromisoformat(lines[0]["first_watched"]).tzinfo

        # The token of the environment is not looked at where there is a file.
        found = await lists(
            *("--account=other", "--state=all", "--output=csv", "--token-file=token"),
            *(f"--url={url}/",),
            ESMS_EXPORTER_TOKEN="wrong",
        )
        assert found.code == 0
        first, second = in_csv(found.output)
        assert [*first] == [*Call.model_fields]
        del first["first_watched"], first["finished_at"]
        assert first == {
            "account": "other",
            "reference_id": "ended",
            "state": "finished",
            "result": "success",
            "status": "answered",
            "duration": "7.0",
            "key": "star",
            "labels": json.dumps({"campaign": "otp, x"}, separators=(",", ":")),
            "kind": "call",
            "delivered": "",
            "failed": "",
        }
        assert second["state"] == "queued"

        for arguments in (["--state=finished"], ["--result=success"]):
            found = await lists(*arguments)
            head, row = found.output.splitlines()
            assert head.split()[:3] == ["reference_id", "account", "kind"]
            assert row.split()[:7] == ["ended", "other", "call", "success", "answered", "7", "s"]
            assert row.rstrip().endswith("campaign=otp, x")
        found = await lists("--account=other", "--state=queued")
        assert "campaign=[red]a" in found.output
        assert "c0" not in found.output
        nothing = ("--account=other", "--state=awaiting_report", "--output=json")
        assert await lists(*nothing) == (0, "", "")

        refused = await lists(ESMS_EXPORTER_TOKEN="wrong-1")
        assert (refused.code, refused.output) == (1, "")
        problem = "refused with the HTTP status 401: expected a valid"
        assert refused.errors.startswith(f"esms-exporter: {url}/api/v1/calls: {problem}")
        unknown = await lists("--account=nobody")
        assert unknown.code == 1
        assert "account: expected the name of one of the accounts" in unknown.errors
        assert all(hidden not in refused.errors + unknown.errors for hidden in (TOKEN, "wrong-1"))


async def test_messages(tmp_path: Path, simulator: Simulator) -> None:
    simulator.add_call("main", "many", Plan(receivers=3, failed=1))
    config = configure(tmp_path, simulator, watch={"api": API})
    async with Exporter(config) as exporter:
        environ = {"ESMS_EXPORTER_URL": await exporter.ready(), **ENVIRON}
        await push(exporter, [{**listed("many"), "kind": "message"}])
        await exporter.until(lambda found: total(found, "esms_messages_total") == 3)
        finished = ("calls", "--state=finished")
        found = await run(tmp_path, *finished, environ=environ)
        head, row = found.output.splitlines()
        assert head.split()[2:7] == ["kind", "state", "status", "delivered", "failed"]
        assert row.split()[:7] == ["many", "main", "message", "failure", "none", "2", "1"]
        found = await run(tmp_path, *finished, "--output=csv", environ=environ)
        (line,) = in_csv(found.output)
        assert (line["kind"], line["delivered"], line["failed"]) == ("message", "2", "1")


async def test_over_tls(tmp_path: Path, simulator: Simulator) -> None:
    Certificates(tmp_path)
    web_config = tmp_path / "web.yml"
    web_config.write_text("tls_server_config: {cert_file: server.crt, key_file: server.key}\n")
    config = configure(tmp_path, simulator, watch={"api": API})
    async with Exporter(config, f"--web.config.file={web_config}") as exporter:
        url = f"--url={await exporter.ready()}"
        found = await run(tmp_path, "calls", url, environ=ENVIRON)
        problem = "cannot verify the TLS certificate; pass the CA certificate with --ca-file"
        assert found.code == 1
        assert problem in found.errors
        found = await run(tmp_path, "calls", url, "--ca-file=ca.crt", environ=ENVIRON)
        assert (found.code, found.errors) == (0, "")


async def test_what_is_no_exporter(tmp_path: Path) -> None:
    asked: list[str] = []

    async def answer(request: web.BaseRequest) -> web.Response:
        asked.append(request.path)
        if request.path.startswith("/moved"):
            return web.Response(status=302, headers={"Location": "/elsewhere"})
        return web.Response(text='{"calls": 1}')

    none = "the server at this URL is not esms-exporter"
    async with RawTestServer(answer) as server:
        base = f"http://127.0.0.1:{server.port}"
        for path, expected in (("", none), ("/moved", f"refused with the HTTP status 302; {none}")):
            found = await run(tmp_path, "calls", f"--url={base}{path}", environ=ENVIRON)
            problem = f"esms-exporter: {base}{path}/api/v1/calls: {expected}\n"
            assert found == (1, "", problem)
        assert asked == ["/api/v1/calls", "/moved/api/v1/calls"]
    found = await run(tmp_path, "calls", f"--url={base}", environ=ENVIRON)
    assert found.code == 1
    assert found.errors.startswith(f"esms-exporter: {base}/api/v1/calls: the connection failed")


async def test_pages_that_are_empty_or_refused_for_a_moment(tmp_path: Path) -> None:
    call = {**listed("a"), "state": "queued", "first_watched": "2026-01-01T00:00:00Z"}
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

    async with RawTestServer(answer) as server:
        url = f"--url=http://127.0.0.1:{server.port}"
        found = await run(tmp_path, "calls", url, "--output=json", environ=ENVIRON)
    assert (found.code, found.errors) == (0, "")
    assert [line["reference_id"] for line in in_json(found.output)] == ["a"]
    assert asked == ["0", "5", "5", "6"]
