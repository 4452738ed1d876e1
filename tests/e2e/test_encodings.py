"""What commands write where the terminal, or the pipe, is not UTF-8."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.e2e.commands import run
from tests.e2e.lookups import CONFIG, configure

MESSAGE = "Tài khoản không đủ tiền ✆"


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
async def test_no_character_ends_a_command(tmp_path: Path, encoding: str) -> None:
    async def answer(_request: web.Request) -> web.Response:
        return web.json_response({"CodeResult": "103", "ErrorMessage": MESSAGE})

    application = web.Application()
    application.router.add_get("/GetSendStatus", answer)
    async with TestServer(application) as server:
        await commands_end_well(tmp_path, f"http://127.0.0.1:{server.port}", encoding)


async def commands_end_well(tmp_path: Path, url: str, encoding: str) -> None:
    configure(tmp_path, url)
    (tmp_path / "số.yaml").write_text("accounts: [{name: số}]\n")
    (tmp_path / "tốt.yaml").write_text((tmp_path / "config.yaml").read_text())
    environ = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    for output in ("table", "json"):
        ended = await run(tmp_path, "lookup", "a", CONFIG, f"--output={output}", environ=environ)
        assert (ended.code, "uncaught exception" in ended.errors) == (1, False), ended
        assert (MESSAGE if encoding == "utf-8" else "i kho") in ended.output, ended
        if output == "json":
            assert json.loads(ended.output)["reference_id"] == "a"
    for command, code in (
        (("check", "--config.file=số.yaml"), 1),
        (("check", "--config.file=tốt.yaml"), 0),
        (("schema",), 0),
        (("lookup", "số", CONFIG), 2),
        (("canary", "số", CONFIG, "--dry-run"), 2),
    ):
        ended = await run(tmp_path, *command, environ=environ)
        assert (ended.code, "uncaught exception" in ended.errors) == (code, False), (command, ended)
        assert ended.errors or not code, command
