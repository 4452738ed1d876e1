"""The configuration in a bug report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from exporter.config import load_config
from exporter.config.redaction import redacted_config
from exporter.errors import ConfigError

GOOD = """
accounts:
  - name: main
    api_key: "${KEY:-S3cr3t}"
    secret_key_file: main.key
    rate_limit: 5
    codes: {"102": auth}
  - name: other
    api_key: S3cr3t
    secret_key: S3cr3t
    base_url: http://192.0.2.15:8080/x
    default_kind: message
polling: {interval: "${EVERY:-10s}", pace: growing}
ledger: {url: "postgresql://us3r:S3cr3t@h0st/d4tabase"}
balance:
watch:
  labels: [campaign]
  max_calls: 2000000
  calls:
    - {reference_id: a, account: main}
    - {reference_id: b, labels: {campaign: otp}, account: main}
  files: [calls/*.csv, "of-0901888484.csv"]
  api: {tokens: [{name: program, token: S3cr3t, accounts: [main]}]}
  sql:
    - {name: crm, url: "mysql://us3r:S3cr3t@h0st/d4tabase", query: SELECT 'S3cr3t', account: main}
notify:
  - name: crm
    url_file: hook.url
    secret: whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw
    results: [failure]
    labels: {campaign: [otp]}
canaries:
  - name: c
    phone: "0901888484"
    template: "31"
    variables: [An]
    every: 1h
    max_per_day: 2
    account: main
home_assistant: {url: "mqtts://h0st", username: us3r, password: S3cr3t}
"""

SHOWN = """
accounts:
  - {name: main, api_key: "***", secret_key_file: main.key, rate_limit: 5, codes: {"102": auth}}
  - name: other
    api_key: "***"
    secret_key: "***"
    base_url: http://***:8080/x
    default_kind: message
polling: {interval: "${EVERY}", pace: growing}
ledger: {url: "postgresql://***"}
balance:
watch:
  labels: [campaign]
  max_calls: 2000000
  calls: "***"
  files: [calls/*.csv, "of-***.csv"]
  api: {tokens: [{name: program, token: "***", accounts: [main]}]}
  sql: [{name: crm, url: "mysql://***", query: "***", account: main}]
notify:
  - {name: crm, url_file: hook.url, secret: "***", results: [failure], labels: {campaign: [otp]}}
canaries:
  - name: c
    phone: "***"
    template: "***"
    variables: "***"
    every: 1h
    max_per_day: 2
    account: main
home_assistant: {url: "mqtts://***", username: "***", password: "***"}
"""


def redacted(path: Path, text: str, *, valid: bool) -> Any:  # Any: YAML
    path.write_text(text)
    return redacted_config(path, valid=valid)


def test_a_valid_configuration(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    assert redacted(path, GOOD, valid=True) == yaml.safe_load(SHOWN)
    (tmp_path / "main.key").write_text("k")
    (tmp_path / "hook.url").write_text("https://example.com/")
    load_config(path, {"KEY": "k"})  # as a report's configuration is loaded first


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        # Any value may be a misplaced secret.
        ("accounts: S3cr3t", {"accounts": "***"}),
        ("accounts: [S3cr3t, [S3cr3t]]", {"accounts": ["***", ["***"]]}),
        (
            "accounts: [{name: S3cr3t, rate_limit: S3cr3t, max_concurrency: 0901888484}]",
            {"accounts": [{"name": "***", "rate_limit": "***", "max_concurrency": "***"}]},
        ),
        ("accounts: [{S3cr3t: x, api_key_file: [S3cr3t]}]",
         {"accounts": [{"?": "***", "api_key_file": "***"}]}),
        ("S3cr3t: {S3cr3t: S3cr3t}", {"?": "***"}),
        ("polling: {interval: 15s, pace: S3cr3t, timeout: 3}",
         {"polling": {"interval": "15s", "pace": "***", "timeout": 3}}),
        ("watch: {calls: [1234567890], labels: {S3cr3t: S3cr3t}, max_calls: 5}",
         {"watch": {"calls": "***", "labels": "***", "max_calls": 5}}),
        ("ledger: {url: {S3cr3t: S3cr3t}}", {"ledger": {"url": "***"}}),
        ("accounts: [{api_key_file: S3cr3t}]", {"accounts": [{"api_key_file": "***"}]}),
        ("home_assistant: {ca_file: x.pem}", {"home_assistant": {"ca_file": "***"}}),
    ],
)  # fmt: skip
def test_an_invalid_configuration(tmp_path: Path, text: str, shown: object) -> None:
    assert redacted(tmp_path / "config.yaml", text, valid=False) == shown


@pytest.mark.parametrize("text", ["a: [", "- S3cr3t", "a: *b"])
def test_no_yaml(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError):
        redacted(tmp_path / "config.yaml", text, valid=False)
