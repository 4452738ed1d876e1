"""The provider's callback, from the address that is given to it to the count."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

import aiohttp
import pytest
from yarl import URL

from exporter.errors import ExporterError
from exporter.simulator import Account, Plan, Simulator
from tests.e2e.commands import CONFIG, invoke, run
from tests.e2e.processes import Exporter, configure, total

TOKEN = "made-up/callback-token"


async def test_a_call_that_nobody_told_of(
    tmp_path: Path, simulator: Simulator, http: aiohttp.ClientSession
) -> None:
    simulator.add_call("main", "a", Plan(duration=7))
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    keys, main = {"callback_token_file": "token"}, [Account("main", "key-main", "s")]
    hourly = {"interval": "1h", "max_interval": "1h"}
    callback = {"callback": {"trust": "accept"}}
    config = configure(
        tmp_path, simulator, accounts=main, account=keys, watch=callback, polling=hourly
    )
    async with Exporter(config) as exporter:
        command = ("callback-url", f"--config.file={config}", f"--url={await exporter.ready()}/")
        (line,) = (await run(tmp_path, *command)).output.split()
        # As it stands in the query of MakeCall*, which the provider decodes once.
        url = URL(unquote(line), encoded=True)
        fields = {"ReferenceId": "A", "CallStatus": "ANSWERED", "CallDuration": "7"}
        fields |= {"SentResult": "1", "SendStatus": "5", "Price": "420", "Ivr": "", "CID": "1"}
        for _ in range(2):
            async with http.get(url.with_query(fields)) as answer:
                assert answer.status == 200
        found = await exporter.until(lambda found: total(found, "esms_calls_total") == 1)
        assert total(found, "esms_calls_total", account="main", status="answered") == 1
        assert total(found, "esms_call_price_vnd_total", account="main") == 420
        assert total(found, "esms_callbacks_total", account="main") == 2
        assert "made-up" not in exporter.output


async def test_the_address_of_no_account(tmp_path: Path) -> None:
    configure(tmp_path, "http://127.0.0.1:1")
    command = ("callback-url", CONFIG)
    for url in ("ftp://x", "http://[::1", "http://x:99999", "https://x?a=b", "https://x#a"):
        assert (await invoke(tmp_path, *command, f"--url={url}")).code == 2
    with pytest.raises(ExporterError, match="no account with a `callback_token`"):
        await invoke(tmp_path, *command, "--url=https://x.example.com", "--account=main")
    configure(tmp_path, "http://127.0.0.1:1", account={"callback_token": TOKEN})
    found = await invoke(tmp_path, *command, "--url=https://x.example.com/esms")
    assert found.output == (
        "https%3A%2F%2Fx.example.com%2Fesms%2Fcallback%2Fmain%2Fmade-up%252Fcallback-token\n"
    )
