from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import aiohttp
import trustme

from exporter.simulator import Account, AccountState, Plan, Simulator
from tests import subprocesses
from tests.e2e.processes import Exporter, total
from tests.e2e.prometheus import Prometheus, every_kind
from tests.programs import every_prometheus, of_prometheus

ACCOUNTS = (
    Account("main", "key-main", "s"),
    Account("hotline", "key-hotline", "s"),
    Account("refused", "key-refused", "s", state=AccountState.REVOKED),
)
CALLS = {
    "otp": [Plan(queued=0.3, duration=seconds) for seconds in (4, 9, 13, 31)]
    + [Plan(duration=0, call_status="NO ANSWER") for _ in range(3)],
    "reminder": [Plan(unknown_for=0.5, duration=700, ivr="1"), Plan(rejected=True)]
    + [Plan(duration=0, call_status="", sent_result=0) for _ in range(2)],
}


def configure(folder: Path, simulator: Simulator) -> Path:
    accounts = "".join(
        f"  - {{name: {account.name}, api_key: {account.api_key}, secret_key: s, "
        f"base_url: '{simulator.url}'}}\n"
        for account in ACCOUNTS
    )
    calls = ""
    for account in ACCOUNTS:
        for campaign, plans in CALLS.items():
            for number, plan in enumerate(plans):
                name = f"{account.name}-{campaign}-{number}"
                simulator.add_call(account.name, name, plan)
                calls += (
                    f"    - {{reference_id: {name}, account: {account.name}, "
                    f"labels: {{campaign: {campaign}}}}}\n"
                )
    config = folder / "config.yaml"
    config.write_text(
        f"accounts:\n{accounts}polling: {{interval: 500ms, max_interval: 1s}}\n"
        "balance: {interval: 0}\n"
        f"ledger: {{url: 'sqlite:///{folder}/ledger.db'}}\n"
        f"watch:\n  labels: [campaign]\n  calls:\n{calls}"
    )
    return config


async def test_prometheus_sees_what_became_of_the_calls(tmp_path: Path) -> None:
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    trusted = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(trusted))
    async with Simulator(accounts=ACCOUNTS, ssl_context=server) as simulator:
        assert simulator.url.startswith("https://")
        environ = {"SSL_CERT_FILE": str(trusted)}
        async with Exporter(configure(tmp_path, simulator), environ=environ) as exporter:
            target = (await exporter.ready()).removeprefix("http://")
            async with every_kind(tmp_path, target) as servers:
                for prometheus in servers:
                    await sees_what_became_of_the_calls(prometheus, target)


async def sees_what_became_of_the_calls(prometheus: Prometheus, target: str) -> None:
    await prometheus.until("sum(esms_calls_total)", lambda found: found == {(): 22.0})
    query = prometheus.query
    assert await query("up") == {("up", target, "esms"): 1.0}
    assert await query("sum by (account, result, status) (esms_calls_total) > 0") == {
        ending: count
        for account in ("main", "hotline")
        for ending, count in {
            (account, "success", "answered"): 5.0,
            (account, "success", "no_answer"): 3.0,
            (account, "failure", "rejected"): 1.0,
            (account, "failure", "none"): 2.0,
        }.items()
    }
    duration = "esms_call_duration_seconds"
    assert await query(f"sum by (campaign) ({duration}_sum or histogram_sum({duration}))") == {
        (): 0.0,  # the series without labels, which are there from the start
        ("otp",): 2.0 * (4 + 9 + 13 + 31),
        ("reminder",): 2.0 * 700,
    }
    assert await query(f"sum by (campaign) ({duration}_count or histogram_count({duration}))") == {
        (): 0.0,  # the series without labels, which are there from the start
        ("otp",): 8.0,
        ("reminder",): 2.0,
    }
    assert await query(
        f'sum({duration}_bucket{{le="10.0"}}'
        f" or histogram_fraction(0, 10, {duration}) * (histogram_count({duration}) > 0))"
    ) == {(): 4.0}
    assert await query('sum(esms_call_keypresses_total{key="1"})') == {(): 2.0}
    # Wrong keys cost two requests and one half a minute later, however many calls are watched.
    refused = await query("sum by (account, code) (esms_auth_failures_total) > 0")
    assert refused.keys() == {("refused", "101")}
    assert 2 <= max(refused.values()) <= 4
    assert await query("esms_account_authorized == 0") == {
        ("esms_account_authorized", "refused", target, "esms"): 0.0
    }
    assert await query('sum by (account) (esms_calls_watched{account="refused"})') == {
        ("refused",): 11.0
    }
    assert await query('sum(esms_calls_total{status="answered"}) / sum(esms_calls_total)') == {
        (): 10 / 22
    }
    assert (await query("esms_account_paused_until_timestamp_seconds > time()")).keys() == {
        ("esms_account_paused_until_timestamp_seconds", "refused", target, "esms")
    }


@every_prometheus
async def test_promtool_has_nothing_to_say(version: str, tmp_path: Path) -> None:
    promtool = of_prometheus("promtool", version)
    async with (
        Simulator(accounts=ACCOUNTS) as simulator,
        Exporter(configure(tmp_path, simulator)) as exporter,
    ):
        await exporter.ready()
        await exporter.until(lambda samples: total(samples, "esms_calls_total") == 22)
        async with aiohttp.ClientSession() as http, http.get(exporter.url + "/metrics") as got:
            text = await got.text()
    checked = await asyncio.to_thread(subprocesses.run, promtool, "check", "metrics", input=text)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
