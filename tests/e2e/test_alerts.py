"""Real Prometheus servers that scrape a real exporter: what they see, and what they alert on."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import aiohttp
import trustme

from exporter.simulator import Account, AccountState, Plan, Simulator
from tests import subprocesses
from tests.e2e.processes import Exporter, configure, listed
from tests.e2e.prometheus import Prometheus, every_kind
from tests.monitoring.rules import RULES
from tests.programs import PROMETHEUS, of_prometheus

MAIN, HOTLINE = Account("main", "key-main", "s"), Account("hotline", "key-hotline", "s")
REFUSED = Account("refused", "key-refused", "s", state=AccountState.REVOKED)
PLANS = {
    "otp": [Plan(queued=0.3, duration=seconds) for seconds in (4, 9, 13, 31)]
    + [Plan(duration=0, call_status="NO ANSWER") for _ in range(3)],
    "reminder": [Plan(unknown_for=0.5, duration=700, ivr="1"), Plan(rejected=True)]
    + [Plan(duration=0, call_status="", sent_result=0) for _ in range(2)],
}
POLLING = {"interval": "500ms", "max_interval": "1s"}
FIRING = 'sum by (alertname, account, campaign, severity) (ALERTS{alertstate="firing"})'
DURATION = "esms_call_duration_seconds"


def seen(target: str) -> Mapping[str, dict[tuple[str, ...], float]]:
    """Return queries, and what they find of these calls of two accounts out of three."""
    endings = {"answered": 5.0, "no_answer": 3.0, "rejected": 1.0, "none": 2.0}
    return {
        "up": {("up", target, "esms"): 1.0},
        "sum by (account, status) (esms_calls_total) > 0": {
            (account, status): count
            for account in ("main", "hotline")
            for status, count in endings.items()
        },
        # Those without labels are there from the start.
        f"sum by (campaign) ({DURATION}_sum or histogram_sum({DURATION}))": {
            (): 0.0,
            ("otp",): 2.0 * (4 + 9 + 13 + 31),
            ("reminder",): 2.0 * 700,
        },
        f"sum by (campaign) ({DURATION}_count or histogram_count({DURATION}))": {
            (): 0.0,
            ("otp",): 8.0,
            ("reminder",): 2.0,
        },
        f'sum({DURATION}_bucket{{le="10.0"}}'
        f" or histogram_fraction(0, 10, {DURATION}) * (histogram_count({DURATION}) > 0))": {
            (): 4.0
        },
        'sum(esms_call_keypresses_total{key="1"})': {(): 2.0},
        "esms_account_authorized == 0": {
            ("esms_account_authorized", "refused", target, "esms"): 0.0
        },
        'sum by (account) (esms_calls_watched{account="refused"})': {("refused",): 11.0},
        'sum(esms_calls_total{status="answered"}) / sum(esms_calls_total)': {(): 10 / 22},
    }


async def test_prometheus_sees_what_became_of_the_calls(tmp_path: Path) -> None:
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    trusted = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(trusted))
    accounts = (MAIN, HOTLINE, REFUSED)
    async with Simulator(accounts=accounts, ssl_context=server) as simulator:
        calls = []
        for account in accounts:
            for campaign, plans in PLANS.items():
                for number, plan in enumerate(plans):
                    name = f"{account.name}-{campaign}-{number}"
                    simulator.add_call(account.name, name, plan)
                    calls.append(listed(name, account.name, campaign=campaign))
        config = configure(tmp_path, simulator, calls, polling=POLLING)
        async with Exporter(config, environ={"SSL_CERT_FILE": str(trusted)}) as exporter:
            target = (await exporter.ready()).removeprefix("http://")
            async with every_kind(tmp_path, target) as servers:
                for prometheus in servers:
                    await sees_what_became_of_the_calls(prometheus, target)
            async with aiohttp.ClientSession() as http, http.get(f"{exporter.url}/metrics") as got:
                text = await got.text()
    for version in PROMETHEUS:
        command = (of_prometheus("promtool", version), "check", "metrics")
        checked = await asyncio.to_thread(subprocesses.run, *command, input=text)
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", ""), version


async def sees_what_became_of_the_calls(prometheus: Prometheus, target: str) -> None:
    await prometheus.until("sum(esms_calls_total)", lambda found: found == {(): 22.0})
    for query, expected in seen(target).items():
        assert await prometheus.query(query) == expected, query
    # Wrong keys cost two requests and one half a minute later, however many calls are watched.
    refused = await prometheus.query("sum by (account, code) (esms_auth_failures_total) > 0")
    assert refused.keys() == {("refused", "101")}
    assert 2 <= max(refused.values()) <= 4
    paused = "esms_account_paused_until_timestamp_seconds"
    assert (await prometheus.query(f"{paused} > time()")).keys() == {
        (paused, "refused", target, "esms")
    }


def documented_queries() -> list[str]:
    """Return the queries that the pages on alerts advise."""
    docs = RULES[0].parents[2] / "docs"
    text = "\n".join(page.read_text() for page in (*docs.glob("runbooks/*.md"), docs / "alerts.md"))
    blocks = re.findall(r"^```promql\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    inline = re.findall(r"(?<!`)`((?:sum|histogram_quantile|account\w*:)[^`]*)`", text)
    assert blocks
    assert len(inline) > 20
    return blocks + inline


async def test_alerts_fire_where_there_is_trouble(tmp_path: Path) -> None:
    """A revoked account and failing calls, each told of within seconds; and nothing else."""
    async with Simulator(accounts=(MAIN, HOTLINE)) as simulator:
        calls = [listed(f"waits-{name}", name, campaign="otp") for name in ("main", "hotline")]
        for name in ("main", "hotline"):
            simulator.add_call(name, f"waits-{name}", Plan(queued=600))
        limits = {"rate_limit": 200}
        config = configure(tmp_path, simulator, calls, account=limits, polling=POLLING)
        async with Exporter(config) as exporter:
            target = (await exporter.ready()).removeprefix("http://")
            async with every_kind(tmp_path, target, rules=RULES) as servers:

                async def on_each(
                    expression: str, holds: Callable[[dict[tuple[str, ...], float]], bool]
                ) -> None:
                    for prometheus in servers:
                        await prometheus.until(expression, holds)

                await on_each(
                    "sum by (account) (esms_account_authorized) "
                    "and on () global:esms_call_success:objective",
                    lambda found: found == {("main",): 1.0, ("hotline",): 1.0},
                )
                await on_each("ALERTS", lambda found: not found)

                simulator.put_account(replace(HOTLINE, state=AccountState.REVOKED))
                refused = ("hotline", "EsmsCredentialsRefused", "critical")
                await on_each(FIRING, lambda found: found.keys() == {refused})

                # Enough of them to be taken seriously.
                for number in range(30):
                    name = f"fails-{number}"
                    simulator.add_call("main", name, Plan(call_status="", sent_result=0))
                    calls.append(listed(name, campaign="otp"))
                configure(tmp_path, simulator, calls, account=limits, polling=POLLING)
                failing = ("main", "EsmsCallsFailing", "critical")
                await on_each(FIRING, lambda found: found.keys() == {refused, failing})
                for prometheus in servers:
                    query = prometheus.query
                    assert await query("account:esms_calls_success:ratio_increase30m") == {
                        ("account:esms_calls_success:ratio_increase30m", "main", "esms"): 0.0
                    }
                    kept = 'account_labels:esms_calls_success:ratio_increase30m{campaign="otp"}'
                    assert await query(f"sum by (account, campaign) ({kept})") == {
                        ("main", "otp"): 0.0
                    }
                    for rule in await prometheus.rules():
                        assert not rule.get("lastError"), rule
                    for documented in documented_queries():
                        await query(documented)

                # What fires stays while the exporter is away for a moment.
                await exporter.kill()
                await on_each(
                    "count_over_time((up == 0)[10s:1s])",
                    lambda found: max(found.values(), default=0) >= 3,
                )
                await on_each(FIRING, lambda found: found.keys() >= {refused, failing})
