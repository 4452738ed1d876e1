from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from deploy.rules import written
from exporter.config import load_config
from tests import subprocesses
from tests.databases import Server
from tests.e2e.processes import Exporter, total
from tests.packaging.manifests import (
    BASE,
    REPLICAS,
    SHARED,
    Manifests,
    kustomized,
    problem,
    templated,
)
from tests.programs import every_prometheus, of_prometheus
from tests.waiting import deadline

EVERYTHING = ("--set=serviceMonitor.enabled=true,prometheusRule.enabled=true",)
OPERATOR = {"ServiceMonitor", "PrometheusRule"}
SECRET = yaml.safe_load((BASE / "secret.example.yaml").read_text())
SECRET_OF_REPLICAS = yaml.safe_load((REPLICAS / "secret.example.yaml").read_text())


def made(by: str) -> Manifests:
    maker, _, replicas = by.partition("-")
    if maker == "kustomize":
        return kustomized(REPLICAS if replicas else BASE)
    return templated(*EVERYTHING, *([SHARED] if replicas else []))


@pytest.fixture(params=["kustomize", "helm"])
def one(request: pytest.FixtureRequest) -> Manifests:
    """Return what makes one exporter with a volume."""
    return made(request.param)


@pytest.fixture(params=["kustomize-replicas", "helm-replicas"])
def several(request: pytest.FixtureRequest) -> Manifests:
    """Return what makes several exporters that share a ledger."""
    return made(request.param)


@pytest.fixture(params=["kustomize", "helm", "kustomize-replicas", "helm-replicas"])
def manifests(request: pytest.FixtureRequest) -> Manifests:
    return made(request.param)


def workload(manifests: Manifests) -> dict[str, Any]:
    (kind,) = manifests.keys() & {"StatefulSet", "Deployment"}
    return manifests[kind]


def pod_of(manifests: Manifests) -> dict[str, Any]:
    pod: dict[str, Any] = workload(manifests)["spec"]["template"]["spec"]
    return pod


def mounts_of(manifests: Manifests) -> list[dict[str, Any]]:
    mounts: list[dict[str, Any]] = container_of(manifests)["volumeMounts"]
    return mounts


def container_of(manifests: Manifests) -> dict[str, Any]:
    (container,) = pod_of(manifests)["containers"]
    found: dict[str, Any] = container
    return found


def test_kubernetes_knows_all_that_is_said(manifests: Manifests) -> None:
    several = {"Deployment", "PodDisruptionBudget"}
    assert manifests.keys() == OPERATOR | {"Service", "ServiceAccount", "ConfigMap"} | {
        "NetworkPolicy",
        *(several if "Deployment" in manifests else {"StatefulSet"}),
    }
    for kind in manifests.keys() - OPERATOR:
        assert problem(manifests[kind]) is None
    assert problem(SECRET) is None
    assert problem(SECRET_OF_REPLICAS) is None
    # The schemas do see what is wrong.
    container_of(manifests)["readyProbe"] = {}
    assert "readyProbe" in (problem(workload(manifests)) or "")


def test_the_pod_meets_the_restricted_standard(manifests: Manifests) -> None:
    pod, container = pod_of(manifests), container_of(manifests)
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65534,
        "runAsGroup": 65534,
        "fsGroup": 65534,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {key for volume in pod["volumes"] for key in volume} == {"name", "configMap", "secret"}
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & pod.keys()
    assert pod["automountServiceAccountToken"] is False
    assert manifests["ServiceAccount"]["automountServiceAccountToken"] is False
    assert {"cpu", "memory"} == container["resources"]["requests"].keys()
    assert "memory" in container["resources"]["limits"]


def test_one_exporter_at_a_time_has_the_ledger(one: Manifests) -> None:
    spec = one["StatefulSet"]["spec"]
    assert spec["replicas"] == 1
    (claim,) = spec["volumeClaimTemplates"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    (mount,) = (m for m in container_of(one)["volumeMounts"] if not m.get("readOnly"))
    # The image's working directory, where the ledger is by default.
    assert (mount["name"], mount["mountPath"]) == (claim["metadata"]["name"], "/data")
    assert one["Service"]["spec"]["publishNotReadyAddresses"]


def test_several_exporters_share_the_ledger(several: Manifests) -> None:
    spec = several["Deployment"]["spec"]
    assert spec.keys() == {"replicas", "selector", "strategy", "template"}
    assert spec["replicas"] == 3
    # Never fewer than that in a rollout, and one less at most while nodes are drained.
    assert spec["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
    }
    budget = several["PodDisruptionBudget"]["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["selector"] == spec["selector"]
    pod = pod_of(several)
    assert all(mount["readOnly"] for mount in container_of(several)["volumeMounts"])
    for spread in pod["topologySpreadConstraints"]:
        assert spread["labelSelector"] == spec["selector"]
        assert spread["whenUnsatisfiable"] == "ScheduleAnyway"
    # Whoever hands calls over is led to a pod that can take them.
    assert "publishNotReadyAddresses" not in several["Service"]["spec"]
    (database,) = (rule for rule in several["NetworkPolicy"]["spec"]["egress"] if "to" not in rule)
    assert database == {"ports": [{"protocol": "TCP", "port": 5432}]}
    config = yaml.safe_load(several["ConfigMap"]["data"]["config.yaml"])
    folder, _, name = config["ledger"]["url_file"].rpartition("/")
    assert folder == {m["name"]: m["mountPath"] for m in mounts_of(several)}["keys"]
    assert SECRET_OF_REPLICAS["stringData"].keys() == {name, *SECRET["stringData"]}
    assert SECRET_OF_REPLICAS["stringData"][name].startswith("postgresql://")


def test_everything_finds_the_pod(manifests: Manifests) -> None:
    spec, service = workload(manifests)["spec"], manifests["Service"]
    labels = spec["template"]["metadata"]["labels"].items()
    assert spec.get("serviceName") in {None, service["metadata"]["name"]}
    for selector in (
        spec["selector"]["matchLabels"],
        manifests["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        service["spec"]["selector"],
    ):
        assert selector
        assert selector.items() <= labels
    (port,) = container_of(manifests)["ports"]
    assert port == {"name": "http", "containerPort": 10375}
    (served,) = service["spec"]["ports"]
    assert (served["name"], served["port"], served["targetPort"]) == ("http", 10375, port["name"])
    (let_in,) = manifests["NetworkPolicy"]["spec"]["ingress"]
    assert let_in["ports"] == [{"protocol": "TCP", "port": port["name"]}]


def test_the_operator_is_told_what_to_scrape(manifests: Manifests) -> None:
    monitor, service = manifests["ServiceMonitor"], manifests["Service"]
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    spec = monitor["spec"]
    assert spec.keys() == {"selector", "jobLabel", "endpoints"}
    assert spec["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert service["metadata"]["labels"][spec["jobLabel"]] == "esms-exporter"
    (endpoint,) = spec["endpoints"]
    assert endpoint.keys() <= {"port", "interval", "scheme"}
    assert endpoint["port"] == service["spec"]["ports"][0]["name"]


@every_prometheus
def test_the_rules_are_those_of_monitoring(
    version: str, manifests: Manifests, tmp_path: Path
) -> None:
    for path, text in written().items():
        assert path.read_text() == text, "out of date: python -m deploy.rules"
    spec = manifests["PrometheusRule"]["spec"]
    (text,) = (text for path, text in written().items() if path.name == "rules.yaml")
    assert spec == yaml.safe_load(text)
    rules = tmp_path / "rules.yaml"
    rules.write_text(yaml.safe_dump(spec))
    promtool = of_prometheus("promtool", version)
    shown = subprocesses.run(promtool, "check", "rules", rules)
    assert shown.returncode == 0, shown.stdout + shown.stderr


def test_the_drain_fits_and_the_configuration_is_good(manifests: Manifests, tmp_path: Path) -> None:
    config = load_config(mounted(manifests, tmp_path))
    assert pod_of(manifests)["terminationGracePeriodSeconds"] >= config.shutdown_timeout + 10


async def test_it_starts_as_the_pod_starts_it_and_answers_the_probes(tmp_path: Path) -> None:
    one = made("kustomize")
    container = container_of(one)
    config = mounted(one, tmp_path)
    with config.open("a") as file:
        file.write(f"ledger: {{url: 'sqlite:///{tmp_path}/ledger.db'}}\nbalance: {{interval: 0}}\n")
    first, *options = container["args"]
    assert first == "--config.file=/etc/esms-exporter/config.yaml"
    async with Exporter(config, *options) as exporter, aiohttp.ClientSession() as http:
        url = await exporter.ready()
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            asked = container[probe]["httpGet"]
            assert asked["port"] == container["ports"][0]["name"]
            async with http.get(url + asked["path"]) as answer:
                assert answer.status == 200, asked


async def until_good(url: str) -> None:
    """Ask until the answer is 200: on a busy machine a heartbeat may be late."""
    async with deadline(), aiohttp.ClientSession() as http:
        while True:
            async with http.get(url) as answer:
                if answer.status == 200:
                    return
            await asyncio.sleep(0.1)


async def test_several_start_as_the_pods_start_and_find_each_other(
    database: str, tmp_path: Path
) -> None:
    several = made("kustomize-replicas")
    container = container_of(several)
    configs = []
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        configs.append(mounted(several, folder))
        with configs[-1].open("a") as file:
            file.write("balance: {interval: 0}\n")
        url = folder / "keys" / "ledger.url"
        url.chmod(0o600)
        url.write_text(database)
    options = container["args"][1:]
    async with Exporter(configs[0], *options) as first, Exporter(configs[1], *options) as second:
        for exporter in (first, second):
            url_of_it = await exporter.ready()
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                await until_good(url_of_it + container[probe]["httpGet"]["path"])
        for exporter in (first, second):
            await exporter.until(lambda found: total(found, "esms_replicas") == 2)


@pytest.fixture
def database(server: Server) -> Iterator[str]:
    """Return the URL of a database that is empty, as a Secret would say it."""
    with server.database() as url:
        yield url.replace("postgresql+psycopg:", "postgresql:")


def mounted(manifests: Manifests, folder: Path) -> Path:
    """Lay the files out as the pod's volumes do; return the configuration."""
    pod, container = pod_of(manifests), container_of(manifests)
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    names = {v["name"]: v.get("configMap", {}).get("name") for v in pod["volumes"]}
    assert names["config"] == manifests["ConfigMap"]["metadata"]["name"]
    assert mounts["config"]["mountPath"] == "/etc/esms-exporter"
    (secret,) = (volume["secret"] for volume in pod["volumes"] if "secret" in volume)
    assert secret["defaultMode"] == 0o400
    assert mounts["keys"]["readOnly"]
    keys = folder / "keys"
    keys.mkdir()
    secrets = SECRET_OF_REPLICAS if "Deployment" in manifests else SECRET
    for name, value in secrets["stringData"].items():
        (keys / name).write_text(value)
        (keys / name).chmod(0o400)
    text = manifests["ConfigMap"]["data"]["config.yaml"]
    config = folder / "config.yaml"
    config.write_text(text.replace(mounts["keys"]["mountPath"] + "/", f"{keys}/"))
    return config
