"""The README of the Helm chart and the descriptions in its schema, from `values.yaml`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from exporter.config import json_schema
from monitoring.links import HOME
from tools.reference.markdown import NOTE, code, table

_CHART: Final = Path(__file__).parents[2] / "deploy" / "helm" / "esms-exporter"
_VALUES: Final = _CHART / "values.yaml"
_SCHEMA: Final = _CHART / "values.schema.json"
_LONGEST_DEFAULT: Final = 60
_INTRODUCTION: Final = f"""# esms-exporter

This chart is for operators of Kubernetes. It runs [esms-exporter]({HOME}), a Prometheus
exporter for calls and messages sent through eSMS: one pod with a volume, or several pods that share
a ledger on PostgreSQL. [Deployment]({HOME}/docs/deployment.md#kubernetes) explains both.

## Prerequisites

- Kubernetes 1.29 or newer, and Helm 3.
- The image in a registry that the cluster can reach.
- A Secret with the keys. Its name is that of the release's objects, or `existingSecret`:

```console
$ kubectl --namespace calls create secret generic esms-exporter \\
    --from-file=main.api_key --from-file=main.secret_key --from-file=dialler.token
```

## Install, test, upgrade, uninstall

```console
$ helm install esms-exporter deploy/helm/esms-exporter --namespace calls --values values.yaml
$ helm test esms-exporter --namespace calls
$ helm upgrade esms-exporter deploy/helm/esms-exporter --namespace calls --values values.yaml
$ helm uninstall esms-exporter --namespace calls
```

`helm test` starts a pod that connects to the Service. `helm uninstall` keeps the volume with the
ledger.

## The provider's callback

[Callbacks]({HOME}/docs/sources.md#the-providers-callback) come from the internet. `ingress` and
`httpRoute` route only `/callback/` to the exporter. The metrics, the status page and the API stay
inside the cluster, unless you add their paths to `paths`. The NetworkPolicy has to allow the
controller as well:

```yaml
ingress:
  enabled: true
  hosts: [exporter.example.com]
  tls:
    - secretName: exporter-tls
      hosts: [exporter.example.com]
networkPolicy:
  extraFrom:
    - namespaceSelector:
        matchLabels:
          kubernetes.io/metadata.name: ingress-nginx
```

The path of a callback contains the account's token: keep it out of the controller's log.

## Values

Unknown and invalid values are refused. The directory `ci` of the chart's source has examples.

"""


@dataclass(frozen=True, slots=True)
class Value:
    """A value of the chart.

    Attributes:
        path: its keys, from the outermost.
        description: the comment above it.
        default: the default in JSON; None for a section, whose values follow.
    """

    path: tuple[str, ...]
    description: str
    default: str | None


def page() -> str:
    """Return the chart's README."""
    rows = (
        (code(".".join(value.path)), _shown(value.default), value.description)
        for value in values(_VALUES.read_text(), _schema())
    )
    note = NOTE.format(source="values.yaml")
    return f"{note}{_INTRODUCTION}{table(('key', 'default', 'meaning'), rows)}"


def schema() -> str:
    """Return the chart's schema with descriptions, and with that of the configuration."""
    written = _schema()
    # Helm uses the regular expressions of Go: no lookahead, and at most 1000 repetitions.
    text = json.dumps(json_schema()).replace("(?=[0-9])", "")
    config = json.loads(re.sub(r"\{(\d+),\d{4,}\}", r"{\1,}", text))
    written["$defs"] = config["$defs"]
    written["properties"]["config"] = {
        key: config[key] for key in ("type", "properties", "required", "additionalProperties")
    }
    for value in values(_VALUES.read_text(), written):
        found = written
        for key in value.path:
            found = found["properties"][key]
        found["description"] = value.description
    return json.dumps(written, indent=2, ensure_ascii=False) + "\n"


def values(text: str, schema: dict[str, Any]) -> Iterator[Value]:
    """Yield the values of a file, each section before the values in it.

    Raises:
        LookupError: a value has no comment above it, or is not in the schema.
    """
    yield from _below((), yaml.compose(text), yaml.safe_load(text), schema, text.splitlines())


def _below(
    above: tuple[str, ...],
    node: Any,  # Any: a mapping, as PyYAML reads it
    defaults: dict[str, Any],
    schema: dict[str, Any],
    lines: list[str],
) -> Iterator[Value]:
    for key, inner in node.value:
        path = (*above, key.value)
        found = schema["properties"].get(key.value)
        if found is None:
            raise LookupError(f"{_SCHEMA.name} has no {'.'.join(path)}")
        section = "properties" in found and key.value != "config"
        default = defaults[key.value]
        shown = None if section else json.dumps(default, ensure_ascii=False)
        yield Value(path, _comment(lines[: key.start_mark.line], path), shown)
        if section:
            yield from _below(path, inner, default, found, lines)


def _comment(lines: list[str], path: tuple[str, ...]) -> str:
    """Return the comment at the end of some lines, as one line."""
    found: list[str] = []
    while lines and lines[-1].lstrip().startswith("#"):
        found.insert(0, lines.pop().lstrip("# "))
    if not found:
        raise LookupError(f"{_VALUES.name}: no comment says what {'.'.join(path)} is")
    return " ".join(found)


def _shown(default: str | None) -> str:
    if default is None:
        return ""
    return code(default) if len(default) <= _LONGEST_DEFAULT else f"see `{_VALUES.name}`"


def _schema() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_SCHEMA.read_text())
    return found
