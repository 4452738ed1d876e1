"""The alerts' conditions in Vietnamese, as a template of Alertmanager, from `docs/vi/alerts.md`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

_PAGE: Final = Path(__file__).parents[2] / "docs" / "vi" / "alerts.md"
_ROW: Final = re.compile(r"^\| \[(\w+)\]\([^)]*\) \| [^|]+ \| (.+) \|$", re.MULTILINE)
_TEMPLATE: Final = """\
{{{{/* Written by `make docs` from docs/vi/alerts.md; change that, not this file. */}}}}
{{{{ define "esms.condition.vi" }}}}
{cases}
{{{{- else }}}}{{{{ .Annotations.summary }}}}
{{{{- end }}}}
{{{{- end }}}}
"""


def conditions() -> str:
    """Return a template that shows the condition of an alert; for other alerts, the summary."""
    cases = [
        f'if eq .Labels.alertname "{name}" }}}}{condition.replace("`", "")}'
        for name, condition in _ROW.findall(_PAGE.read_text(encoding="utf-8"))
    ]
    return _TEMPLATE.format(cases="{{- " + "\n{{- else ".join(cases))
