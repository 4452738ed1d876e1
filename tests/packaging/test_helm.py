from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import exporter
from tests import subprocesses
from tests.packaging.manifests import (
    BASE,
    CHART,
    KUBERNETES,
    REPLICAS,
    SHARED,
    helm,
    kustomized,
    problem,
    templated,
)
from tests.programs import program

VALUES = """
image: {repository: images.example.com/esms-exporter, tag: "1"}
imagePullSecrets: [{name: pull}]
existingSecret: keys
extraArgs: [--web.config.file=/run/esms-exporter/web.yml]
scheme: https
env: [{name: ESMS_PROXY, value: none}]
envFrom: [{secretRef: {name: more}}]
persistence: {size: 10Gi, storageClassName: fast}
service: {port: 80, annotations: {a: b}}
serviceMonitor: {enabled: true, labels: {release: prometheus}}
prometheusRule: {enabled: true, labels: {release: prometheus}}
networkPolicy:
  egress: [{to: [{podSelector: {matchLabels: {app: db}}}], ports: [{protocol: TCP, port: 5432}]}]
podAnnotations: {a: b}
podLabels: {c: d}
nodeSelector: {disk: ssd}
tolerations: [{operator: Exists}]
affinity: {nodeAffinity: {}}
priorityClassName: high
podSecurityContext: {runAsUser: null, runAsGroup: null, fsGroup: null, seLinuxOptions: {level: s0}}
securityContext: {runAsUser: 7}
"""


def test_helm_finds_nothing_to_say() -> None:
    assert "[WARNING]" not in helm("lint", "--strict", str(CHART))


def test_the_chart_is_of_this_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == exporter.__version__


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


def test_every_value_arrives(tmp_path: Path) -> None:
    values = tmp_path / "values.yaml"
    values.write_text(VALUES)
    manifests = templated(f"--values={values}")
    for kind in manifests.keys() - {"ServiceMonitor", "PrometheusRule"}:
        assert problem(manifests[kind]) is None
    pod = manifests["StatefulSet"]["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    assert container["image"] == "images.example.com/esms-exporter:1"
    assert container["args"][-1] == "--web.config.file=/run/esms-exporter/web.yml"
    assert container["readinessProbe"]["httpGet"]["scheme"] == "HTTPS"
    assert container["env"] == [{"name": "ESMS_PROXY", "value": "none"}]
    assert container["envFrom"] == [{"secretRef": {"name": "more"}}]
    assert pod["metadata"]["annotations"] == {"a": "b"}
    assert pod["metadata"]["labels"]["c"] == "d"
    assert pod["spec"]["imagePullSecrets"] == [{"name": "pull"}]
    assert pod["spec"]["nodeSelector"] == {"disk": "ssd"}
    assert pod["spec"]["tolerations"] == [{"operator": "Exists"}]
    assert pod["spec"]["affinity"] == {"nodeAffinity": {}}
    assert pod["spec"]["priorityClassName"] == "high"
    context = {"runAsNonRoot": True, "fsGroupChangePolicy": "OnRootMismatch"}
    context["seccompProfile"] = {"type": "RuntimeDefault"}
    assert pod["spec"]["securityContext"] == {**context, "seLinuxOptions": {"level": "s0"}}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
        "runAsUser": 7,
    }
    assert pod["spec"]["volumes"][1]["secret"]["secretName"] == "keys"
    claim = manifests["StatefulSet"]["spec"]["volumeClaimTemplates"][0]["spec"]
    assert claim["storageClassName"] == "fast"
    assert claim["resources"]["requests"]["storage"] == "10Gi"
    assert manifests["Service"]["spec"]["ports"][0]["port"] == 80
    assert manifests["Service"]["metadata"]["annotations"] == {"a": "b"}
    assert manifests["NetworkPolicy"]["spec"]["egress"][-1]["ports"][0]["port"] == 5432
    for kind in ("ServiceMonitor", "PrometheusRule"):
        assert manifests[kind]["metadata"]["labels"]["release"] == "prometheus"
    assert manifests["ServiceMonitor"]["spec"]["endpoints"][0]["scheme"] == "https"


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


@pytest.mark.parametrize(
    "wrong",
    [
        'imagee.tag="1"',
        'image.pullPolicy="Sometimes"',
        "config.accounts=null",
        "config.accounts=[]",
        'persistence.size="much"',
        'scheme="ftp"',
        'routePrefix="/a b"',
        "service.port=0",
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
