"""What is deployed to Kubernetes, as kustomize and Helm make it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import yaml

from tests import subprocesses
from tests.programs import program

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


def _by_kind(text: str) -> Manifests:
    documents = [document for document in yaml.safe_load_all(text) if document]
    found = {document["kind"]: document for document in documents}
    assert len(found) == len(documents)
    return found


def kustomized(folder: Path = BASE) -> Manifests:
    kustomize = program("kustomize", "go install sigs.k8s.io/kustomize/kustomize/v5")
    return _by_kind(_ran(kustomize, "build", str(folder)))


def helm(*arguments: str) -> str:
    return _ran(program("helm", "go install helm.sh/helm/v3/cmd/helm"), *arguments)


def templated(*options: str) -> Manifests:
    version = f"--kube-version={KUBERNETES}"
    return _by_kind(helm("template", "calls", str(CHART), version, *options))


def problem(document: dict[str, Any]) -> str | None:
    """Return what Kubernetes would refuse in a manifest, unknown keys among it."""
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return str(error)
    return None
