"""Finished calls in a file, and the counters that Prometheus makes of them."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import time
import tracemalloc
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner
from click.testing import Result as Invoked
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from sqlalchemy import create_engine, text, update
from sqlalchemy.pool import NullPool

from exporter.calls import Finished, Key, Receivers, Result, Status
from exporter.cli import commands
from exporter.errors import ExporterError
from exporter.ids import Kind, ReferenceId
from exporter.ledger.clock import LedgerClock
from exporter.ledger.engine import open_database
from exporter.ledger.schema import calls
from exporter.ledger.store import Store
from exporter.ledger.types import NewCall, Observation
from exporter.simulator import Plan, Simulator
from tests import subprocesses
from tests.docs import pages
from tests.e2e.commands import CONFIG, in_csv, in_json, piped, run
from tests.e2e.processes import API, Exporter, configure, listed, parsed, push, total
from tests.e2e.prometheus import Prometheus
from tests.e2e.test_lookup_terminal import SHOWN_CURSOR, Screen
from tests.programs import every_prometheus, of_prometheus

HOUR = 3600
START = time.time() // HOUR * HOUR - 10 * HOUR
HOURS = 6

QUERY = (
    'sum by (account) (esms_calls_total{job="esms-history"}'
    ' - esms_calls_total{job="esms-history"} offset 1h)'
)
"""The query of docs/lookup.md for the calls of an hour, at its end."""

ANSWERED = Finished(Result.SUCCESS, Status.ANSWERED, 7.0, Key.STAR)
FAILED = Finished(Result.FAILURE, Status.NONE)
SENT = Finished(Result.FAILURE, Status.NONE, receivers=Receivers(3, 1), price=940.0)


class Ended(NamedTuple):
    """A call of the ledger, and when it ended."""

    name: str
    at: float
    found: Finished
    account: str = "main"
    campaign: str = "otp"
    kind: Kind = Kind.CALL


ENDED = [
    # Both ends of an hour, an hour without calls, and several in one minute.
    Ended("first", START, ANSWERED),
    Ended("-1+2", START + 0.5, FAILED, campaign="=1+1"),
    Ended("last-of-hour", START + HOUR - 0.001, ANSWERED),
    Ended("first-of-hour", START + HOUR, ANSWERED),
    *(Ended(f"many-{n}", START + 3 * HOUR + 7 * n, FAILED) for n in range(20)),
    Ended("other", START + 4 * HOUR + 61, FAILED, account="other", campaign="số"),
    Ended("message", START + 5 * HOUR, SENT, kind=Kind.MESSAGE),
    Ended("late", START + 6 * HOUR - 1, ANSWERED),
    Ended("after", START + 6 * HOUR, ANSWERED),
]


def fill(url: str, clock: LedgerClock | None = None) -> None:
    """Write these calls to a ledger, and others that are not exported."""
    with closing(open_database(url)) as database:
        store = Store(database, clock)
        ahead = clock.ahead if clock else 0.0

        def add(ended: Ended) -> int:
            new = NewCall(
                ended.account, ReferenceId(ended.name), {"campaign": ended.campaign}, ended.kind
            )
            at = ended.at + ahead
            ((account, call),) = store.push([[new]], at - 30).added
            store.commit([Observation(account, call, ended.found, at)])
            return call.id

        for ended in ENDED:
            add(ended)
        canary = add(Ended("canary", START, ANSWERED))
        database.run(
            lambda connection: connection.execute(
                update(calls).where(calls.c.id == canary).values(canary_run_id=1)
            )
        )
        for name in ("open", "deleted"):
            new = NewCall("main", ReferenceId(name), {})
            (stored,) = store.push([[new]], START).added
            if name == "deleted":
                store.delete(stored.call.id, START)
        if clock:
            database.keep_time(clock)


def utc(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()


def prepare(folder: Path, url: str) -> None:
    configure(folder, "http://127.0.0.1:9", ledger={"url": url})


def export(folder: Path, *arguments: str) -> Invoked:
    """Run the command in this process."""
    config = f"--config.file={folder / 'config.yaml'}"
    return CliRunner().invoke(commands, ["export", config, *arguments])


def execute(url: str, statement: str) -> None:
    address = url.replace("postgresql:", "postgresql+psycopg:")
    with create_engine(address, poolclass=NullPool).begin() as connection:
        connection.execute(text(statement))


Points = dict[tuple[str, frozenset[tuple[str, str]]], dict[float, float]]


def points(text: str) -> Points:
    """Return the values of each series by time; fail where the text is not valid OpenMetrics."""
    found = defaultdict[str, dict[float, float]](dict)
    lines = text.splitlines()
    for line in lines:
        if not line.startswith("#"):
            series, value, at = line.rsplit(" ", 2)
            assert float(at) not in found[series]
            found[series][float(at)] = float(value)
    for values in found.values():
        assert sorted(values) == list(values)
    # The library's parser drops all points of a histogram but the first: it gets one at a time.
    for end in {line.rpartition(" ")[2] for line in lines[-2:-1]}:
        once = "\n".join(line for line in lines if line[0] == "#" or line.endswith(f" {end}"))
        list(text_string_to_metric_families(f"{once}\n"))  # type: ignore[no-untyped-call]
    return {next(iter(parsed(f"{series} 0"))): values for series, values in found.items()}


def hourly(found: Points, name: str) -> dict[tuple[str, int], float]:
    """Return the increase of a metric by account and hour."""
    counts = defaultdict[tuple[str, int], float](float)
    for (metric, labels), values in found.items():
        for hour in range(HOURS) if metric == name else ():
            start = START + hour * HOUR
            counts[dict(labels)["account"], hour] += values[start + HOUR] - values[start]
    return {key: count for key, count in counts.items() if count}


EXPECTED = Counter(
    (ended.account, int((ended.at - START) // HOUR))
    for ended in ENDED
    if ended.kind is Kind.CALL and ended.at < START + HOURS * HOUR
)


def test_every_format(tmp_path: Path, url: str) -> None:
    fill(url)
    prepare(tmp_path, url)
    found = export(tmp_path, "--format=jsonl")
    assert (found.exit_code, found.stderr) == (0, "")
    lines = in_json(found.stdout)
    assert [line["reference_id"] for line in lines] == [ended.name for ended in ENDED]
    for line, ended in zip(lines, ENDED, strict=True):
        receivers = ended.found.receivers or (None, None)
        watched = ended.at - 30
        assert line == {
            "account": ended.account,
            "reference_id": ended.name,
            "kind": ended.kind.value,
            "labels": {"campaign": ended.campaign},
            "result": ended.found.result.value,
            "status": ended.found.status.value,
            "duration": ended.found.duration,
            "key": ended.found.key and ended.found.key.value,
            "price": ended.found.price,
            "delivered": receivers[0],
            "failed": receivers[1],
            "first_watched": utc(watched).replace("+00:00", "Z"),
            "finished_at": utc(ended.at).replace("+00:00", "Z"),
            "first_watched_unix": watched,
            "finished_at_unix": ended.at,
        }

    found = export(tmp_path, "--format=csv", "--output-file=" + str(tmp_path / "calls.csv"))
    assert (found.exit_code, found.stdout) == (0, f"{tmp_path}/calls.csv: {len(ENDED)} calls\n")
    assert (tmp_path / "calls.csv").stat().st_mode & 0o077 == 0
    rows = in_csv((tmp_path / "calls.csv").read_text())
    assert [*rows[0]] == [*lines[0]]
    for row, line in zip(rows, lines, strict=True):
        name = line["reference_id"]
        # A spreadsheet does not run it as a formula.
        assert row.pop("reference_id") == (f"'{name}" if name == "-1+2" else name)
        assert json.loads(row.pop("labels")) == line["labels"]
        assert row == {column: "" if line[column] is None else str(line[column]) for column in row}

    found = export(tmp_path, "--format=openmetrics")
    assert found.stdout.endswith("# EOF\n")
    series = points(found.stdout)
    assert hourly(series, "esms_calls_total") == EXPECTED
    assert hourly(series, "esms_messages_total") == {("main", 5): 4}
    # From the hour of the first call to the present; all series have the same times.
    (times,) = {tuple(values) for values in series.values()}
    assert times[0] == START
    assert {after - before for before, after in pairwise(times)} == {60}
    assert 0 <= times[-1] - time.time() + 60 <= 120
    assert {values[START] for values in series.values()} == {0}


RANGES = [
    # From the first call on, and before the last one.
    (START, START + 6 * HOUR, "first", "late"),
    (START + 0.001, START + 6 * HOUR + 0.001, "-1+2", "after"),
    (START + HOUR - 0.001, START + HOUR, "last-of-hour", "last-of-hour"),
    (START - 9 * HOUR, START, "", ""),
    (START + 2 * HOUR, START + 3 * HOUR, "", ""),
]


@pytest.mark.parametrize(("since", "until", "first", "last"), RANGES)
def test_a_range(tmp_path: Path, since: float, until: float, first: str, last: str) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    fill(url)
    prepare(tmp_path, url)
    # Without an offset, it is UTC.
    local = datetime.fromtimestamp(until, timezone(timedelta(hours=7))).isoformat()
    times = f"--from={utc(since).removesuffix('+00:00')}", f"--to={local}"
    found = export(tmp_path, "--format=jsonl", *times)
    names = [ended.name for ended in ENDED if since <= ended.at < until]
    assert [line["reference_id"] for line in in_json(found.stdout)] == names
    assert (names[:1], names[-1:]) == (([first], [last]) if first else ([], []))
    series = points(export(tmp_path, "--format=openmetrics", *times).stdout)
    counted = sum(values[max(values)] for (name, _), values in series.items() if name == CALLS)
    messages = sum(ended.kind is Kind.MESSAGE for ended in ENDED if ended.name in names)
    assert counted == len(names) - messages
    assert all(max(values) <= until + 60 for values in series.values())


CALLS = "esms_calls_total"
FAMILIES = (
    *("esms_calls_total", "esms_call_duration_seconds", "esms_call_keypresses_total"),
    *("esms_call_result_delay_seconds", "esms_call_price_vnd_total", "esms_messages_total"),
    *("esms_message_result_delay_seconds", "esms_message_price_vnd_total"),
)


async def test_series_are_those_of_the_exporter(
    tmp_path: Path, simulator: Simulator, url: str
) -> None:
    """The ledger is in use, and label values were evicted: their calls count as `other`."""
    for number in range(20):
        plan = Plan(duration=number, ivr=str(number % 3)) if number % 2 else Plan(sent_result=0)
        simulator.add_call("main", f"call-{number}", plan)
    simulator.add_call("other", "message", Plan(receivers=3, failed=1, price=940))
    watch = {"api": API, "labels": ["campaign"], "max_label_values": 2}
    config = configure(tmp_path, simulator, watch=watch, ledger={"url": url})
    new = [listed(f"call-{n}", campaign=f"c{n % 4}") for n in range(20)]
    new.append({**listed("message", "other", campaign="c1"), "kind": "message"})
    async with Exporter(config) as exporter:
        await exporter.ready()
        await push(exporter, new)
        scraped = await exporter.until(
            lambda now: total(now, CALLS) == 20 and total(now, "esms_messages_total") == 3
        )
        found = await run(tmp_path, "export", CONFIG, "--format=openmetrics")
        assert (found.code, found.errors) == (0, "")
    exported = {key: values[max(values)] for key, values in points(found.output).items() if values}
    live = {key: value for key, value in scraped.items() if key[0].startswith(FAMILIES)}
    assert any(("campaign", "other") in labels for _, labels in exported)
    # The ledger rounds the last digit of some times.
    assert exported == pytest.approx({key: live[key] for key in exported}, abs=0.01)
    # Series that never counted anything are left out.
    assert {key for key, value in live.items() if value} <= exported.keys()


@every_prometheus
async def test_prometheus_shows_the_hours_in_which_it_was_down(
    tmp_path: Path, version: str
) -> None:
    assert QUERY in " ".join(pages.text("docs/lookup.md").split())
    url = f"sqlite:///{tmp_path}/ledger.db"
    fill(url)
    prepare(tmp_path, url)
    labels = "--label=job=esms-history", "--label=instance=export"
    file = tmp_path / "history.txt"
    times = f"--from={utc(START)}", f"--to={utc(START + HOURS * HOUR)}"
    made = export(tmp_path, "--format=openmetrics", *labels, *times, f"--output-file={file}")
    assert made.exit_code == 0, made.output
    prometheus = Prometheus(version, tmp_path, "127.0.0.1:9")
    blocks = tmp_path / f"prometheus {version}" / "tsdb"
    command = "tsdb", "create-blocks-from", "openmetrics"
    promtool = of_prometheus("promtool", version)
    done = subprocesses.run(promtool, *command, str(file), str(blocks))
    assert done.returncode == 0, done.stderr
    async with prometheus:
        await prometheus.until("up", bool)
        shown = Counter[tuple[str, int]]()
        for hour in range(HOURS):
            # At any full minute, and so at the end of an hour.
            end = START + (hour + 1) * HOUR
            data = (await prometheus.ask("query", query=QUERY, time=str(end)))["data"]
            for series in data["result"]:
                shown[series["metric"]["account"], hour] += int(series["value"][1])
        assert +shown == EXPECTED
        # The panels of the dashboards use functions like these.
        since = START + HOURS * HOUR
        for query in (
            'increase(esms_calls_total{job="esms-history"}[6h1ms])',
            'esms_calls_total{job="esms-history"}',
        ):
            whole = f"round(sum by (account) ({query}))"
            data = (await prometheus.ask("query", query=whole, time=str(since)))["data"]
            assert {s["metric"]["account"]: int(s["value"][1]) for s in data["result"]} == {
                "main": EXPECTED.total() - 1,
                "other": 1,
            }


def test_no_calls_make_no_blocks(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    open_database(url).close()
    prepare(tmp_path, url)
    assert export(tmp_path, "--format=openmetrics").stdout == "# EOF\n"
    assert export(tmp_path, "--format=jsonl").stdout == ""
    assert export(tmp_path, "--format=csv").stdout.count("\n") == 1


def test_times_are_those_of_the_machine(tmp_path: Path) -> None:
    """The ledger's clock went on when the machine's was set back."""
    url, clock = f"sqlite:///{tmp_path}/ledger.db", LedgerClock()
    clock.move(5 * HOUR)
    fill(url, clock)
    prepare(tmp_path, url)
    found = in_json(export(tmp_path, "--format=jsonl", f"--to={utc(START + 1)}").stdout)
    assert [line["reference_id"] for line in found] == ["first", "-1+2"]
    assert found[0]["finished_at_unix"] == pytest.approx(START, abs=0.01)


def many(folder: Path, count: int, apart: int = 1) -> None:
    """Write a ledger of many finished calls; they ended so many seconds apart."""
    with closing(open_database(f"sqlite:///{folder}/ledger.db")) as database:
        Store(database).push([[NewCall("main", ReferenceId("first"), {"campaign": "otp"})]], 1.0)
        with database.begin() as connection:
            connection.execute(
                text(
                    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :n)"
                    " INSERT INTO calls (account_id, normalized_id, reference_id, label_set_id,"
                    " first_watched, state, state_since, result, status, duration, finished_at)"
                    " SELECT c.account_id, 'n' || i, 'n' || i, c.label_set_id, :now - i * :apart,"
                    " 'new', 0, 'success', 'answered', i % 60, :now - i * :apart FROM n, calls c"
                ),
                {"n": count, "now": START, "apart": apart},
            )
    prepare(folder, f"sqlite:///{folder}/ledger.db")


@pytest.mark.parametrize(
    ("output", "counts", "apart", "each"),
    [("jsonl", (10_000, 20_000), 1, 10), ("openmetrics", (10_000, 15_000), 15, 25)],
)
def test_memory_is_bounded(
    tmp_path: Path, output: str, counts: tuple[int, int], apart: int, each: int
) -> None:
    """Lines are written as they are read; of counters, each minute with calls takes some bytes."""
    peaks = []
    for count in counts:
        folder = tmp_path / str(count)
        folder.mkdir()
        many(folder, count, apart)
        tracemalloc.start()
        try:
            found = export(folder, f"--format={output}", f"--output-file={folder / 'calls'}")
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert found.stdout.endswith(f" {count} calls\n"), found.output
    assert peaks[1] - peaks[0] < each * (counts[1] - counts[0]) + 2**20


async def test_interrupted(tmp_path: Path) -> None:
    many(tmp_path, 20_000)
    arguments = "export", CONFIG, "--format=csv"
    with piped(tmp_path, *arguments) as (command, output):
        assert await asyncio.to_thread(output.readline)
    assert await command.end() == (1, "", "")

    with piped(tmp_path, *arguments) as (command, output):
        assert await asyncio.to_thread(output.read, 1)
        command.send_signal(signal.SIGINT)
        await asyncio.to_thread(output.read)
    assert await command.end() == (1, "", "\nAborted!\n")


async def test_at_a_terminal(tmp_path: Path) -> None:
    many(tmp_path, 200_000)
    arguments = "--format=openmetrics", "--output-file=history.txt"
    screen = Screen(tmp_path, 100)
    assert await screen.run(*arguments, ctrl_c_at="calls .*[1-9]000/200000", command="export") == 1
    assert screen.seen.rindex(SHOWN_CURSOR) > screen.seen.rindex("━")
    assert "Aborted!" in screen.seen, screen.seen[-600:]
    assert not any(tmp_path.glob("history*"))  # noqa: ASYNC240 - a look
    screen = Screen(tmp_path, 100)
    last_hours = f"--from={utc(START - 2 * HOUR)}"
    assert await screen.run(*arguments, last_hours, command="export") == 0, screen.seen
    assert re.search("calls .*7200/7200", screen.seen)
    assert re.search("series .*3/3", screen.seen)
    assert "history.txt: 7200 calls" in screen.seen


UNREADABLE: Mapping[str, tuple[str, str]] = {
    "missing": ("", "cannot be opened (No such file or directory)"),
    "another": ("CREATE TABLE orders (id INTEGER)", "holds no ledger"),
    "older": ("UPDATE alembic_version SET version_num = '0010'", "(revision 0010)"),
    "newer": (
        "UPDATE alembic_version SET version_num = '9999'; DELETE FROM compatibility",
        "(revision 9999)",
    ),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_ledgers_that_cannot_be_read(tmp_path: Path, url: str, kind: str) -> None:
    statement, problem = UNREADABLE[kind]
    if url.startswith("postgresql") and kind in ("missing", "another"):
        problem = "holds no ledger"
    prepare(tmp_path, url)
    if kind in ("older", "newer"):
        open_database(url).close()
    for one in filter(None, statement.split(";")):
        execute(url, one)
    found = export(tmp_path, "--format=csv", f"--output-file={tmp_path / 'calls.csv'}")
    assert isinstance(found.exception, ExporterError), found.output
    assert problem in str(found.exception)
    assert not (tmp_path / "calls.csv").exists()
