"""The example of Alertmanager: its inhibition, and its templates in two languages."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import aiohttp
import pytest
import yaml

from tests import subprocesses
from tests.e2e.processes import Process
from tests.monitoring.rules import ALERTS, NAMES, ROOT
from tests.ports import free_port
from tests.programs import program
from tests.waiting import deadline

FOLDER = ROOT / "deploy" / "compose" / "alertmanager"
CONFIG = FOLDER / "alertmanager.yml"
DEBIAN = "apt-get install prometheus-alertmanager"

# Labels by which a cause and its symptom of the same name differ.
CAUSES = {"EsmsCallSuccessBudgetBurn": {"window": "1h"}}
SYMPTOMS = {
    "EsmsCallSuccessBudgetBurn": {"window": "3d"},
    "EsmsApiErrors": {"operation": "get_send_status"},
}

Labels = dict[str, str]


def amtool(*arguments: str | Path) -> str:
    shown = subprocesses.run(program("amtool", DEBIAN), *arguments)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    return shown.stdout


def test_alertmanager_takes_it_with_an_integration(tmp_path: Path) -> None:
    amtool("check-config", CONFIG)
    comment = re.search(r"such as\n#\n((?:#   .*\n)+)", CONFIG.read_text())
    assert comment
    (example,) = yaml.safe_load(re.sub("^# ", "", comment[1], flags=re.MULTILINE))
    config = yaml.safe_load(CONFIG.read_text())
    names = [receiver["name"] for receiver in config["receivers"]]
    assert example["name"] in names
    config["receivers"] = [example if name == example["name"] else {"name": name} for name in names]
    config["templates"] = [str(FOLDER / glob) for glob in config["templates"]]
    (tmp_path / "alertmanager.yml").write_text(yaml.safe_dump(config))
    amtool("check-config", tmp_path / "alertmanager.yml")


def inhibitions() -> dict[tuple[str, str], list[str]]:
    """Return the labels that a symptom has in common with its cause, by cause and symptom.

    Without the rows that only the rules can apply: alerts of all exporters have no `instance`.
    """
    page = (ROOT / "docs" / "alerts.md").read_text()
    rows = re.findall(r"^\| (Esms[^|]+) \| (Esms[^|]+) \| ([a-z, ]+) \|$", page, re.MULTILINE)
    without_instance = {rule["alert"] for rule in ALERTS if "without (instance" in rule["expr"]}
    return {
        (cause, symptom): same.replace("exporter", "instance").split(", ")
        for first, second, same in rows
        for cause in re.findall(r"Esms\w+", first)
        for symptom in re.findall(r"Esms\w+", second)
        if same != "exporter" or symptom not in without_instance
    }


def pair(cluster: str, cause: Labels, symptom: Labels) -> list[Labels]:
    """Return the labels of two alerts, which are the same where none are given."""
    names = ("namespace", "job", "instance", "source", "target", "account", "kind")
    labels = dict.fromkeys(names, "a") | {"cluster": cluster, "severity": "critical"}
    return [
        {**labels, "role": "cause", **CAUSES.get(cause["alertname"], {}), **cause},
        {**labels, "role": "symptom", **SYMPTOMS.get(symptom["alertname"], {}), **symptom},
    ]


async def test_it_inhibits_what_the_table_says(tmp_path: Path) -> None:
    expected = inhibitions()
    assert len(expected) > 40
    alerts = [
        labels
        for cause in NAMES
        for symptom in NAMES
        for labels in pair(f"{cause} {symptom}", {"alertname": cause}, {"alertname": symptom})
    ]
    for (cause, symptom), same in expected.items():
        for label in same:
            other = {"alertname": symptom, label: "b"}
            alerts += pair(f"{cause} {symptom}, another {label}", {"alertname": cause}, other)
    # Other exporters have taken over; canary calls use another host; a longer window is no cause.
    down = {"alertname": "EsmsExporterDown", "severity": "warning"}
    alerts += pair("only a warning", down, {"alertname": "EsmsCanaryNotPlaced"})
    messages = {"alertname": "EsmsApiErrors", "operation": "get_message_status"}
    alerts += pair("only messages", messages, {"alertname": "EsmsCanaryFailed"})
    burn = {"alertname": "EsmsCallSuccessBudgetBurn"}
    alerts += pair("a longer window", {**burn, "window": "3d"}, {**burn, "window": "6h"})
    cause, symptom = next(iter(expected))
    alerts += pair("last", {"alertname": cause}, {"alertname": symptom})
    port = free_port()
    url = f"http://127.0.0.1:{port}/api/v2/alerts"
    command = [
        program("prometheus-alertmanager", DEBIAN),
        *(f"--config.file={CONFIG}", f"--storage.path={tmp_path}", "--cluster.listen-address="),
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    async with (
        Process(command, tmp_path / "alertmanager.log") as process,
        aiohttp.ClientSession(raise_for_status=True) as http,
        deadline(),
    ):
        await process.says("Listening on")
        await http.post(url, json=[{"labels": labels} for labels in alerts])
        inhibited: list[str] = []
        while "last" not in inhibited:
            await asyncio.sleep(0.1)
            async with http.get(url, params={"filter": 'role="symptom"'}) as answer:
                found = await answer.json()
            inhibited = sorted(
                alert["labels"]["cluster"] for alert in found if alert["status"]["inhibitedBy"]
            )
    assert inhibited == sorted([*(f"{cause} {symptom}" for cause, symptom in expected), "last"])


DATA = """
status: firing
groupLabels: {alertname: EsmsCallsFailing, account: main}
alerts:
  - status: firing
    labels: {alertname: EsmsCallsFailing, severity: critical, job: esms, account: main}
    annotations:
      summary: Calls of account main fail.
      description: 45% of the calls were not delivered.
      runbook_url: https://example.com/EsmsCallsFailing.md
    startsAt: "2026-01-31T19:30:00Z"
  - status: resolved
    labels: {alertname: Mine, severity: info}
    annotations: {summary: An alert of mine.}
    startsAt: "2026-01-31T19:30:00Z"
"""
TEXTS = {
    "title.en": "FIRING 1: EsmsCallsFailing (account main)",
    "title.vi": "CẢNH BÁO 1: EsmsCallsFailing (tài khoản main)",
    "text.en": """[critical] Calls of account main fail.
45% of the calls were not delivered.
Since 2026-01-31 19:30 UTC
Runbook: https://example.com/EsmsCallsFailing.md

[resolved] An alert of mine.
""",
    "text.vi": """[nghiêm trọng] EsmsCallsFailing: quá nhiều cuộc gọi của tài khoản thất bại
account=main
Từ lúc 02:30 01/02/2026
Chi tiết: 45% of the calls were not delivered.
Hướng dẫn xử lý: https://example.com/EsmsCallsFailing.md

[đã hết] Mine: An alert of mine.
""",
}


@pytest.mark.parametrize("name", TEXTS)
def test_templates(name: str, tmp_path: Path) -> None:
    data = tmp_path / "data.json"
    data.write_text(json.dumps(yaml.safe_load(DATA)))
    shown = amtool(
        *("template", "render", f"--template.glob={FOLDER}/templates/*.tmpl"),
        f'--template.text={{{{ template "esms.{name}" . }}}}',
        f"--template.data={data}",
    )
    assert shown.strip() == TEXTS[name].strip()
