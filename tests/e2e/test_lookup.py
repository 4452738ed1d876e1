"""Look-ups by hand: real processes that ask a stand-in for the provider."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from click.testing import CliRunner

from exporter.cli import commands
from exporter.lookup import COLUMNS, TRIES
from exporter.simulator import Account, AccountState, Fault, FaultKind, Plan, Simulator
from tests.e2e.commands import piped, run
from tests.e2e.lookups import (
    ACCOUNTS,
    CONFIG,
    KEY,
    MAIN,
    SECRET,
    configure,
    in_csv,
    in_json,
    place,
)
from tests.waiting import until


@pytest_asyncio.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with Simulator(accounts=ACCOUNTS) as simulator:
        yield simulator


ENDS = {
    "answered": Plan(duration=61, ivr="1"),
    "no-answer": Plan(duration=0, call_status="NOANSWERED"),
    "queued": Plan(queued=1000),
    "odd": Plan(call_status="SOMETHING", duration=-1, sent_result=0),
}
SHOWN = {
    "answered": ("success", "answered", 61.0, "1"),
    "no-answer": ("success", "no_answer", None, None),
    "odd": ("failure", "other", None, None),
}


async def test_all_outputs(tmp_path: Path, simulator: Simulator) -> None:
    configure(tmp_path, simulator.url)
    for name, plan in ENDS.items():
        simulator.add_call("main", name, plan)
    ids = [*ENDS, "unknown"]
    found = await run(tmp_path, "lookup", *ids, CONFIG, "--output=json")
    assert (found.code, found.errors) == (0, "")
    lines = {line["reference_id"]: line for line in in_json(found.output)}
    assert {*lines} == {*ids}
    for name, expected in SHOWN.items():
        line = lines[name]
        assert line["state"] == "finished"
        assert expected == tuple(line[key] for key in ("result", "status", "duration", "key"))
    assert lines["queued"]["state"] == "queued"
    assert lines["queued"]["result"] is None
    unknown = {**lines["unknown"], "asked_at": ""}
    assert unknown == {
        **dict.fromkeys(COLUMNS),
        "reference_id": "unknown",
        "account": "main",
        "state": "not_found",
        "outcome": "not_found",
        "code": "105",
        "message": "ReferenceId not found",
        "asked_at": "",
    }

    found = await run(tmp_path, "lookup", *ids, CONFIG, "--output=csv")
    assert found.code == 0
    rows = in_csv(found.output)
    assert [*rows[0]] == [*COLUMNS]
    for row in rows:
        line = lines[row["reference_id"]]
        del row["asked_at"]
        assert row == {name: "" if line[name] is None else str(line[name]) for name in row}

    found = await run(tmp_path, "lookup", *ids, CONFIG)
    assert found.code == 0
    head, *table = found.output.splitlines()
    assert head.split() == ["reference_id", "state", "status", "duration", "key", "message"]
    assert [row.split()[:2] for row in table] == [
        *(["answered", "success"], ["no-answer", "success"], ["queued", "queued"]),
        *(["odd", "failure"], ["unknown", "not_found"]),
    ]
    assert simulator.traffic.total() == 3 * len(ids)
    assert not (tmp_path / "esms-exporter.db").exists()


async def test_an_id_that_is_named_twice_is_asked_for_once(
    tmp_path: Path, simulator: Simulator
) -> None:
    configure(tmp_path, simulator.url)
    place(simulator, 1)
    (tmp_path / "ids.txt").write_text("call-00000\nCALL-00000 # again\n")
    arguments = ("CALL-00000", " call-00000 ", "--from-file=ids.txt", "--output=csv")
    found = await run(tmp_path, "lookup", *arguments, CONFIG)
    assert [row["reference_id"] for row in in_csv(found.output)] == ["CALL-00000"]
    assert simulator.traffic.total() == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ids.csv", "reference_id,account,campaign\na,,otp\nc,b,\n"),
        ("ids.yaml", "[a, {reference_id: c, account: b}]"),
        ("ids.json", '["a", {"reference_id": "c", "account": "b"}]'),
    ],
)
async def test_files_as_watched_ones(
    tmp_path: Path, simulator: Simulator, name: str, text: str
) -> None:
    configure(tmp_path, simulator.url, "main", "b")
    (tmp_path / name).write_text(text)
    simulator.add_call("b", "c", Plan())
    arguments = (f"--from-file={name}", "--account=main", "--output=csv")
    found = await run(tmp_path, "lookup", *arguments, CONFIG)
    assert found.code == 0
    states = {(row["account"], row["reference_id"]): row["state"] for row in in_csv(found.output)}
    assert states == {("main", "a"): "not_found", ("b", "c"): "finished"}


async def test_bad_lines_of_a_file_keep_nothing_else_from_being_asked(
    tmp_path: Path, simulator: Simulator
) -> None:
    configure(tmp_path, simulator.url)
    long = "x" * 129
    (tmp_path / "ids.txt").write_text(f"good\ntwo words\n{long}\n=1+1\na/../x?b&c%20#\n[red]x\n")
    asked: set[str] = set()
    simulator.subscribe(lambda _, __, params, ___: asked.add(params["ReferenceId"]))
    found = await run(tmp_path, "lookup", "--from-file=ids.txt", CONFIG)
    assert found.code == 1
    assert [line.partition(" ")[0] for line in found.errors.splitlines()[:4]] == [
        f"ids.txt:{line}:" for line in (2, 3, 4, 6)
    ]
    names = [line.split()[0] for line in found.output.splitlines()[1:]]
    assert names == ["good", "a/../x?b&c%20"]
    assert asked == {*names}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", "expected ids or --from-file"),
        ("a --account=c", "--account"),
        ("a", "expected --account, because several accounts"),
        ("--account=main x\N{NO-BREAK SPACE}y", "REFERENCE_ID"),
        ("--account=main " + "x" * 129, "is longer than 128"),
        ("--from-file=missing.csv", "does not exist"),
        ("--from-file=config.toml", ".csv, .txt"),
        ("a --output=xml", "--output"),
        ("a --output-file=results.txt", "--output-file"),
        ("a --output-file=results.csv --output=json", "is csv, not json"),
        ("a --rate=0", "--rate"),
    ],
)
def test_wrong_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, expected: str
) -> None:
    configure(tmp_path, "http://127.0.0.1:9", "main", "b")
    (tmp_path / "config.toml").touch()
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(commands, ["lookup", *filter(None, arguments.split(" ")), CONFIG])
    assert (found.exit_code, found.stdout) == (2, "")
    assert expected in found.stderr.splitlines()[-1]


async def test_refused_credentials_cost_two_requests(tmp_path: Path, simulator: Simulator) -> None:
    configure(tmp_path, simulator.url, "main", "b")
    simulator.put_account(replace(MAIN, state=AccountState.REVOKED))
    ids = "".join(f"call-{number},main\n" for number in range(100))
    (tmp_path / "ids.csv").write_text(f"reference_id,account\nother,b\n{ids}")
    found = await run(tmp_path, "lookup", "--from-file=ids.csv", CONFIG, "--output=csv")
    assert found.code == 1
    assert found.errors == "1 of 101 calls answered; not: 100 auth\n"
    outcomes = Counter(
        (row["account"], row["outcome"], row["code"]) for row in in_csv(found.output)
    )
    assert outcomes == {("main", "auth", "101"): 100, ("b", "not_found", "105"): 1}
    assert simulator.traffic.total("main") == 2


async def test_throttling_is_obeyed_but_not_for_ever(tmp_path: Path, simulator: Simulator) -> None:
    configure(tmp_path, simulator.url, "main", "b")
    ids = place(simulator, 20)
    rows = [*(f"{name},main" for name in ids), "x,b", "y,b"]
    (tmp_path / "ids.csv").write_text("\n".join(["reference_id,account", *rows]))
    twice = Fault(FaultKind.STATUS, account="main", status=429, retry_after="6", count=2)
    simulator.faults.set("twice", twice)
    simulator.faults.set("ever", Fault(FaultKind.STATUS, account="b", status=503, retry_after="1"))
    loop = asyncio.get_running_loop()
    began = loop.time()
    found = await run(tmp_path, "lookup", "--from-file=ids.csv", CONFIG, "--output=csv")
    assert loop.time() - began > 5.9
    assert found.code == 1
    told = found.errors.splitlines()
    assert "main: throttled: the provider throttles requests; continuing in 6 s" in told
    assert told[-1] == "20 of 22 calls answered; not: 2 throttled"
    outcomes = Counter((row["account"], row["outcome"]) for row in in_csv(found.output))
    assert outcomes == {("main", "ok"): 20, ("b", "throttled"): 2}
    assert (simulator.traffic.total("main"), simulator.traffic.total("b")) == (22, 2 * TRIES)


BAD_IDS = {
    "http_error": Fault(FaultKind.STATUS, status=500),
    "throttled": Fault(FaultKind.STATUS, status=503, retry_after="900"),
}


@pytest.mark.parametrize("outcome", BAD_IDS)
async def test_bad_ids_do_not_hold_up_good_ones(
    tmp_path: Path, simulator: Simulator, outcome: str
) -> None:
    configure(tmp_path, simulator.url, "main")
    good = place(simulator, 40)
    bad = [f"BAD-{number}" for number in range(1 if outcome == "throttled" else 10)]
    for name in bad:
        simulator.add_call("main", name, Plan())
        simulator.faults.set(name, replace(BAD_IDS[outcome], reference_id=name))
    (tmp_path / "ids.txt").write_text("\n".join([*bad, *good]))
    found = await run(
        tmp_path, "lookup", "--account=main", "--from-file=ids.txt", CONFIG, "--output=csv"
    )
    outcomes = Counter(row["outcome"] for row in in_csv(found.output))
    assert outcomes == {"ok": len(good), outcome: len(bad)}


FAULTS = {
    "connection": Fault(FaultKind.RESET),
    "bad_response": Fault(FaultKind.HTML),
    "http_error": Fault(FaultKind.STATUS, status=500),
    "timeout": Fault(FaultKind.HANG),
}


async def test_what_fails_is_tried_three_times(tmp_path: Path, simulator: Simulator) -> None:
    accounts = ""
    for name, fault in FAULTS.items():
        simulator.put_account(Account(name, name, "s"))
        simulator.add_call(name, f"call-{name}", Plan())
        simulator.faults.set(name, replace(fault, account=name))
        accounts += (
            f"  - {{name: {name}, api_key: {name}, secret_key: s, base_url: '{simulator.url}'}}\n"
        )
    (tmp_path / "config.yaml").write_text(f"accounts:\n{accounts}polling: {{timeout: 1s}}\n")
    rows = [f"call-{name},{name}" for name in FAULTS]
    (tmp_path / "ids.csv").write_text("\n".join(["reference_id,account", *rows]))
    arguments = ("lookup", "--from-file=ids.csv", CONFIG, "--output=json")
    found = await run(tmp_path, *arguments)
    assert found.code == 1
    lines = {line["account"]: line for line in in_json(found.output)}
    assert {name: line["outcome"] for name, line in lines.items()} == {
        name: name for name in FAULTS
    }
    assert all(line["message"] and line["state"] is None for line in lines.values())
    for name in FAULTS:
        # The HTTP library asks anew by itself where a connection was reset before any answer.
        assert simulator.traffic.total(name) == TRIES * (2 if name == "connection" else 1), name
    for name, fault in FAULTS.items():
        simulator.faults.set(name, replace(fault, account=name, count=2))
    assert (await run(tmp_path, *arguments)).code == 0


async def test_nothing_shows_a_key_or_a_phone_number(tmp_path: Path, simulator: Simulator) -> None:
    configure(tmp_path, simulator.url)
    told = ["call to 0901 234 567 refused", f"ApiKey={KEY} is odd", "SecretKey=" + SECRET]
    shown = ""
    for output in ("table", "json", "csv"):
        for message in told:
            body = json.dumps({"CodeResult": "104", "ErrorMessage": message})
            simulator.faults.set(message, Fault(FaultKind.RAW, body=body, count=1))
        found = await run(tmp_path, "lookup", "a", "b", "c", CONFIG, f"--output={output}")
        assert found.code == 1
        assert found.output.count("call to *** refused") == 1
        assert found.output.count("withheld") == 2
        shown += found.output + found.errors
    assert not any(hidden in shown for hidden in (KEY, SECRET, "234", "ApiKey=", "http://"))


async def test_no_faster_than_it_is_told(tmp_path: Path, simulator: Simulator) -> None:
    configure(tmp_path, simulator.url)
    ids = place(simulator, 60)
    found = await run(tmp_path, "lookup", *ids, CONFIG, "--output=csv", "--rate=40")
    assert found.code == 0
    assert simulator.traffic.peak_rate["main"] <= 41


@pytest.mark.parametrize("output", ["table", "csv"])
async def test_a_closed_pipe(tmp_path: Path, simulator: Simulator, output: str) -> None:
    configure(tmp_path, simulator.url, rate=2000 if output == "table" else 500)
    (tmp_path / "ids.txt").write_text("\n".join(place(simulator, 2000)))
    arguments = ("lookup", "--from-file=ids.txt", f"--output={output}", CONFIG)
    with piped(tmp_path, *arguments) as (command, output_of):
        assert await asyncio.to_thread(output_of.read, 1)
    found = await command.end()
    assert found.errors.count("\n") <= 1
    if output != "table":  # which is printed at the end
        assert found.code == 1
        assert simulator.traffic.total() < 1000


async def test_who_reads_slowly_makes_no_request_late(tmp_path: Path, simulator: Simulator) -> None:
    configure(tmp_path, simulator.url)
    (tmp_path / "ids.txt").write_text("\n".join(place(simulator, 3000)))
    arguments = ("lookup", "--from-file=ids.txt", CONFIG, "--output=json")
    with piped(tmp_path, *arguments) as (command, output):
        await until(lambda: simulator.traffic.total() == 3000)
        assert len(in_json(output.read().decode())) == 3000
    assert (await command.end()).code == 0
