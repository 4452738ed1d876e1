"""The page of a call, of a real exporter behind its real server, and its history in the API."""

from __future__ import annotations

import re
from datetime import datetime
from urllib.parse import urljoin

from sqlalchemy import Engine, delete, event
from structlog.testing import capture_logs

from exporter.calls import CallState
from exporter.config import ApiConfig
from exporter.ids import reference_id
from exporter.ledger.schema import calls
from exporter.ledger.types import NewCall
from exporter.simulator import Plan
from tests.waiting import until
from tests.web.bench import Bench, basic, users

ID, PATH = "Ab-1", "/calls/main/aB1"
FAILED = Plan(sent_result=0, call_status="BUSY")


async def finished(bench: Bench, *names: str, account: str = "main") -> None:
    """Have calls that failed in the ledger."""
    for name in names:
        bench.simulator.add_call(account, name, FAILED)
    await bench.app.calls.push([[NewCall(account, reference_id(name), {}) for name in names]])
    await until(lambda: bench.app.calls.count == 0)


async def test_who_may_see_a_call(idle: Bench) -> None:
    await idle.start("")
    await finished(idle, ID)
    right, wrong = basic("reader", "right"), basic("reader", "wrong")
    every, other, unknown = "Bearer token-all", "Bearer token-b", "Bearer token-"

    async def seen(expected: dict[str, int]) -> None:
        for header, status in expected.items():
            for path in (PATH, "/calls/main/unknown"):
                found = 404 if status == 200 and path != PATH else status
                response, page = await idle.get(path, Authorization=header or "none")
                assert response.status == found, (header, path)
                assert (ID in page) is (found == 200), (header, path)
                assert ("WWW-Authenticate" in response.headers) is (found == 401), header

    await seen({"": 401, right: 401, unknown: 401, every: 200, other: 404})
    _, page = await idle.get(PATH)
    assert "Access required" in page
    assert "basic_auth_users" in page
    assert 'role="search"' not in page
    await idle.rewrite(users(reader="right"))
    await seen({"": 401, wrong: 401, unknown: 401, right: 200, every: 200, other: 404})
    # A token opens the pages of calls only.
    assert await idle.status("/metrics", Authorization=every) == 401
    # Without users and tokens, the page is refused.
    await idle.configure(api=ApiConfig())
    await seen({"": 401, wrong: 401, every: 401, right: 200})
    await idle.rewrite("")
    await seen({"": 401, wrong: 401, every: 401, right: 401})


async def test_what_is_no_call(bench: Bench) -> None:
    await finished(bench, ID)
    await bench.push("deleted")
    assert (await bench.ask("DELETE", "/calls/main/deleted"))[0] == 204
    for path in (
        "/calls/main/unknown", "/calls/main/deleted", "/calls/b/ab1", "/calls/nobody/ab1",
        "/calls/main/%3Cb%3E", "/calls/main/%00", "/calls/main/1,2E%2B3",
        f"/calls/main/{'x' * 500}",
    ):  # fmt: skip
        response, page = await bench.get(path, Authorization="Bearer token-all")
        assert response.status == 404, path
        assert "No such call" in page
        assert 'role="search"' in page
        assert "<b>" not in page
    assert await bench.status("/calls/main/", Authorization="Bearer token-all") == 404
    # The ledger fails.
    async with bench.ledger_held():
        assert await bench.status("/calls/main/x") == 401  # checked before the ledger


async def test_a_call_that_is_pruned_while_it_is_read(bench: Bench) -> None:
    await finished(bench, ID)
    database = bench.app.ledger.database

    def prune(_c: object, _r: object, sql: str, *_: object) -> None:
        if "FROM calls" in sql and "WHERE calls.id =" in sql:  # after the call was found
            database.run(lambda connection: connection.execute(delete(calls)))

    event.listen(Engine, "before_cursor_execute", prune)
    try:
        status, call = await bench.ask("GET", "/calls/main/ab1")
    finally:
        event.remove(Engine, "before_cursor_execute", prune)
    assert (status, [found["event"] for found in call["history"]]) == (200, ["watched", "finished"])
    assert (await bench.ask("GET", "/calls/main/ab1"))[0] == 404


async def test_the_search_box_and_the_newest_failures_lead_to_the_call(idle: Bench) -> None:
    prefix = "/monitoring/esms"
    await idle.start(route_prefix=prefix, external_path="/esms")
    await finished(idle, "a/b", ID)
    login = "Bearer token-all"
    for account, text, query, location in (
        ("main", "%20a/b%20", "&lang=vi", "./calls/main/a%2Fb?lang=vi"),
        ("main", "Ab-1", "&lang=x&more=1", "./calls/main/Ab-1"),
        ("m%2F..", "%C3%A9%3F%23", "", "./calls/m%2F../%C3%A9%3F%23"),
        ("main", "%20", "", "./"),
        ("", "x", "", "./"),
    ):
        found = f"{prefix}/calls?account={account}&reference_id={text}{query}"
        response, _ = await idle.get(found, Authorization=login)
        assert (response.status, response.headers["Location"]) == (303, location)
    _, page = await idle.get(f"{prefix}/?lang=vi", Authorization=login)
    assert '<a href="?lang=vi&amp;refresh=off">Tìm cuộc gọi</a>' in page
    assert 'role="search"' not in page  # a refresh would empty it
    _, page = await idle.get(f"{prefix}/?lang=vi&refresh=off", Authorization=login)
    assert re.findall(r"<option>(\w+)<", page) == ["main", "b"]
    assert 'name="lang" value="vi"' in page
    links = [link for link in re.findall(r'href="([^"]+)"', page) if link.startswith("calls/")]
    assert links == ["calls/main/Ab-1?lang=vi", "calls/main/a%2Fb?lang=vi"]
    for link in links:
        here = urljoin(f"{prefix}/", link)
        response, page = await idle.get(here, Authorization=login)
        assert response.status == 200
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        assert "form-action 'self'" in response.headers["Content-Security-Policy"]
        assert '<html lang="vi">' in page
        assert "Thất bại: Máy bận" in page
        others = re.findall(r'(?:href|action)="([^"]+)"', page)
        assert len(others) == 7
        for other in others:
            leads = await idle.status(urljoin(here, other), Authorization=login)
            assert leads == (303 if other.endswith("calls") else 200), other
    # Others see neither.
    _, page = await idle.get(f"{prefix}/")
    assert "calls/" not in page
    assert 'role="search"' not in page


async def test_the_timeline_of_a_call_as_page_and_as_json(bench: Bench) -> None:
    bench.simulator.add_call("main", ID, Plan(unknown_for=0.5, queued=0.5, sent=1e9))
    await bench.push(ID, campaign="otp")
    poller = bench.app.accounts["main"].poller
    await until(lambda: poller.calls[1].state is CallState.AWAITING_REPORT)
    with capture_logs() as logs:
        response, page = await bench.get(PATH, Authorization="Bearer token-all")
    assert response.status == 200
    assert {line["event"] for line in logs} <= {"call updated"}  # nothing logs the request
    texts = re.findall(r"<d[td]>(?:<time[^>]*>)?([^<]*)", page)
    facts = dict(zip(texts[::2], texts[1::2], strict=True))
    assert (facts["Account"], facts["campaign"]) == ("main", "otp")
    assert int(facts["Polls since the start"]) > 2
    assert facts.keys() >= {"First watched", "Next poll"}
    assert "Waiting for the report</h2>" in page
    bench.simulator.add_call("main", ID, Plan())
    await until(lambda: not poller.calls)
    status, call = await bench.ask("GET", "/calls/main/ab1")
    assert status == 200
    events = [(event["event"], event["subject"], event["detail"]) for event in call["history"]]
    assert events == [
        ("watched", "", None),
        ("state", "not_found", None),
        ("state", "queued", None),
        ("state", "awaiting_report", None),
        ("finished", "success", "answered"),
    ]
    times = [datetime.fromisoformat(event["at"]) for event in call["history"]]
    assert times == sorted(times)
    ends = (datetime.fromisoformat(call[name]) for name in ("first_watched", "finished_at"))
    assert (times[0], times[-1]) == (*ends,)
    _, page = await bench.get(PATH, Authorization="Bearer token-all")
    said = re.findall(r'data-name="Event"><div>([^<]*)', page)
    assert said == [
        "Added", "State: Not found", "State: Queued", "State: Waiting for the report",
        "Finished: Delivered: Answered",
    ]  # fmt: skip
    assert "Next poll" not in page
    # Turned off by a reload.
    ledger = bench.config.ledger.model_copy(update={"history": False})
    bench.config = bench.config.model_copy(update={"ledger": ledger})
    await bench.app.reload()
    assert not bench.app.ledger.store.settings.history
