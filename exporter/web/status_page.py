"""The status page and the page of a call: contents, languages, and access to ids."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from hashlib import sha256
from heapq import nlargest
from importlib.resources import files
from typing import Final, NamedTuple
from urllib.parse import quote, urlencode

import jinja2
import yaml
from markupsafe import Markup

import exporter
from exporter.account import AccountStatus
from exporter.app import App
from exporter.calls import CallState, Result
from exporter.calls import Status as CallStatus
from exporter.canaries.canaries import CanaryNumbers
from exporter.ids import Kind
from exporter.ledger.history import EventKind
from exporter.ledger.notifications import NEWEST, NotificationRecord
from exporter.ledger.types import FinishedCall
from exporter.metrics.exposition import clauses
from exporter.notify.dispatcher import TargetStatus
from exporter.polling.stats import Balance
from exporter.recent_results import Recent
from exporter.secrets import mask_phone_numbers
from exporter.web.schemas import CallDetails, HistoryEvent

REFRESH: Final = 15
"""Seconds after which a browser reloads the page."""

FAILURES: Final = 20
"""Failures that are shown."""

LINES: Final = 20
"""Lines of problems that are shown of one source."""

LANGUAGES: Final = ("en", "vi")
"""The languages that the page has, the default first."""


class Viewer(NamedTuple):
    """Who requests the page: the accounts whose ids are shown."""

    accounts: Collection[str] | None = ()  # None for all; empty without a password or token

    @property
    def authenticated(self) -> bool:
        """Whether the request has a password or a token."""
        return self.accounts is None or bool(self.accounts)

    def sees(self, account: str) -> bool:
        return self.accounts is None or account in self.accounts

    def accounts_of(self, app: App) -> list[str]:
        """Return the configured accounts whose calls are shown, also those that others poll."""
        configured = app.config.accounts if app.config else ()
        return [account.name for account in configured if self.sees(account.name)]


@dataclass(frozen=True, slots=True)
class AccountView:
    """An account: its status, its recent results, its balance, and the labels that lag most."""

    status: AccountStatus
    recent: Recent
    balance: Balance | None = None
    lagging: Mapping[str, str] = field(default_factory=dict)


class SourceView(NamedTuple):
    """A source; `last_success` is a Unix time, 0 before the first."""

    name: str
    last_success: float
    errors: int
    failing: bool
    problems: Sequence[str]


@dataclass(frozen=True, slots=True)
class StatusView:
    """All that the page shows; times are Unix times."""

    now: float
    not_ready: Sequence[str]
    accounts: Sequence[AccountView]
    failures: Sequence[FinishedCall]
    sources: Sequence[SourceView]
    loaded_at: float
    problems: Sequence[str]
    viewer: Viewer
    canaries: Sequence[tuple[str, CanaryNumbers, float]] = ()  # with the time when each is due next
    targets: Sequence[TargetStatus] = ()
    # The accounts of the other exporters, under "" those of none; None if the ledger is not shared.
    leases: Mapping[str, Sequence[str]] | None = None
    given_up: Sequence[NotificationRecord] = ()  # those that the viewer may see
    # The accounts whose calls the viewer may see.
    searched: Sequence[str] = ()


class CallView(NamedTuple):
    """All that the page of a call shows."""

    now: float  # Unix time
    viewer: Viewer
    accounts: Sequence[str]  # those whose calls the viewer may see
    call: CallDetails | None = None  # None where there is none that the viewer may see


def redacted_lines(text: str) -> list[str]:
    """Return the lines of a text of others, without what may be a phone number."""
    return [mask_phone_numbers(line) for line in text.splitlines() if line.strip()]


def build_status_view(app: App, viewer: Viewer, now: float) -> StatusView:
    """Return what the page shows now; to be called in the event loop."""
    config, label_sets = app.config_status, app.calls.totals
    accounts = [
        AccountView(
            account.status,
            app.calls.recent_results.recent(name, now),
            account.stats.balance,
            {} if account.status.lagging is None else label_sets.labels(account.status.lagging),
        )
        for name, account in app.accounts.items()
    ]
    leases: dict[str, list[str]] = {name: [] for name in app.peers or ()}
    for name, holder in sorted(app.standby.items()):
        leases.setdefault(holder, []).append(name)
    failures = (call for account in accounts for call in account.recent.failures)
    targets = app.notify.statuses
    given_up = (one for target in targets for one in target.given_up if viewer.sees(one.account))
    return StatusView(
        now,
        app.not_ready(),
        accounts,
        nlargest(FAILURES, failures, key=lambda call: call.finished_at),
        [
            SourceView(
                source.name,
                source.last_success,
                source.errors,
                bool(source.problem) or source.name in config.problems,
                redacted_lines(source.problem) if viewer.authenticated else [],
            )
            for source in sorted(app.sources.statuses, key=lambda source: source.name)
        ],
        config.loaded_at,
        redacted_lines("\n".join(config.problems.values())),
        viewer,
        app.canaries.statuses,
        targets,
        None if app.peers is None else leases,
        nlargest(NEWEST, given_up, key=lambda one: one.give_up_at),
        viewer.accounts_of(app),
    )


class Language:
    """A language: the texts of the page, and how numbers, times and durations are written."""

    def __init__(self, code: str) -> None:
        text = (files("exporter.web") / "messages" / f"{code}.yaml").read_text("utf-8")
        self.code = code
        self.messages: Mapping[str, str] = yaml.safe_load(text)

    def say(self, key: str, **values: object) -> str:
        """Return a message, with its placeholders filled in."""
        return self.messages[key].format(**values)

    def source(self, name: str) -> str:
        """Return the name of a source for people."""
        kind, _, rest = name.partition(":")
        message = self.messages.get(f"source_{kind}")
        return message.format(name=rest) if message else name

    def number(self, value: float) -> str:
        """Write a whole number, such as 12,345."""
        return f"{value:,.0f}".replace(",", self.messages["thousands"])

    def percent(self, share: float) -> str:
        """Write a share of 1 as a percentage; 0% and 100% only where it is exactly that."""
        tenths = round(share * 1000)
        if 0 < share < 1:
            tenths = max(1, min(tenths, 999))
        digits = f"{tenths / 10:g}".replace(".", self.messages["decimal"])
        return self.say("percent", number=digits)

    def amount(self, value: float) -> str:
        """Write an amount, with decimals only where it has some."""
        whole, _, decimals = f"{value:.4f}".partition(".")
        decimals = decimals.rstrip("0")
        text = self.number(float(whole))
        return f"{text}{self.messages['decimal']}{decimals}" if decimals else text

    def name(self, kind: str, value: str) -> str:
        """Return the text for a value, such as a state; newer versions may have others."""
        return self.messages.get(f"{kind}_{value}", value)

    def ending(self, result: str, status: str | None, kind: str) -> str:
        text = self.name("result", result)
        if status and not (kind == Kind.MESSAGE and status == CallStatus.NONE):
            text += f": {self.name('status', status)}"
        return text

    def event(self, event: HistoryEvent, kind: Kind) -> str:
        subject = event.subject
        if event.event is EventKind.FINISHED:
            subject = self.ending(subject, event.detail, kind)
        elif event.event in {EventKind.STATE, EventKind.CALLBACK}:
            subject = self.name(event.event.value, subject)
        return self.say(f"event_{event.event.value}", subject=subject)

    def duration(self, seconds: float) -> str:
        """Write a duration, in its two largest units."""
        minutes, s = divmod(round(max(0.0, seconds)), 60)
        hours, m = divmod(minutes, 60)
        d, h = divmod(hours, 24)
        name = "days" if d else "hours" if h else "minutes" if m else "seconds"
        return self.say(f"duration_{name}", d=self.number(d), h=h, m=m, s=s)

    def time(self, at: float, now: float, zone: tzinfo | None = None) -> str:
        """Write a Unix time with its zone (None: of the process), and the date where not today."""
        when, today = _local(at, zone), _local(now, zone).date()
        time = f"{when:%H:%M:%S} {when.tzname()}"
        if when.date() == today:
            return time
        month = self.messages["months"].split()[when.month - 1]
        return self.say("date", day=when.day, month=month, time=time)


def _local(at: float, zone: tzinfo | None) -> datetime:
    return datetime.fromtimestamp(at, zone).astimezone(zone)


def choose_language(accept: str) -> str:
    """Return the language that an `Accept-Language` header prefers (RFC 9110, 12.5.4); total."""
    best, preference = LANGUAGES[0], 0.0
    for name, _, quality in clauses(accept):
        if (code := name.partition("-")[0]) in LANGUAGES and quality > preference:
            best, preference = code, quality
    return best


class StatusTemplate:
    """Renders the pages. `policy` is their Content-Security-Policy: their style, and own forms."""

    def __init__(self, telemetry_path: str = "/metrics") -> None:
        loader = jinja2.PackageLoader("exporter.web")
        environment = jinja2.Environment(
            loader=loader,
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
        )
        style, _, _ = loader.get_source(environment, "status.css")
        self.policy = (
            "default-src 'none'; "
            f"style-src 'sha256-{b64encode(sha256(style.encode()).digest()).decode()}'; "
            "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
        )
        environment.globals.update(
            style=Markup(style),  # noqa: S704 - of the package
            version=exporter.__version__,
            states=list(CallState),
            results=list(Result),
            ANSWERED=CallStatus.ANSWERED,
            MESSAGE=Kind.MESSAGE,
            LINES=LINES,
            REFRESH=REFRESH,
            telemetry_path=telemetry_path,
            redacted_lines=redacted_lines,
        )
        self._status = environment.get_template("status.html")
        self._call = environment.get_template("call.html")
        self._languages = {code: Language(code) for code in LANGUAGES}

    def render(
        self,
        view: StatusView | CallView,
        language: str,
        query: Mapping[str, str],
        zone: tzinfo | None = None,
    ) -> str:
        """Return a page, with times in a zone; its links keep the parameters in `query`.

        All links are relative: a proxy may change the path.
        """
        words, now = self._languages[language], view.now
        template, root = (
            (self._call, "../../") if isinstance(view, CallView) else (self._status, "")
        )

        def link(path: str = "", **changes: str) -> str:
            given = {name: value for name, value in {**query, **changes}.items() if value}
            return f"{path}?{urlencode(sorted(given.items()))}" if given else path or "./"

        def call_link(account: str, reference_id: str) -> str:
            path = f"{root}calls/{quote(account, safe='')}/{quote(reference_id, safe='')}"
            return link(path, refresh="")

        return template.render(
            view=view,
            refreshing=query.get("refresh") != "off",
            words=words,
            t=words.say,
            number=words.number,
            duration=words.duration,
            at=lambda when: words.time(when, now, zone),
            iso=lambda when: _local(when, zone).isoformat(timespec="seconds"),
            others=[other for other in self._languages.values() if other is not words],
            kept_language=query.get("lang"),
            link=link,
            call_link=call_link,
            root=root,
        )
