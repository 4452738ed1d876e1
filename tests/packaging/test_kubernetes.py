"""What is deployed to Kubernetes, as kustomize and Helm make it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import aiohttp
import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from yarl import URL

import exporter as package
from deploy.rules import written
from exporter.config import load_config
from monitoring.links import HOME
from tests import subprocesses
from tests.dashboards import FILES, read
from tests.e2e.processes import Exporter, configure
from tests.programs import every_prometheus, of_prometheus, program
from tests.subprocesses import ESMS_EXPORTER

DEPLOY = Path(__file__).parents[2] / "deploy"
BASE = DEPLOY / "kubernetes" / "base"
REPLICAS = DEPLOY / "kubernetes" / "replicas"
CHART = DEPLOY / "helm" / "esms-exporter"

# Whose schemas are used; Chart.yaml names the oldest that will do.
KUBERNETES = "1.34"

# What the chart is told, to be the same as the overlay.
SHARED = "--set=replicas.enabled=true,config.ledger.url_file=/run/esms-exporter/ledger.url"

Manifests = dict[str, dict[str, Any]]  # Any: documents, by their kind


@cache
def _ran(*command: str) -> str:
    shown = subprocesses.run(*command)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    return shown.stdout


def _by_kind(documents: Iterable[dict[str, Any]]) -> Manifests:
    documents = list(documents)
    found = {document["kind"]: document for document in documents}
    assert len(found) == len(documents)
    return found


def kustomized(folder: Path = BASE) -> Manifests:
    kustomize = program("kustomize", "go install sigs.k8s.io/kustomize/kustomize/v5")
    return _by_kind(yaml.safe_load_all(_ran(kustomize, "build", str(folder))))


def helm(*arguments: str) -> str:
    return _ran(program("helm", "go install helm.sh/helm/v3/cmd/helm"), *arguments)


def rendered(*options: str) -> list[dict[str, Any]]:
    version = f"--kube-version={KUBERNETES}"
    text = helm("template", "calls", str(CHART), version, *options)
    return [document for document in yaml.safe_load_all(text) if document]


def templated(*options: str) -> Manifests:
    return _by_kind(rendered("--skip-tests", *options))


def problem(document: dict[str, Any]) -> str | None:
    """Return what Kubernetes would refuse in a manifest, unknown keys among it."""
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return str(error)
    return None


EVERYTHING = ("--set=serviceMonitor.enabled=true,prometheusRule.enabled=true",)
OPERATOR = {"ServiceMonitor", "PrometheusRule"}
WORKLOADS = ("StatefulSet", "Deployment")
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


def workload(manifests: Manifests) -> Any:
    (kind,) = manifests.keys() & {*WORKLOADS}
    return manifests[kind]


def pod_of(manifests: Manifests) -> Any:
    return workload(manifests)["spec"]["template"]["spec"]


def container_of(manifests: Manifests) -> Any:
    (container,) = pod_of(manifests)["containers"]
    return container


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
    assert (
        folder
        == {mount["name"]: mount["mountPath"] for mount in container_of(several)["volumeMounts"]}[
            "keys"
        ]
    )
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


async def test_it_starts_as_the_pod_starts_it_and_is_probed_and_scraped(tmp_path: Path) -> None:
    one = made("kustomize")  # the chart says the same
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
        (endpoint,) = one["ServiceMonitor"]["spec"]["endpoints"]
        async with http.get(url + endpoint.get("path", "/metrics")) as answer:
            assert "esms_exporter_build_info" in await answer.text()


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


# The chart.

CASES = sorted((CHART / "ci").glob("*-values.yaml"))
# Their schemas are not those of Kubernetes.
CUSTOM = {*OPERATOR, "HTTPRoute"}

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)


def case_named(name: str) -> list[dict[str, Any]]:
    return rendered(f"--values={CHART}/ci/{name}-values.yaml")


def of_kind(kind: str, documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [document for document in documents if document["kind"] == kind]


@every_case
def test_kubernetes_takes_every_case(case: Path) -> None:
    values = f"--values={case}"
    assert "[WARNING]" not in helm("lint", "--strict", str(CHART), values)
    documents = rendered(values)
    named = {(document["kind"], document["metadata"]["name"]) for document in documents}
    assert len(named) == len(documents)
    for document in documents:
        assert document["kind"] in CUSTOM or problem(document) is None
    (service,) = of_kind("Service", documents)
    for document in of_kind("Ingress", documents):
        for path in (path for rule in document["spec"]["rules"] for path in rule["http"]["paths"]):
            assert path["backend"]["service"] == {
                "name": service["metadata"]["name"],
                "port": {"name": service["spec"]["ports"][0]["name"]},
            }


@every_case
def test_the_pods_of_every_case(case: Path) -> None:
    """The exporter's, and that of `helm test`, to which the Service must not lead."""
    documents = rendered(f"--values={case}")
    (running,) = (document for kind in WORKLOADS for document in of_kind(kind, documents))
    (test,) = of_kind("Pod", documents)
    (service,) = of_kind("Service", documents)
    assert test["metadata"]["annotations"]["helm.sh/hook"] == "test"
    selector = service["spec"]["selector"].items()
    assert selector <= running["spec"]["template"]["metadata"]["labels"].items()
    assert not selector <= test["metadata"]["labels"].items()
    pods = [running["spec"]["template"]["spec"], test["spec"]]
    containers = [container for pod in pods for container in pod["containers"]]
    assert len({container["image"] for container in containers}) == 1
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["automountServiceAccountToken"] is False
    for container in containers:
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["resources"]["limits"]["memory"]
    maps = {document["metadata"]["name"] for document in of_kind("ConfigMap", documents)}
    mounted = {
        volume["configMap"]["name"] for volume in pods[0]["volumes"] if "configMap" in volume
    }
    assert mounted <= maps


def test_only_the_callback_is_open_to_the_internet() -> None:
    documents = case_named("callback")
    (ingress,) = of_kind("Ingress", documents)
    (route,) = of_kind("HTTPRoute", documents)
    (rule,) = ingress["spec"]["rules"]
    assert rule["host"] == "exporter.example.com"
    assert [(path["path"], path["pathType"]) for path in rule["http"]["paths"]] == [
        ("/esms/callback/", "Prefix")
    ]
    assert ingress["spec"]["ingressClassName"] == "nginx"
    assert ingress["spec"]["tls"][0]["secretName"] == "exporter-tls"
    spec = route["spec"]
    assert spec["parentRefs"] == [{"name": "public", "namespace": "gateways"}]
    assert spec["hostnames"] == ["exporter.example.com"]
    prefix = {"path": {"type": "PathPrefix", "value": "/esms/callback/"}}
    assert [rule["matches"] for rule in spec["rules"]] == [[prefix]]
    (policy,) = of_kind("NetworkPolicy", documents)
    controller = {"kubernetes.io/metadata.name": "ingress-nginx"}
    clients = policy["spec"]["ingress"][0]["from"]
    assert len(clients) == 3
    assert clients[-1] == {"namespaceSelector": {"matchLabels": controller}}


def test_the_dashboards_are_those_of_monitoring() -> None:
    files = {path for path in written() if path.parent.name == "dashboards"}
    assert files == set((CHART / "files" / "dashboards").iterdir())
    found: dict[str, str] = {}
    for manifest in of_kind("ConfigMap", case_named("shared-ledger")):
        if manifest["metadata"]["labels"].get("grafana_dashboard") == "1":
            found |= manifest["data"]
    assert {name: json.loads(text) for name, text in found.items()} == {
        file.name: read(file) for file in FILES
    }


async def test_the_test_of_the_chart_finds_an_exporter(tmp_path: Path) -> None:
    (pod,) = of_kind("Pod", case_named("default"))
    (container,) = pod["spec"]["containers"]
    config = configure(tmp_path, "http://127.0.0.1:1")
    async with Exporter(config) as exporter:
        address = URL(await exporter.listening()).authority
        arguments = [
            argument.replace("calls-esms-exporter:10375", address) for argument in container["args"]
        ]
        assert arguments != container["args"]
        shown = await asyncio.to_thread(subprocesses.run, *ESMS_EXPORTER, *arguments)
        assert shown.stdout == "healthy\n"
    shown = await asyncio.to_thread(subprocesses.run, *ESMS_EXPORTER, *arguments)
    assert shown.returncode == 1


def test_the_schema_describes_every_value_and_no_other() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())

    def compare(values: dict[str, Any], schema: dict[str, Any]) -> None:
        assert schema["additionalProperties"] is False
        assert values.keys() == schema["properties"].keys()
        for name, value in schema["properties"].items():
            assert value["description"]
            if "properties" in value and name != "config":
                compare(values[name], value)

    compare({"global": {}, **values}, schema)


def test_the_chart_is_of_this_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == package.__version__
    assert chart["home"] == HOME


@pytest.mark.parametrize(
    ("folder", "options"), [(BASE, ()), (REPLICAS, (SHARED,))], ids=["one", "several"]
)
def test_the_chart_says_the_same_as_the_base(folder: Path, options: tuple[str, ...]) -> None:
    """Both are written by hand: where one is changed, so is the other."""
    ours, theirs = templated(*options), kustomized(folder)

    def bare(manifest: dict[str, Any]) -> str:
        spec = yaml.safe_load(yaml.safe_dump(manifest["spec"]))
        template = spec.get("template", {})
        for holder in (template.get("metadata", {}), spec.get("selector", {})):
            holder.pop("labels", None)
            holder.pop("matchLabels", None)
            holder.pop("app.kubernetes.io/instance", None)
        spec.get("podSelector", {}).pop("matchLabels", None)
        for spread in template.get("spec", {}).get("topologySpreadConstraints", ()):
            spread["labelSelector"].pop("matchLabels")
        for container in template.get("spec", {}).get("containers", ()):
            container.pop("imagePullPolicy", None)
            container.pop("image")
            for key in container:
                if key.endswith("Probe"):
                    container[key]["httpGet"].pop("scheme", None)
        return yaml.safe_dump(spec).replace("calls-esms-exporter", "esms-exporter")

    kinds = ours.keys() - {"ServiceAccount", "ConfigMap"}
    assert theirs.keys() - {"ServiceMonitor", "PrometheusRule"} == ours.keys()
    for kind in kinds:
        assert bare(ours[kind]) == bare(theirs[kind]), kind
    configs = [yaml.safe_load(m["ConfigMap"]["data"]["config.yaml"]) for m in (ours, theirs)]
    assert configs[0] == configs[1]


def test_every_value_arrives() -> None:
    documents = case_named("all")
    manifests = {document["kind"]: document for document in documents}
    pod = manifests["StatefulSet"]["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    assert manifests["StatefulSet"]["metadata"]["name"] == "calls"
    assert container["image"] == "images.example.com/esms-exporter:1"
    assert container["imagePullPolicy"] == "Always"
    assert container["args"][-1] == "--web.config.file=/run/esms-exporter/web.yml"
    assert container["readinessProbe"]["httpGet"]["scheme"] == "HTTPS"
    assert container["volumeMounts"][-1]["mountPath"] == "/etc/calls"
    assert container["resources"] == {
        "requests": {"cpu": "100m", "memory": "128Mi"},
        "limits": {"memory": "1Gi"},
    }
    assert pod["metadata"]["annotations"] == {"a": "b"}
    assert pod["metadata"]["labels"]["c"] == "d"
    assert pod["spec"]["serviceAccountName"] == "cloud"
    assert "ServiceAccount" not in manifests
    values = yaml.safe_load((CHART / "ci" / "all-values.yaml").read_text())
    of_pod = "terminationGracePeriodSeconds", "imagePullSecrets", "nodeSelector", "tolerations"
    for name in (*of_pod, "affinity", "priorityClassName"):
        assert pod["spec"][name] == values[name]
    for name in ("env", "envFrom"):
        assert container[name] == values[name]
    assert pod["spec"]["securityContext"]["seLinuxOptions"] == {"level": "s0"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
        "runAsUser": 7,
    }
    keys, calls = pod["spec"]["volumes"][1:]
    assert keys["secret"]["secretName"] == "keys"
    assert calls == {"name": "calls", "configMap": {"name": "calls-files"}}
    claim = manifests["StatefulSet"]["spec"]["volumeClaimTemplates"][0]["spec"]
    assert claim["storageClassName"] == "fast"
    assert claim["resources"]["requests"]["storage"] == "10Gi"
    assert manifests["Service"]["spec"]["ports"][0]["port"] == 80
    assert manifests["NetworkPolicy"]["spec"]["egress"][-1]["ports"][0]["port"] == 5432
    hosts = [rule["host"] for rule in manifests["Ingress"]["spec"]["rules"]]
    assert hosts == ["exporter.example.com", "*.example.com"]
    paths = manifests["Ingress"]["spec"]["rules"][1]["http"]["paths"]
    assert [path["path"] for path in paths] == ["/callback/", "/api/"]
    (rule,) = manifests["HTTPRoute"]["spec"]["rules"]
    assert rule["matches"][0]["path"]["value"] == "/callback/main/"
    assert rule["backendRefs"] == [{"name": "calls", "port": 80}]
    for kind in ("Service", "Ingress", "HTTPRoute"):
        assert manifests[kind]["metadata"]["annotations"] == {"a": "b"}
    (endpoint,) = manifests["ServiceMonitor"]["spec"]["endpoints"]
    assert endpoint == {
        "port": "http",
        "scheme": "https",
        "interval": "1m",
        "tlsConfig": {"insecureSkipVerify": True},
    }
    maps = {document["metadata"]["name"]: document for document in of_kind("ConfigMap", documents)}
    assert {"calls-files", "calls-text"} <= maps.keys()  # of `extraManifests`
    overview = maps["calls-overview"]["metadata"]
    assert "grafana_dashboard" not in overview["labels"]
    assert overview["labels"]["dashboards"] == "yes"
    assert overview["annotations"] == {"grafana_folder": "eSMS"}


def test_a_user_of_the_cluster_and_a_digest() -> None:
    documents = case_named("openshift")
    pod = of_kind("StatefulSet", documents)[0]["spec"]["template"]["spec"]
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    name, _, digest = pod["containers"][0]["image"].partition("@")
    assert name == f"images.example.com/esms-exporter:{package.__version__}"
    assert len(digest) == len("sha256:") + 64


def test_the_service_account_has_annotations() -> None:
    account = templated("--set=serviceAccount.annotations.role=reader")["ServiceAccount"]
    assert account["metadata"]["annotations"] == {"role": "reader"}


@pytest.mark.parametrize("prefix", ["esms", "/esms", "/esms/"])
def test_a_route_prefix_arrives_wherever_a_path_is_named(prefix: str) -> None:
    manifests = templated(f"--set=routePrefix={prefix}", "--set=serviceMonitor.enabled=true")
    (container,) = manifests["StatefulSet"]["spec"]["template"]["spec"]["containers"]
    assert "--web.route-prefix=/esms" in container["args"]
    probes = ("startupProbe", "livenessProbe", "readinessProbe")
    paths = [container[probe]["httpGet"]["path"] for probe in probes]
    assert paths == ["/esms/-/healthy", "/esms/-/healthy", "/esms/-/ready"]
    assert manifests["ServiceMonitor"]["spec"]["endpoints"][0]["path"] == "/esms/metrics"


def test_what_is_off_is_not_there() -> None:
    assert templated(SHARED, "--set=replicas.count=5")["Deployment"]["spec"]["replicas"] == 5
    manifests = templated("--set=networkPolicy.enabled=false")
    assert not {"ServiceMonitor", "PrometheusRule", "NetworkPolicy"} & manifests.keys()


def test_the_schema_takes_the_example_of_a_configuration(tmp_path: Path) -> None:
    config = yaml.safe_load((DEPLOY.parent / "config.example.yaml").read_text())
    config["polling"]["timeout"] = "${TIMEOUT}"
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump({"config": config}))
    map_of_it = templated(f"--values={values}")["ConfigMap"]
    assert yaml.safe_load(map_of_it["data"]["config.yaml"])["polling"] == config["polling"]


@pytest.mark.parametrize(
    "wrong",
    [
        'imagee.tag="1"',
        'image.pullPolicy="Sometimes"',
        "config.accounts=null",
        "config.accounts=[]",
        'config.wach={"labels": []}',
        'config.polling.interval="often"',
        'persistence.size="much"',
        'scheme="ftp"',
        'routePrefix="/a b"',
        "service.port=0",
        'image.digest="latest"',
        "ingress.enabled=true",
        'ingress.paths=["callback"]',
        "httpRoute.enabled=true",
        'serviceMonitor.endpoint={"interval": "1m"}',
        "dashboards.labels=null",
        "extraManifests=[1]",
        "terminationGracePeriodSeconds=0",
        "replicas.count=0",
        # Each would have a ledger of its own, in a pod that loses it.
        "replicas.enabled=true",
        'serviceMonitor.interval="often"',
        # That would let everybody in.
        "networkPolicy.from=null",
        "networkPolicy.from=[]",
        'extraArgs=["run"]',
        'resources.limits.memory="lots"',
    ],
)
def test_values_that_are_wrong_are_refused(wrong: str) -> None:
    path = program("helm", "go install helm.sh/helm/v3/cmd/helm")
    shown = subprocesses.run(
        *(path, "template", "calls", CHART),
        *(f"--kube-version={KUBERNETES}", f"--set-json={wrong}"),
    )
    assert shown.returncode == 1
    assert "don't meet the specifications of the schema" in shown.stderr
