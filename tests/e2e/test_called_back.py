"""The provider's callback, from the address that is given to it to the count."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

import aiohttp
import pytest
from yarl import URL

from exporter.simulator import Account, Plan, Simulator
from tests.e2e.commands import Ended, run
from tests.e2e.processes import Exporter, total


def configure(folder: Path, base_url: str, trust: str) -> Path:
    path = folder / "config.yaml"
    (folder / "token").write_text("made-up/callback-token\n")
    path.write_text(
        "accounts:\n"
        f"  - {{name: main, api_key: k, secret_key: s, base_url: '{base_url}',"
        " callback_token_file: token}\n"
        f"  - {{name: b, api_key: kb, secret_key: s, base_url: '{base_url}'}}\n"
        "polling: {interval: 1h, max_interval: 1h}\n"
        "balance: {interval: 0}\n"
        f"ledger: {{url: 'sqlite:///{folder}/ledger.db'}}\n"
        f"watch: {{labels: [campaign], callback: {{trust: {trust}}}}}\n"
    )
    return path


async def callback_url(config: Path, *options: str) -> Ended:
    return await run(config.parent, "callback-url", f"--config.file={config}", *options)


@pytest.mark.parametrize("trust", ["verify", "accept"])
async def test_a_call_that_nobody_told_of(tmp_path: Path, trust: str) -> None:
    accounts = [Account("main", "k", "s"), Account("b", "kb", "s")]
    async with Simulator(accounts=accounts) as simulator:
        simulator.add_call("main", "a", Plan(duration=7))
        config = configure(tmp_path, simulator.url, trust)
        async with Exporter(config) as exporter:
            printed = await callback_url(config, f"--url={await exporter.ready()}/")
            (line,) = printed.output.split()
            # As it stands in the query of MakeCall*, which the provider decodes once.
            url = URL(unquote(line), encoded=True)
            fields = {"ReferenceId": "A", "CallStatus": "ANSWERED", "CallDuration": "7"}
            fields |= {"SentResult": "1", "SendStatus": "5", "Price": "420", "Ivr": "", "CID": "1"}
            async with aiohttp.ClientSession() as http:
                for _ in range(2):
                    async with http.get(url.with_query(fields)) as answer:
                        assert answer.status == 200
            found = await exporter.until(lambda found: total(found, "esms_calls_total") == 1)
            assert total(found, "esms_calls_total", account="main", status="answered") == 1
            assert total(found, "esms_call_price_vnd_total", account="main") == 420
            assert total(found, "esms_callbacks_total", account="main") == 2
            assert "made-up" not in exporter.output


async def test_the_address_of_no_account(tmp_path: Path) -> None:
    config = configure(tmp_path, "http://127.0.0.1:1", "verify")
    for url in ("ftp://x", "http://[::1"):
        assert (await callback_url(config, f"--url={url}")).code == 2
    found = await callback_url(config, "--url=https://x.example.com", "--account=b")
    assert (found.code, found.output) == (1, "")
    assert "callback_token" in found.errors
    found = await callback_url(config, "--url=https://x.example.com/esms", "--account=main")
    assert found.output == (
        "https%3A%2F%2Fx.example.com%2Fesms%2Fcallback%2Fmain%2Fmade-up%252Fcallback-token\n"
    )
