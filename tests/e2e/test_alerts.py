"""Real Prometheus servers that scrape a real exporter, and what they alert on."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from exporter.simulator import Account, AccountState, Plan, Simulator
from tests.e2e.processes import Exporter, configure, listed
from tests.e2e.prometheus import every_kind
from tests.monitoring.rules import RULES

MAIN, HOTLINE = Account("main", "key-main", "s"), Account("hotline", "key-hotline", "s")
POLLING = {"interval": "500ms", "max_interval": "1s"}
FIRING = 'sum by (alertname, account, campaign, severity) (ALERTS{alertstate="firing"})'


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
