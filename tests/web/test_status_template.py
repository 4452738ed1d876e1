"""The status page as text: everything that it can show, and everything that it must not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from html.parser import HTMLParser
from importlib.resources import files
from string import Formatter
from urllib.parse import urlsplit

import pytest

from exporter.calls import CallState, Result, Status
from exporter.canaries.canaries import CanaryNumbers
from exporter.esms.codes import Outcome
from exporter.ids import Kind
from exporter.ledger.canary_runs import CanaryResult
from exporter.ledger.history import EventKind
from exporter.ledger.notifications import NotificationRecord, NotificationState
from exporter.ledger.types import FinishedCall
from exporter.notify.dispatcher import TargetStatus
from exporter.polling.stats import Balance
from exporter.recent_results import Recent, RecentResults
from exporter.web.status_page import (
    LANGUAGES,
    AccountView,
    CallView,
    Language,
    SourceView,
    StatusTemplate,
    StatusView,
    Viewer,
    choose_language,
)
from tests.web.sample import FAILED, KNOWN, NOW, VIETNAM, account, sample, sample_call

HOSTILE = "<script>alert(1)</script>\"'&{{ 7*7 }}{reason}%s\u202e"

WORDS = {code: Language(code) for code in LANGUAGES}

# Neither content nor a closing tag.
_VOID = {"input", "meta", "path"}


class Page(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.texts.append(data)


@pytest.fixture(scope="module")
def template() -> StatusTemplate:
    return StatusTemplate("/m")


def draw(
    template: StatusTemplate,
    view: StatusView | CallView,
    language: str = "en",
    query: Mapping[str, str] | None = None,
) -> Page:
    return Page(template.render(view, language, query or {}, VIETNAM))


def with_account(**changes: object) -> StatusView:
    accounts = [AccountView(account("main", **changes), Recent())]
    return replace(sample(), accounts=accounts, canaries=(), targets=())


@pytest.mark.parametrize("language", LANGUAGES)
def test_all_of_it(template: StatusTemplate, language: str) -> None:
    page, words = draw(template, sample(), language), WORDS[language]
    for element, attributes in page.elements:
        assert element not in {"script", "link", "img", "iframe", "object"}
        assert not [
            name for name in attributes if name.startswith("on") or name in ("style", "src")
        ]
        assert not [value for value in attributes.values() if value and "{" in value]
    assert {"old-keys", "main", "hotline"} <= set(page.texts)
    for value in (*CallState, *Result):
        kind = "state" if isinstance(value, CallState) else "result"
        assert words.messages[f"{kind}_{value.value}"] in page.texts
    assert ("html", {"lang": language}) in page.elements
    numbers = [text for text in page.texts if text in ("7,730", "7.730")]
    assert set(numbers) == {"7,730" if language == "en" else "7.730"}


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("reason", Outcome)
def test_every_pause(template: StatusTemplate, language: str, reason: Outcome) -> None:
    said = "Slow down 0901234567 or +84 90 123-45-67, code 103"
    view = with_account(paused=reason, paused_until=NOW + 95, code="160", message=said)
    text, words = draw(template, view, language).text, WORDS[language]
    assert words.say("polling_paused", reason=words.say(f"pause_{reason.value}")) in text
    until = words.say("resumes", duration=words.duration(95), time="14:33:55 +07")
    until = until.replace("\xa0", " ")
    assert f"{until} {words.say('result_code', code='160')}." in text
    # Without what may be a telephone number.
    assert "Slow down *** or ***, code 103" in text
    over = with_account(paused=reason, paused_until=NOW - 1)
    assert words.say("retrying") in draw(template, over, language).text


def test_states_of_an_account(template: StatusTemplate) -> None:
    behind = "Behind: 1,200 calls are due, the oldest for 1 min 15 s."
    lagging = AccountView(
        account("main", overdue=1200, lag=75.0), Recent(), None, {"campaign": "<spring>"}
    )
    broke = AccountView(account("main"), Recent(), Balance(0, NOW))
    for view, shown in (
        (with_account(authorized=None), "✓ active … not checked yet 58"),
        (with_account(authorized=True), "✓ active ✓ accepted 58"),
        (with_account(authorized=False), "✓ active ✕ refused 58"),
        (with_account(authorized=False), "main: credentials refused."),
        (
            with_account(paused=Outcome.TIMEOUT, paused_until=NOW),
            "main: polling paused, requests time out.",
        ),
        (with_account(watched={}, last_success=0.0), "0 0 0 never \u2013"),
        (with_account(), "No call finished."),
        (with_account(overdue=1200, lag=75.0), behind),
        (replace(sample(), accounts=[lagging]), f"{behind} campaign=<spring>"),
        (sample(), "Balance 4,812,350 VND 1 min 14 s ago"),
        (replace(sample(), accounts=[broke]), "Balance 0 VND 0 s ago"),
    ):
        assert shown in draw(template, view).text
    assert "Số dư 4.812.350 đ 1 phút 14 giây trước" in draw(template, sample(), "vi").text
    page = draw(template, with_account(overdue=3, lag=0.2))
    assert not {"refused", "Behind:", "VND", "Behind"} & set(page.text.split())
    assert "svg" not in [element for element, _ in page.elements]


def test_messages_beside_calls(template: StatusTemplate) -> None:
    messages = {CallState.NEW: 1, CallState.QUEUED: 1500}
    results = RecentResults(lambda _at: NOW - 1)
    results.load(["main"], [], 0.0)
    ends = [
        (Result.SUCCESS, Status.ANSWERED, Kind.CALL),
        (Result.SUCCESS, Status.NO_ANSWER, Kind.CALL),
        *[(Result.SUCCESS, Status.NONE, Kind.MESSAGE)] * 7,
        (Result.FAILURE, Status.NONE, Kind.MESSAGE),
        (Result.FAILURE, Status.REJECTED, Kind.MESSAGE),
    ]
    for number, (result, status, kind) in enumerate(ends):
        call = FinishedCall("main", f"id-{number}", result, status, None, None, {}, NOW - 9, NOW)
        results.add(call._replace(kind=kind))
    recent = results.recent("main", NOW)
    view = replace(
        with_account(),
        accounts=[
            AccountView(account("main", messages=messages), recent),
            AccountView(account("calls"), Recent()),
        ],
        failures=recent.failures,
    )
    page = draw(template, view)
    for text in (
        "main ✓ active ✓ accepted 58 1,501 11 2 2 s ago",
        "calls ✓ active ✓ accepted 58 \N{EN DASH} 0 0 2 s ago",
        "Open messages State Messages Not polled yet 1 Waiting for approval 0 Queued 1,500",
        # The answers are those of calls.
        "Success ratio 81.8% Answered 50%",
        "Finished today Result Calls and messages Delivered 9 Failed 2",
        "Status today State Calls Answered 1 Not answered 1 Total 2",
        "▲ 9 delivered ▼ 2 failed",
        "▲ 1 answered ▼ 1 not answered",
        "Failed (message)",
        "Failed: Rejected (message)",
    ):
        assert text in page.text, text
    # In the head of the table, and in the section of the one account that has messages.
    assert page.texts.count("Open messages") == 2
    # Where there are no messages, nothing speaks of them.
    for view in (sample(), with_account()):
        assert "essage" not in draw(template, view).text.replace("Message: Authorize Failed", "")
    only = [AccountView(account("main", messages={}), replace(recent, minutes=()))]
    assert "svg" not in [
        element for element, _ in draw(template, replace(view, accounts=only)).elements
    ]


def given_up(**changes: object) -> NotificationRecord:
    state = NotificationState.GIVEN_UP
    answer = 112, "gone: status 410", None, NOW - 5
    return NotificationRecord(4711, "crm", "main", "A-1", state, *answer)._replace(**changes)  # type: ignore[arg-type] # a table of tests


@pytest.mark.parametrize(
    ("viewer", "seen"),
    [
        (Viewer(), set()),
        (Viewer({"main"}), {"main"}),
        (KNOWN, {"main", "hotline"}),
    ],
)
def test_who_sees_reference_ids(template: StatusTemplate, viewer: Viewer, seen: set[str]) -> None:
    view = sample(viewer)
    text = draw(template, view).text
    for call in view.failures:
        assert (call.reference_id in text) is (call.account in seen)
    assert ("ReferenceId" in text.replace("Log in to see ReferenceIds", "")) is viewer.authenticated
    assert ("Log in to see ReferenceIds." in text) is not viewer.authenticated
    # Nor what the provider and targets say, and what is in files: it may be an id too.
    for said in ("Authorize Failed", "calls/today.csv", "HTTP status 503"):
        assert (said in text) is viewer.authenticated


def test_all_that_may_be_wrong_or_missing(template: StatusTemplate) -> None:
    sources = [
        SourceView("callback", 0.0, 0, failing=False, problems=()),
        SourceView("sql:orders", NOW - 5, 1234, failing=True, problems=["no such table"]),
        SourceView("new-kind", NOW - 5, 0, failing=False, problems=()),
    ]
    problems = [f"config.yaml:{line}: accounts[{line}].name: is missing" for line in range(25)]
    for changes, *shown in (
        (
            {},
            "main-hourly main 14:00:00 +07 ✓ success 15:00:00 +07",
            "main-nightly main never \u2013 15 Mar, 01:39:00 +07",
            "crm ✕ paused 214 1 min 35 s http_error: HTTP status 503 12 s ago",
            "crm: notifications paused.",
            "home-assistant ✓ active 0 \u2013 \u2013",
            "This exporter main, hotline, old-keys exporter-b:21 spring, summer",
        ),
        ({"leases": {"": ["spring"]}}, "No exporter spring"),
        ({"failures": []}, "None."),
        (
            {"given_up": [given_up(), given_up(last_answer=None)]},
            "Notifications given up Time Target Account ReferenceId Attempts Last answer ID",
            "14:32:15 +07 crm main A-1 112 gone: status 410 4711",
            "112 \u2013 4711 To send one again: esms-exporter notifications retry",
            "esms-exporter notifications retry --config.file=FILE ID",
        ),
        (
            {"sources": sources},
            "eSMS callback … no data yet never 0",
            "SQL query orders ✕ failing no such table 14:32:15 +07 1,234",
            "new-kind ✓ OK",
            "Source “SQL query orders” failing: no such table",
        ),
        (
            {"problems": problems},
            "The last reload failed; the previous configuration remains active.",
            f"{problems[19]} 5 more: see the log.",
        ),
        ({"loaded_at": 0.0}, "Not loaded yet."),
        ({"not_ready": ["the ledger cannot be written"]}, "Not ready: the ledger cannot be"),
    ):
        text = draw(template, replace(sample(), **changes)).text
        for part in shown:
            assert part in text
    bare = replace(with_account(), sources=[], leases=None)
    text = draw(template, bare).text
    assert "✓ No problems." in text
    assert text.startswith("Voice calls \u2013 esms-exporter")
    assert not {"Canary calls", "Notifications", "Leases"} & set(text.split())
    text = draw(template, replace(bare, not_ready=["stopping"])).text
    assert text.startswith("(1) Voice calls \u2013 esms-exporter")


@pytest.mark.parametrize("language", LANGUAGES)
def test_nothing_is_taken_for_html_or_a_template(template: StatusTemplate, language: str) -> None:
    view = StatusView(
        NOW,
        [HOSTILE],
        [
            AccountView(
                account(
                    HOSTILE, paused=Outcome.AUTH, paused_until=NOW, code=HOSTILE, message=HOSTILE
                ),
                Recent(),
            )
        ],
        [FinishedCall(HOSTILE, HOSTILE, "failure", "other", None, None, {}, NOW, NOW)],
        [
            SourceView(HOSTILE, NOW, 0, failing=True, problems=[HOSTILE]),
            SourceView(f"sql:{HOSTILE}", NOW, 0, failing=True, problems=[HOSTILE]),
        ],
        NOW,
        [HOSTILE],
        KNOWN,
        [(HOSTILE, CanaryNumbers(HOSTILE, False, 0.0, {}, {}, NOW, CanaryResult.LATE), NOW)],
        [TargetStatus(HOSTILE, 1, NOW, True, (NOW, FAILED._replace(problem=HOSTILE)))],
        {HOSTILE: [HOSTILE]},
        [given_up(target=HOSTILE, account=HOSTILE, reference_id=HOSTILE, last_answer=HOSTILE)],
        [HOSTILE],
    )
    page = draw(template, view, language, {"refresh": "off"})
    assert page.text.count(HOSTILE) == 31
    assert "script" not in [element for element, _ in page.elements]
    assert {name for _, attributes in page.elements for name in attributes} == {
        name
        for _, attributes in draw(template, sample(), language, {"refresh": "off"}).elements
        for name in attributes
    } - {"d", "viewbox", "preserveaspectratio"}


@pytest.mark.parametrize(
    ("query", "links"),
    [
        ({}, {"?lang=vi", "?refresh=off"}),
        ({"lang": "en"}, {"?lang=vi", "?lang=en&refresh=off"}),
        (
            {"lang": "en", "refresh": "off"},
            {"?lang=vi&refresh=off", "?lang=en&refresh=off", "?lang=en"},
        ),
        ({"refresh": "off"}, {"?lang=vi&refresh=off", "?refresh=off", "./"}),
    ],
)
def test_switches_keep_each_other(
    template: StatusTemplate, query: dict[str, str], links: set[str]
) -> None:
    page = draw(template, sample(), query=query)
    found = {attributes["href"] or "" for element, attributes in page.elements if element == "a"}
    calls = {link for link in found if link.startswith("calls/")}
    kept = query.get("lang")
    assert {urlsplit(link).query for link in calls} == {f"lang={kept}" if kept else ""}
    accounts = {"#accounts", "#account-1", "#account-2", "#account-3"}
    assert found - calls == {*links, *accounts, "m", "-/healthy", "-/ready"}


def test_given_up_notifications_link_to_calls_of_configured_accounts(
    template: StatusTemplate,
) -> None:
    kept = [given_up(), given_up(account="removed", reference_id="A-2")]
    page = draw(template, replace(sample(), failures=[], given_up=kept, searched=["main"]))
    links = [attributes["href"] or "" for element, attributes in page.elements if element == "a"]
    assert [link for link in links if link.startswith("calls/")] == ["calls/main/A-1"]
    assert "removed A-2 112" in page.text


def test_the_page_of_a_call(template: StatusTemplate) -> None:
    view = sample_call()
    text = draw(template, view).text
    for part in (
        "Failed: Busy Account main campaign otp First watched 14:29:00 +07",
        "Finished 14:31:40 +07 Duration 13 s Key pressed * Price 1,420.5 VND",
        "14:29:00 +07 Added \N{EN DASH}",
        "14:29:20 +07 State: Queued",
        "14:31:00 +07 Callback: polled at once",
        "14:31:40 +07 Finished: Failed: Busy \N{EN DASH}",
        "14:31:42 +07 crm: notification failed HTTP status 503",
        "14:32:12 +07 crm: notification delivered HTTP status 204",
        "As of 14:32:20 +07.",
    ):
        assert part in text, part
    assert "Thất bại: Máy bận Tài khoản main" in draw(template, view, "vi").text
    assert view.call is not None
    receivers = {"status": Status.NONE, "delivered": 2, "failed": 1}
    changes = {"kind": Kind.MESSAGE, **receivers, "history": [], "polls": 3}
    message = view.call.model_copy(update=changes)
    text = draw(template, view._replace(call=message)).text
    assert "Message 8D1F" in text
    assert "Failed Account" in text
    assert "Receivers reached 2 Receivers failed 1" in text
    assert "Polls since the start 3 Next poll polling now" in text
    # Another exporter of the ledger is newer.
    event = view.call.history[1].model_copy(update={"subject": HOSTILE, "detail": HOSTILE})
    names = {"account": HOSTILE, "reference_id": HOSTILE, "labels": {HOSTILE: HOSTILE}}
    hostile = view.call.model_copy(update={**names, "history": [event]})
    page = draw(template, view._replace(call=hostile, accounts=[HOSTILE]))
    assert page.text.count(HOSTILE) == 8
    assert "script" not in [element for element, _ in page.elements]
    text = draw(template, CallView(NOW, Viewer(), [])).text
    assert text.startswith("Access required \N{EN DASH} esms-exporter")
    assert "Find call" not in text
    text = draw(template, CallView(NOW, KNOWN, ["main"])).text
    assert text.startswith("No such call \N{EN DASH} esms-exporter")
    assert "Find call" in text


# Languages.


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name is not None}


def test_every_catalogue_is_complete() -> None:
    english = WORDS["en"]
    folder = files("exporter.web") / "messages"
    assert {path.name for path in folder.iterdir()} == {f"{code}.yaml" for code in LANGUAGES}
    for code, words in WORDS.items():
        messages = words.messages
        assert messages.keys() == english.messages.keys()
        for key, text in messages.items():
            assert isinstance(text, str), (code, key)
            assert text.strip() == text != "", (code, key)
            # A number may be told in another order, or a month without its name, but not left out.
            assert placeholders(text) == placeholders(english.messages[key]), (code, key)
        assert len(messages["months"].split()) == 12


def test_nothing_is_said_that_is_not_in_the_catalogue() -> None:
    english = WORDS["en"]
    templates = files("exporter.web") / "templates"
    text = "".join(path.read_text() for path in templates.iterdir() if path.name.endswith(".html"))
    assert set(re.findall(r"""\bt\("([a-z_]+)"[,)]""", text)) <= english.messages.keys()
    said = set(re.findall(r'"([a-z_]+)"', text)) & english.messages.keys()
    kinds: dict[str, type[StrEnum]] = {
        "state": CallState, "result": Result, "status": Status, "pause": Outcome,
        "canary": CanaryResult, "event": EventKind, "kind": Kind,
    }  # fmt: skip
    said |= {f"{kind}_{value.value}" for kind, values in kinds.items() for value in values}
    assert said <= english.messages.keys()
    made = (
        "attention_", "callback_", "chart_", "duration_", "key_", "source_", "language", "months",
        "thousands", "decimal", "percent", "date",
    )  # fmt: skip
    assert [key for key in english.messages.keys() - said if not key.startswith(made)] == []


def test_the_language_that_a_reader_likes_best() -> None:
    for accept, code in {
        "": "en", "vi": "vi", "vi-VN,vi;q=0.9,en;q=0.8": "vi", "en-US,en;q=0.9,vi;q=0.8": "en",
        "fr, vi;q=0.1": "vi", "fr, de": "en", "en;q=0.3, VI ; q=0.7": "vi", "vi;q=0": "en",
        "vi;q=nan": "en", "vi;q=7": "en", "vi;q=x, en;q=0.1": "en", "video": "en",
    }.items():  # fmt: skip
        assert choose_language(accept) == code, accept


@pytest.mark.parametrize(
    ("kind", "value", "en", "vi"),
    [
        ("number", 0, "0", "0"),
        ("number", 1234567, "1,234,567", "1.234.567"),
        ("percent", 0.0, "0%", "0%"),
        ("percent", 0.9751, "97.5%", "97,5%"),
        ("percent", 0.5, "50%", "50%"),
        ("percent", 0.99999, "99.9%", "99,9%"),  # something has failed
        ("percent", 0.00001, "0.1%", "0,1%"),  # something has not
        ("percent", 1.0, "100%", "100%"),
        ("duration", -1, "0 s", "0 giây"),
        ("duration", 59.4, "59 s", "59 giây"),
        ("duration", 59.6, "1 min 0 s", "1 phút 0 giây"),
        ("duration", 3725, "1 h 2 min", "1 giờ 2 phút"),
        ("duration", 90_000, "1 d 1 h", "1 ngày 1 giờ"),
        ("duration", 2000 * 86_400, "2,000 d 0 h", "2.000 ngày 0 giờ"),
        ("time", NOW - 15, "14:32:05 +07", "14:32:05 +07"),
        ("time", NOW - 86_400, "13 Mar, 14:32:20 +07", "13/3, 14:32:20 +07"),
        # Yesterday here is today in UTC.
        ("time", NOW - 15 * 3600, "13 Mar, 23:32:20 +07", "13/3, 23:32:20 +07"),
    ],
)
def test_how_values_are_written(kind: str, value: float, en: str, vi: str) -> None:
    more = (NOW, VIETNAM) if kind == "time" else ()
    written = [getattr(words, kind)(value, *more) for words in WORDS.values()]
    assert [text.replace("\xa0", " ") for text in written] == [en, vi]
