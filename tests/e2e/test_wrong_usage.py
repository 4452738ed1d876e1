"""Options and arguments that no command takes: exit code 2, and what would be right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from exporter.cli import commands
from exporter.simulator import Account
from tests.e2e.commands import CONFIG
from tests.e2e.processes import TOKEN, configure

MAIN = Account("main", "key-main", "hidden")
ADDRESS = "expected `:10375`, `127.0.0.1:10375`"
LABEL = "export --format=openmetrics --label"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        *((f"--web.listen-address={it}", ADDRESS) for it in ("here", "::1:80")),
        *(
            (f"--web.telemetry-path={path}", "--web.telemetry-path")
            for path in ("metrics", "/", "/-/ready", "/api/v1/metrics", "/callback/x", "/{x")
        ),
        ("--log.level=loud", "--log.level"),
        ("--log.format=xml", "--log.format"),
        ("--no-such-option", "No such option"),
        ("nonsense", "No such command"),
        ("run again", "unexpected extra argument"),
        ("lookup", "expected ids or --from-file"),
        ("lookup a --account=c", "--account"),
        ("lookup a", "expected --account, because several accounts"),
        ("lookup --account=main x\N{NO-BREAK SPACE}y", "REFERENCE_ID"),
        ("lookup --account=main " + "x" * 129, "is longer than 128"),
        ("lookup --from-file=missing.csv", "does not exist"),
        ("lookup --from-file=config.toml", ".csv, .txt"),
        ("lookup a --output=xml", "--output"),
        ("lookup a --output-file=results.txt", "--output-file"),
        ("lookup a --output-file=results.csv --output=json", "is csv, not json"),
        *((f"lookup a --rate={rate}", "--rate") for rate in ("0", "nan")),
        ("export", "Missing option '--format'"),
        ("export --format=xml", "Invalid value for '--format'"),
        ("export --format=csv --from=yesterday", "expected a time in ISO 8601"),
        ("export --format=csv --from=2026-02-01 --to=2026-01-31", "expected --from before --to"),
        ("export --format=csv --from=2026-02-01 --to=2026-02-01T00:00Z", "expected --from before"),
        ("export --format=jsonl --label=job=x", "--label is only for --format=openmetrics"),
        *((f"{LABEL}={label}", "expected NAME=VALUE") for label in ("job", "__name__=x")),
        (f"{LABEL}=job=\udcff", "expected UTF-8"),
        *((f"{LABEL}={it}=1", f"`{it}` is a label of the metrics") for it in ("le", "campaign")),
        *((f"calls --url={url}", "--url") for url in ("ftp://x", "http://[::1", "http://\udcff")),
        *(
            (f"calls --url=http://{host}", "--url")
            for host in ("x:65536", "x:y", "u:p@x", "x?y", "x#y")
        ),
        ("calls --account=\udcff", "expected UTF-8"),
        ("calls --token-file=missing", "--token-file"),
        ("calls --token-file=empty", "expected a token"),
        *((f"calls --ca-file={name}", "--ca-file") for name in ("missing", "empty")),
        ("calls --state=x", "--state"),
        ("calls", "ESMS_EXPORTER_TOKEN"),
        ("notifications retry", "expected ids, or a filter"),
        ("notifications drop 1 --state=pending", "expected ids, or a filter"),
        ("notifications retry 0", "0 is not in the range"),
        ("notifications retry --target=crm", "no such target; configured: none"),
        ("notifications list --state=sent", "'sent' is not one of"),
        ("notifications list --account=\udcff", "expected UTF-8"),
        ("notifications drop --target=\udcff", "expected UTF-8"),
        *(
            (f"callback-url --url={url}", "--url")
            for url in ("ftp://x", "http://[::1", "http://x:99999", "https://x?a=b", "https://x#a")
        ),
        ("diagnostics --log-file=missing", "--log-file"),
        ("diagnostics --web.route-prefix=?", "--web.route-prefix"),
        *(
            (f"simulate --listen={address}", ADDRESS)
            for address in ("x", "127.0.0.1:65536", "::1:80", "[::1]:x")
        ),
        ("simulate --account=a:hidden", "secret_key: Field required"),
        ("simulate --account=a:b:c:7:hidden", "tps: Input should be a valid number"),
        ("simulate --account=a:hidden:hidden:x", "tps: Input should be a valid number"),
        ("simulate --account=a:hidden:hidden:0", "tps: Input should be greater than 0"),
        ("simulate --account=a::hidden", "api_key: String should have"),
        ("simulate --account=a:b:c --account=a:d:e", "two accounts have the same name"),
        ("simulate --account=a:b:c --account=d:b:c", "two accounts have the same api_key"),
        ("simulate --tls-key-file=x", "--tls-key-file needs --tls-cert-file"),
        *((f"simulate --speed={it}", "expected a number above 0") for it in ("0", "nan", "x")),
        ("simulate --unknown-ids=maybe", "--unknown-ids"),
    ],
)
def test_wrong_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, expected: str
) -> None:
    configure(tmp_path, "http://127.0.0.1:9", accounts=[MAIN, replace(MAIN, name="b")])
    for name in ("config.toml", "empty"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    words = line.split(" ")
    if words[0] not in {"calls", "simulate"}:
        words.append(CONFIG)
    environ = {"ESMS_EXPORTER_TOKEN": TOKEN} if len(words) > 1 else {}
    found = CliRunner().invoke(commands, words, env=environ)
    assert (found.exit_code, found.stdout) == (2, "")
    assert expected in found.stderr
    assert "hidden" not in found.stderr
