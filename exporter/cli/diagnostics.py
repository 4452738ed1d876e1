"""The command `diagnostics`: an archive for bug reports, without secrets, ids and phone numbers."""

from __future__ import annotations

import io
import json
import platform
import re
import sqlite3
import ssl
import tarfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, distributions, requires, version
from pathlib import Path
from typing import IO, Any, Final

import click
import yaml

import exporter
from exporter.cli.health import PROGRAM, container_options, get, schemes_of
from exporter.cli.run import run, web_paths
from exporter.config import Config, load_config
from exporter.config.redaction import HIDDEN, redacted_config, redacted_problem
from exporter.errors import ConfigError, ExporterError, RemoteExporterError
from exporter.ledger.statistics import ledger_statistics
from exporter.new_file import new_file
from exporter.secrets import mask_phone_numbers
from exporter.web.sockets import ListenAddress
from exporter.web.web_config import load_web_config

_SCRAPE_TIMEOUT: Final = 30.0
_MAX_LOG_LINES: Final = 1_000
_MAX_LINE: Final = 64 << 10

# A log line; Docker, Kubernetes and the journal add a prefix.
_LOGFMT: Final = re.compile(r"timestamp=\S+ level=\w+ event=.*")
_JSON: Final = re.compile(r"\{.*\}")
_REFERENCE_ID: Final = re.compile(r'\breference_id=(?:"(?:[^"\\]|\\.)*"|\S*)')
_GUID: Final = re.compile(r"\b[0-9A-Fa-f]{8}(?:-?[0-9A-Fa-f]{4}){3}-?[0-9A-Fa-f]{12}\w*")
_TIME: Final = re.compile(r"(\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?)")
# A value of a label, except `le`.
_LABEL_VALUE: Final = re.compile(r'(?<!\ble)="((?:[^"\\]|\\.)*)"')


class _Command(click.Command):
    """Uses the options of process 1, the exporter in a container, unless a file is given."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not any(word.startswith("--config.file") for word in args):
            args = [*args, *(word for word in container_options() if word != "run")]
        return super().parse_args(ctx, args)


@click.command(cls=_Command, params=list(run.params))
@click.option(
    "--output",
    type=click.Path(allow_dash=True),
    help="Archive to write, or `-` for standard output.  [default: a new file here]",
)
@click.option(
    "--log-file",
    "log",
    type=click.File("rb"),
    help="Log of the exporter to include, or `-` for standard input.",
)
def diagnostics(
    config_file: Path,
    web_config: Path | None,
    output: str | None,
    log: IO[bytes] | None,
    **run_options: Any,  # Any: the other options of `run`
) -> None:
    """Write an archive for bug reports.

    It contains versions, the configuration, the metrics of a running exporter, statistics of the
    ledger, and log lines, but no secrets, ids and phone numbers. Accepts the options of `run`. By
    default, it uses the options of process 1, which is the exporter in a container.
    """
    found = {"versions.json": _json(versions())}
    problems = list[str]()
    config: Config | None = None
    try:
        config = load_config(config_file)
        if web_config:
            load_web_config(web_config)
    except ConfigError as error:
        problems += map(redacted_problem, error.problems)
    with suppress(ConfigError):  # already reported
        shown = redacted_config(config_file, valid=config is not None)
        found["config.yaml"] = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True).encode()
    try:
        if config:
            found["ledger.json"] = _json(ledger_statistics(config.ledger.url.reveal()))
    except ExporterError as error:
        problems.append(f"ledger.json: {error}")
    _, prefix = web_paths(run_options["external_url"], run_options["route_prefix"])
    path = prefix + run_options["telemetry_path"]
    try:
        found["metrics.txt"] = scrape(run_options["addresses"], schemes_of(web_config), path)
    except RemoteExporterError as error:
        problems.append(f"metrics.txt: {error}")
    if log is None:
        problems.append("log.txt: pass the log of the exporter with --log-file")
    else:
        try:
            found["log.txt"] = "".join(f"{line}\n" for line in log_lines(log)).encode()
        except OSError as error:
            problems.append(f"log.txt: cannot be read: {error.strerror}")
    problems = [mask_phone_numbers(problem) for problem in problems]
    found["problems.txt"] = "".join(f"{problem}\n" for problem in problems).encode()
    for problem in problems:
        click.echo(problem, err=True)
    name = f"{PROGRAM}-diagnostics"
    now = datetime.now(UTC)
    target = output or f"{name}-{now:%Y%m%dT%H%M%SZ}.tar.gz"
    data = archive(name, found, int(now.timestamp()))
    if target == "-":
        click.echo(data, nl=False)
    else:
        with new_file(Path(target)) as file:
            file.write(data)
    click.echo(f"{target}: {' '.join(found)}", err=target == "-")


def versions() -> dict[str, Any]:  # Any: JSON
    """Return the versions of the exporter, the platform and the libraries."""
    try:
        needed = [re.split(r"[^\w.-]", line)[0] for line in requires(PROGRAM) or ()]
    except PackageNotFoundError:  # runs from a copy of the repository
        needed = [name for distribution in distributions() if (name := distribution.name)]
    libraries = dict[str, str | None]()
    for name in sorted(needed):
        try:
            libraries[name] = version(name)
        except PackageNotFoundError:
            libraries[name] = None  # of an extra
    return {
        PROGRAM: exporter.__version__,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "timezone": time.tzname,
        "platform": platform.platform(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "openssl": ssl.OPENSSL_VERSION,
        "sqlite": sqlite3.sqlite_version,
        "libraries": libraries,
    }


def scrape(addresses: Sequence[ListenAddress], schemes: Sequence[str], path: str) -> bytes:
    """Return the metrics of the exporter that listens on one of the addresses.

    Raises:
        RemoteExporterError: there is none, or it requires a password or a client certificate.
    """
    problems = []
    for address in addresses:
        try:
            status, body = get(address, schemes, path, _SCRAPE_TIMEOUT)
        except RemoteExporterError as error:
            problems.append(str(error))
            continue
        if status == 200:
            text = body.decode(errors="replace")
            return _LABEL_VALUE.sub(lambda found: mask_phone_numbers(found[0]), text).encode()
        problems.append(f"{address}: refused with the HTTP status {status}")
    raise RemoteExporterError("; ".join(problems))


def log_lines(log: IO[bytes]) -> Sequence[str]:
    """Return the last lines of the exporter in a log, without ids; lines of others are left out."""
    lines = deque[str](maxlen=_MAX_LOG_LINES)
    while data := log.readline(_MAX_LINE):
        text = data.decode(errors="replace").rstrip()
        line: str | None = None
        if found := _LOGFMT.search(text):
            line = _REFERENCE_ID.sub(f"reference_id={HIDDEN}", found[0])
        elif found := _JSON.search(text):
            with suppress(ValueError, RecursionError):
                event = json.loads(found[0])
                if isinstance(event, dict) and {"timestamp", "level", "event"} <= event.keys():
                    hidden = {"reference_id": HIDDEN} if "reference_id" in event else {}
                    line = json.dumps({**event, **hidden}, ensure_ascii=False)
        if line:
            lines.append(_masked(line))
    return lines


def _masked(line: str) -> str:
    """Return a log line without ids and phone numbers; another program may have written it."""
    parts = _TIME.split(_GUID.sub(HIDDEN, line))  # every second one is a time
    return "".join(part if n % 2 else mask_phone_numbers(part) for n, part in enumerate(parts))


def archive(name: str, files: Mapping[str, bytes], at: int) -> bytes:
    """Return a compressed tar archive with files in a folder."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        for file, content in files.items():
            about = tarfile.TarInfo(f"{name}/{file}")
            about.size, about.mtime, about.mode = len(content), at, 0o600
            tar.addfile(about, io.BytesIO(content))
    return data.getvalue()


def _json(value: object) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"
