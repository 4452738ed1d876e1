from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from exporter.config import Config, load_config
from tests import subprocesses
from tests.e2e.processes import Demo, Exporter, Process, total
from tests.ports import free_port
from tests.programs import of_prometheus, program
from tests.waiting import deadline

FOLDER = Path(__file__).parents[2] / "deploy" / "compose"

_VARIABLE = re.compile(r"\$\{(\w+)(?::(-|\?)([^}]*))?\}")


def variables(file: str) -> dict[str, str]:
    """Return what a file such as `demo.env` sets."""
    lines = (FOLDER / file).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def project(environ: Mapping[str, str]) -> dict[str, Any]:  # Any: it is a document
    """Return the project; the loader refuses what the specification does not know.

    Raises:
        KeyError: a variable that has to be there is not.
    """

    def value(found: re.Match[str]) -> str:
        name, sign, default = found.groups()
        return environ.get(name) or (default if sign == "-" else environ[name])

    text = _VARIABLE.sub(value, (FOLDER / "compose.yaml").read_text())
    loader = program(
        "compose-spec",
        "go install github.com/compose-spec/compose-go/v2/cmd, and name it compose-spec",
    )
    shown = subprocesses.run(
        loader, "-no-path-resolution", "-format=json", "/dev/stdin", input=text
    )
    assert shown.returncode == 0, shown.stderr
    document: dict[str, Any] = json.loads(shown.stdout)
    return document


DEMO = variables("demo.env")


def mounts(service: dict[str, Any]) -> dict[str, Path]:
    """Return the folders of this repository that a service sees, by where it sees them."""
    return {
        volume["target"]: FOLDER / volume["source"]
        for volume in service["volumes"]
        if volume["type"] == "bind"
    }


def inside(service: dict[str, Any], path: str) -> Path:
    """Return the file of this repository that a service sees at a path."""
    target = max((t for t in mounts(service) if path.startswith(t)), key=len)
    return mounts(service)[target] / path.removeprefix(target).lstrip("/")


def option(service: dict[str, Any], name: str) -> str:
    (value,) = (o.partition("=")[2] for o in service["command"] if o.startswith(f"{name}="))
    return str(value)


def test_the_files_of_variables_set_what_has_to_be_set() -> None:
    needed = set(re.findall(r"\$\{(\w+):\?", (FOLDER / "compose.yaml").read_text()))
    assert variables("example.env").keys() == needed
    assert DEMO.keys() == needed | {"COMPOSE_PROFILES", "ESMS_BASE_URL", "ESMS_BALANCE_URL"}
    services = project(DEMO)["services"]
    profiles = {profile for s in services.values() for profile in s.get("profiles", ())}
    assert profiles == {DEMO["COMPOSE_PROFILES"]}


def test_every_service_is_confined_and_sees_folders_that_exist() -> None:
    services = project(DEMO)["services"]
    assert {"exporter", "prometheus", "alertmanager", "grafana", "simulator"} <= services.keys()
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        # What is not for others is published on the machine itself alone.
        assert all(port["host_ip"] == "127.0.0.1" for port in service.get("ports", ())), name
        binds = [v for v in service.get("volumes", ()) if v["type"] == "bind"]
        assert all(v["read_only"] for v in binds), name
        for volume in binds:
            assert (FOLDER / volume["source"]).is_dir(), volume["source"]


def test_hosts_that_files_name_are_services() -> None:
    services = project(DEMO)["services"]
    files = ["prometheus/prometheus.yml", "grafana/datasources/prometheus.yaml", "demo.env"]
    text = "".join((FOLDER / file).read_text() for file in files)
    found = re.findall(r"(?:http://|targets: \[)([\w-]+):(\d+)", text)
    assert len(found) >= 5
    hosts = {host for host, _ in found} - {"localhost"}
    assert hosts <= services.keys()


def test_alertmanager_takes_its_configuration() -> None:
    service = project(DEMO)["services"]["alertmanager"]
    config = inside(service, option(service, "--config.file"))
    amtool = program("amtool", "apt-get install prometheus-alertmanager")
    for severity, receiver in (
        ("critical", "on-call"),
        ("warning", "team"),
        ("info", "none"),
    ):
        shown = subprocesses.run(
            *(amtool, "config", "routes", "test", f"--config.file={config}"),
            *(f"--verify.receivers={receiver}", f"severity={severity}"),
        )
        assert shown.returncode == 0, shown.stdout + shown.stderr


def test_grafana_looks_where_the_dashboards_are() -> None:
    service = project(DEMO)["services"]["grafana"]
    file = inside(service, "/etc/grafana/provisioning/dashboards/esms.yaml")
    provider = yaml.safe_load(file.read_text())
    path = provider["providers"][0]["options"]["path"]
    assert mounts(service)[path] == FOLDER / "../../monitoring/dashboards"


def configuration(monkeypatch: pytest.MonkeyPatch) -> Config:
    service = project(DEMO)["services"]["exporter"]
    for name, value in service["environment"].items():
        monkeypatch.setenv(name, value)
    return load_config(inside(service, "/etc/esms-exporter/config.yaml"))


def test_exemplars_lead_from_grafana_to_the_exporter(monkeypatch: pytest.MonkeyPatch) -> None:
    services = project(DEMO)["services"]
    assert configuration(monkeypatch).metrics.exemplars
    assert option(services["prometheus"], "--enable-feature") == "exemplar-storage"
    file = inside(services["grafana"], "/etc/grafana/provisioning/datasources/prometheus.yaml")
    (source,) = yaml.safe_load(file.read_text())["datasources"]
    (link,) = source["jsonData"]["exemplarTraceIdDestinations"]
    assert link["name"] == "reference_id"
    (port,) = services["exporter"]["ports"]
    assert link["url"].startswith(f"http://localhost:{port['published']}/calls/$${{")


def test_the_exporter_has_the_time_to_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    service = project(DEMO)["services"]["exporter"]
    config = configuration(monkeypatch)
    grace = float(service["stop_grace_period"].removesuffix("s"))
    assert grace >= config.shutdown_timeout + 5


async def test_the_demo_counts_calls(tmp_path: Path) -> None:
    services = project(DEMO)["services"]
    simulator = Process(
        [
            *(sys.executable, "-m", "exporter"),
            *(o.replace("=:10376", "=127.0.0.1:0") for o in services["simulator"]["command"]),
        ],
        tmp_path / "simulator.log",
    )
    config = tmp_path / "config.yaml"
    config.write_text(
        inside(services["exporter"], "/etc/esms-exporter/config.yaml").read_text()
        + f"ledger: {{url: 'sqlite:///{tmp_path}/ledger.db'}}\npolling: {{interval: 1s}}\n"
        "balance: {interval: 1s}\n"
    )
    async with simulator:
        url = (await simulator.says(r"(http://127\.0\.0\.1:\d+)"))[1]
        environ = services["exporter"]["environment"]
        for name in ("ESMS_BASE_URL", "ESMS_BALANCE_URL"):
            environ[name] = environ[name].replace("http://simulator:10376", url)
        async with Exporter(config, environ=environ) as exporter:
            environ = services["caller"]["environment"]
            environ |= {"ESMS_EXPORTER_URL": await exporter.ready()}
            python, script = services["caller"]["entrypoint"]
            assert python == "python"
            command = [sys.executable, str(inside(services["caller"], script))]
            async with Process(command, tmp_path / "caller.log", environ) as caller:
                # Calls are of random campaigns.
                await exporter.until(lambda s: total(s, "esms_calls_total", campaign="otp") > 1)
                await exporter.until(lambda s: total(s, "esms_account_balance_vnd") > 0)
                assert caller.output == ""


async def test_an_alert_reaches_the_receiver(tmp_path: Path) -> None:
    """An account with refused keys, Prometheus and Alertmanager, with the files of Compose."""
    services = project(DEMO)["services"]
    prometheus, alertmanager = (f"127.0.0.1:{free_port()}" for _ in range(2))

    def service(name: str, path: str, address: str, folder: Path) -> Process:
        options = (o.replace(f"=/etc/{name}/", f"={folder}/") for o in services[name]["command"])
        command = [path, *(o.replace(f"=/{name}", f"={tmp_path}/{name}") for o in options)]
        return Process([*command, f"--web.listen-address={address}"], tmp_path / f"{name}.log")

    async with Demo(tmp_path) as exporter:
        text = (FOLDER / "prometheus" / "prometheus.yml").read_text()
        for shipped, here in {
            "15s": "1s",
            "/etc/esms-rules": str(mounts(services["prometheus"])["/etc/esms-rules"]),
            "exporter:10375": (await exporter.ready()).removeprefix("http://"),
            "localhost:9090": prometheus,
            "alertmanager:9093": alertmanager,
        }.items():
            assert shipped in text
            text = text.replace(shipped, here)
        (tmp_path / "prometheus.yml").write_text(text)
        path = program("prometheus-alertmanager", "apt-get install prometheus-alertmanager")
        async with (
            service("alertmanager", path, alertmanager, FOLDER / "alertmanager") as receiving,
            service("prometheus", of_prometheus("prometheus", "3"), prometheus, tmp_path),
            aiohttp.ClientSession(f"http://{alertmanager}", raise_for_status=True) as http,
            deadline(),
        ):
            await receiving.says("Listening on")
            alerts: list[Any] = []
            while not alerts:
                await asyncio.sleep(0.2)
                only = {"filter": 'alertname="EsmsCredentialsRefused"'}
                async with http.get("/api/v2/alerts", params=only) as answer:
                    alerts = await answer.json()
    (alert,) = alerts
    assert alert["labels"]["account"] == "old-keys"
    assert alert["receivers"] == [{"name": "on-call"}]
