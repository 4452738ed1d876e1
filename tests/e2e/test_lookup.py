"""Look-ups by hand: real processes that ask a stand-in for the provider."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from exporter.lookup import COLUMNS, TRIES
from exporter.simulator import Account, AccountState, Fault, FaultKind, Plan, Simulator
from tests.e2e.commands import CONFIG, Command, in_csv, in_json, piped, run
from tests.e2e.processes import configure
from tests.waiting import until

MAIN = Account("main", "key-main", "secret-main")


def prepare(folder: Path, simulator: Simulator, count: int, rate: float = 2000) -> list[str]:
    """Write the configuration of `main`, and place calls; returns their ids, also in a file."""
    configure(folder, simulator, accounts=[MAIN], account={"rate_limit": rate})
    ids = [f"CALL-{number:05}" for number in range(count)]
    for name in ids:
        simulator.add_call("main", name, Plan())
    (folder / "ids.txt").write_text("\n".join(ids))
    return ids


ENDS = {
    "answered": (Plan(duration=61, ivr="1"), ("success", "answered", 61.0, "1")),
    "queued": (Plan(queued=1000), (None, None, None, None)),
    "odd": (Plan(call_status="?", duration=-1, sent_result=0), ("failure", "other", None, None)),
}


async def test_all_outputs(tmp_path: Path, simulator: Simulator) -> None:
    prepare(tmp_path, simulator, 0)
    for name, (plan, _) in ENDS.items():
        simulator.add_call("main", name, plan)
    ids = [*ENDS, "unknown"]
    found = await run(tmp_path, "lookup", *ids, CONFIG, "--output=json")
    assert (found.code, found.errors) == (0, "")
    lines = {line["reference_id"]: line for line in in_json(found.output)}
    assert {*lines} == {*ids}
    for name, (_, expected) in ENDS.items():
        line = lines[name]
        assert line["state"] == ("queued" if name == "queued" else "finished")
        assert expected == tuple(line[key] for key in ("result", "status", "duration", "key"))
    assert {**lines["unknown"], "asked_at": None} == {
        **dict.fromkeys(COLUMNS),
        "reference_id": "unknown",
        "account": "main",
        "kind": "call",
        "state": "not_found",
        "outcome": "not_found",
        "code": "105",
        "message": "ReferenceId not found",
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
        *(["answered", "success"], ["queued", "queued"]),
        *(["odd", "failure"], ["unknown", "not_found"]),
    ]
    assert simulator.traffic.total() == 3 * len(ids)
    assert not (tmp_path / "ledger.db").exists()


MESSAGES = {
    "delivered": (Plan(receivers=1, price=470), ("success", 1, 0, 470.0)),
    "partly": (Plan(receivers=169, failed=69, price=79_430), ("failure", 100, 69, 79_430.0)),
    "sent": (Plan(receivers=1, sent=1000), (None, None, None, None)),
}


async def test_both_kinds(tmp_path: Path, simulator: Simulator) -> None:
    """The option is for ids without a kind, and `default_kind` where it is not given."""
    config = configure(tmp_path, simulator)
    document = json.loads(config.read_text())
    document["accounts"][1]["default_kind"] = "message"
    config.write_text(json.dumps(document))
    for account in ("main", "other"):
        for name, (plan, _) in MESSAGES.items():
            simulator.add_call(account, name, plan)
        simulator.add_call(account, "call", Plan(duration=7))
    rows = ["call,main,", "call,other,call", "sent,other,message", "call,other,message"]
    (tmp_path / "ids.csv").write_text("\n".join(["reference_id,account,kind", *rows]))
    file, output = "--from-file=ids.csv", "--output-file=results.csv"

    found = await run(tmp_path, "lookup", *MESSAGES, "--account=other", CONFIG, "--output=json")
    assert (found.code, found.errors) == (0, "")
    lines = {line["reference_id"]: line for line in in_json(found.output)}
    for name, (_, expected) in MESSAGES.items():
        line = lines[name]
        assert (line["kind"], line["duration"], line["key"]) == ("message", None, None)
        assert expected == tuple(line[key] for key in ("result", "delivered", "failed", "price"))
    assert lines["sent"]["state"] == "awaiting_report"

    found = await run(tmp_path, "lookup", file, CONFIG)
    assert found.code == 0
    assert [line.split()[:4] for line in found.output.splitlines()] == [
        ["reference_id", "account", "kind", "state"],
        ["call", "main", "call", "success"],
        ["call", "other", "call", "success"],
        ["sent", "other", "message", "awaiting_report"],
        ["call", "other", "message", "not_found"],
    ]

    # The option does not replace the kind of a row, and an answer is that of one kind.
    for option, known, asked in (("call", 0, 4), ("call", 4, 0), ("message", 3, 1)):
        before = simulator.traffic.total()
        found = await run(tmp_path, "lookup", file, f"--kind={option}", output, CONFIG)
        assert simulator.traffic.total() - before == asked
        already = f", {known} of them already in the file" if known else ""
        assert (found.code, found.errors) == (0, f"4 of 4 calls answered{already}\n")
    results = in_csv((tmp_path / "results.csv").read_text())
    assert Counter((row["kind"], row["state"]) for row in results) == {
        ("call", "finished"): 2,
        ("message", "awaiting_report"): 1,
        ("message", "not_found"): 2,
    }

    named = ("lookup", "partly", "--account=main", "--kind=message", CONFIG)
    head, row = (await run(tmp_path, *named)).output.splitlines()
    assert head.split() == [
        *("reference_id", "account", "state", "status", "delivered", "failed", "price")
    ]
    assert row.split() == ["partly", "main", "failure", "none", "100", "69", "79,430", "VND"]


async def test_files_as_watched_ones(tmp_path: Path, simulator: Simulator) -> None:
    configure(tmp_path, simulator)
    (tmp_path / "ids.json").write_text('["a", "A ", {"reference_id": "c", "account": "other"}]')
    simulator.add_call("other", "c", Plan())
    arguments = ("A", "--from-file=ids.json", "--account=main", "--output=csv")
    found = await run(tmp_path, "lookup", *arguments, CONFIG)
    assert found.code == 0
    states = {(row["account"], row["reference_id"]): row["state"] for row in in_csv(found.output)}
    assert states == {("main", "A"): "not_found", ("other", "c"): "finished"}
    # One that is named twice is asked for once.
    assert simulator.traffic.total() == 2


async def test_bad_lines_of_a_file_keep_nothing_else_from_being_asked(
    tmp_path: Path, simulator: Simulator
) -> None:
    prepare(tmp_path, simulator, 0)
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


async def test_refused_credentials_cost_two_requests(tmp_path: Path, simulator: Simulator) -> None:
    configure(tmp_path, simulator)
    simulator.put_account(replace(MAIN, state=AccountState.REVOKED))
    ids = "".join(f"call-{number},main\n" for number in range(100))
    (tmp_path / "ids.csv").write_text(f"reference_id,account\nx,other\n{ids}")
    found = await run(tmp_path, "lookup", "--from-file=ids.csv", CONFIG, "--output=csv")
    assert found.code == 1
    assert found.errors == "1 of 101 calls answered; not: 100 auth\n"
    outcomes = Counter(
        (row["account"], row["outcome"], row["code"]) for row in in_csv(found.output)
    )
    assert outcomes == {("main", "auth", "101"): 100, ("other", "not_found", "105"): 1}
    assert simulator.traffic.total("main") == 2


async def test_throttling_is_obeyed_but_not_for_ever(tmp_path: Path, simulator: Simulator) -> None:
    ids = prepare(tmp_path, simulator, 20)
    configure(tmp_path, simulator)
    rows = [*(f"{name},main" for name in ids), "x,other", "y,other"]
    (tmp_path / "ids.csv").write_text("\n".join(["reference_id,account", *rows]))
    twice = Fault(FaultKind.STATUS, account="main", status=429, retry_after="6", count=2)
    simulator.faults.set("twice", twice)
    ever = Fault(FaultKind.STATUS, account="other", status=503, retry_after="1")
    simulator.faults.set("ever", ever)
    loop = asyncio.get_running_loop()
    began = loop.time()
    found = await run(tmp_path, "lookup", "--from-file=ids.csv", CONFIG, "--output=csv")
    assert loop.time() - began > 5.9
    assert found.code == 1
    told = found.errors.splitlines()
    assert "main: throttled: the provider throttles requests; continuing in 6 s" in told
    assert told[-1] == "20 of 22 calls answered; not: 2 throttled"
    outcomes = Counter((row["account"], row["outcome"]) for row in in_csv(found.output))
    assert outcomes == {("main", "ok"): 20, ("other", "throttled"): 2}
    assert (simulator.traffic.total("main"), simulator.traffic.total("other")) == (22, 2 * TRIES)


@pytest.mark.parametrize(
    ("outcome", "bad", "fault"),
    [
        ("http_error", 10, Fault(FaultKind.STATUS, status=500)),
        ("throttled", 1, Fault(FaultKind.STATUS, status=503, retry_after="900")),
    ],
)
async def test_bad_ids_do_not_hold_up_good_ones(
    tmp_path: Path, simulator: Simulator, outcome: str, bad: int, fault: Fault
) -> None:
    ids = prepare(tmp_path, simulator, 40)
    for name in ids[:bad]:
        simulator.faults.set(name, replace(fault, reference_id=name))
    found = await run(tmp_path, "lookup", "--from-file=ids.txt", CONFIG, "--output=csv")
    outcomes = Counter(row["outcome"] for row in in_csv(found.output))
    assert outcomes == {"ok": len(ids) - bad, outcome: bad}


FAULTS = {
    "connection": Fault(FaultKind.RESET),
    "bad_response": Fault(FaultKind.HTML),
    "http_error": Fault(FaultKind.STATUS, status=500),
    "timeout": Fault(FaultKind.HANG),
}


async def test_what_fails_is_tried_three_times(tmp_path: Path, simulator: Simulator) -> None:
    for name, fault in FAULTS.items():
        simulator.put_account(Account(name, name, "s"))
        simulator.add_call(name, f"call-{name}", Plan())
        simulator.faults.set(name, replace(fault, account=name))
    configure(tmp_path, simulator, polling={"timeout": "1s"})
    rows = [f"call-{name},{name}" for name in FAULTS]
    (tmp_path / "ids.csv").write_text("\n".join(["reference_id,account", *rows]))
    found = await run(tmp_path, "lookup", "--from-file=ids.csv", CONFIG, "--output=json")
    assert found.code == 1
    lines = {line["account"]: line for line in in_json(found.output)}
    assert {name: line["outcome"] for name, line in lines.items()} == {
        name: name for name in FAULTS
    }
    assert all(line["message"] and line["state"] is None for line in lines.values())
    for name in FAULTS:
        # The HTTP library asks anew by itself where a connection was reset before any answer.
        assert simulator.traffic.total(name) == TRIES * (2 if name == "connection" else 1), name


async def test_nothing_shows_a_key_or_a_phone_number(tmp_path: Path, simulator: Simulator) -> None:
    prepare(tmp_path, simulator, 0)
    keys = ("ApiKey=key-main is odd", "SecretKey=secret-main")
    for message in ("call to 0901 234 567 refused", *keys):
        body = json.dumps({"CodeResult": "104", "ErrorMessage": message})
        simulator.faults.set(message, Fault(FaultKind.RAW, body=body, count=1))
    found = await run(tmp_path, "lookup", "a", "b", "c", CONFIG)
    assert found.code == 1
    assert found.output.count("call to *** refused") == 1
    assert found.output.count("withheld") == 2
    shown = found.output + found.errors
    hidden = ("key-main", "secret-main", "234", "ApiKey=", "http://")
    assert not any(text in shown for text in hidden)


async def test_no_faster_than_it_is_told(tmp_path: Path, simulator: Simulator) -> None:
    prepare(tmp_path, simulator, 100)
    arguments = ("--from-file=ids.txt", CONFIG, "--output=csv", "--rate=40")
    assert (await run(tmp_path, "lookup", *arguments)).code == 0
    # Twice the rate, because a busy machine may see the requests of a second at once.
    assert simulator.traffic.peak_rate["main"] <= 81


@pytest.mark.parametrize("output", ["table", "csv"])
async def test_a_closed_pipe(tmp_path: Path, simulator: Simulator, output: str) -> None:
    prepare(tmp_path, simulator, 2000, 2000 if output == "table" else 500)
    arguments = ("lookup", "--from-file=ids.txt", f"--output={output}", CONFIG)
    with piped(tmp_path, *arguments) as (command, output_of):
        assert await asyncio.to_thread(output_of.read, 1)
    found = await command.end()
    assert found.errors.count("\n") <= 1
    if output != "table":  # which is printed at the end
        assert found.code == 1
        assert simulator.traffic.total() < 1000


async def test_who_reads_slowly_makes_no_request_late(tmp_path: Path, simulator: Simulator) -> None:
    prepare(tmp_path, simulator, 3000)
    arguments = ("lookup", "--from-file=ids.txt", CONFIG, "--output=json")
    with piped(tmp_path, *arguments) as (command, output):
        await until(lambda: simulator.traffic.total() == 3000)
        assert len(in_json(output.read().decode())) == 3000
    assert (await command.end()).code == 0
    assert simulator.traffic.peak_open["main"] <= 32


# Files of results: each call has its line, however a look-up ends.


@pytest.mark.parametrize(
    ("number", "ending"),
    [(signal.SIGKILL, "csv"), (signal.SIGKILL, "json"), (signal.SIGTERM, "csv")],
)
async def test_a_file_is_resumed(
    tmp_path: Path, simulator: Simulator, number: signal.Signals, ending: str
) -> None:
    ids = prepare(tmp_path, simulator, 300, rate=300)
    results = tmp_path / f"results.{ending}"
    arguments = ("lookup", "--from-file=ids.txt", f"--output-file={results.name}", CONFIG)
    read = in_csv if ending == "csv" else in_json
    process = Command(tmp_path, *arguments)
    await until(lambda: results.exists() and results.read_bytes().count(b"\n") > 50)
    process.send_signal(number)
    ended = await process.end()
    if number is signal.SIGKILL:
        results.write_bytes(results.read_bytes()[:-7])  # as a power cut leaves it
    else:
        assert ended.code == 1
        assert re.fullmatch(r"\d+ of 300 calls answered; not: \d+ not requested\n", ended.errors)
        assert results.read_bytes().endswith(b"\n")
    before = {row["reference_id"] for row in read(results.read_text().rpartition("\n")[0])}
    assert 40 <= len(before) < 300
    asked: set[str] = set()
    simulator.subscribe(lambda _, __, params, ___: asked.add(params["ReferenceId"]))
    for known, wanted in ((len(before), {*ids} - before), (300, set())):
        asked.clear()
        found = await run(tmp_path, *arguments)
        assert (found.code, found.output) == (0, "")
        assert found.errors == f"300 of 300 calls answered, {known} of them already in the file\n"
        assert Counter(row["reference_id"] for row in read(results.read_text())) == Counter(ids)
        assert asked == wanted


async def test_two_do_not_write_one_file(tmp_path: Path, simulator: Simulator) -> None:
    prepare(tmp_path, simulator, 0)
    simulator.faults.set("late", Fault(FaultKind.LATENCY, seconds=0.5, count=1))
    arguments = ("lookup", "a", "--output-file=results.csv", CONFIG)
    first = Command(tmp_path, *arguments)
    await until(lambda: simulator.traffic.open == 1)
    first.send_signal(signal.SIGSTOP)
    second = await run(tmp_path, *arguments)
    assert second.code == 1
    assert second.errors == "esms-exporter: results.csv: is in use by another look-up\n"
    first.send_signal(signal.SIGCONT)
    assert (await first.end()).code == 0
