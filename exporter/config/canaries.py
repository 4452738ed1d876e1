"""The section `canaries`: test calls that the exporter places."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise, takewhile
from typing import Annotated, Final, Literal
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError
from pydantic import Field, model_validator

from exporter.config.validation import (
    Expected,
    Name,
    OwnAccount,
    Section,
    count,
    duration,
    invalid,
    secret,
    text,
)
from exporter.secrets import Secret

MAX_CANARIES: Final = 100
MAX_VARIABLES: Final = 20
MAX_CALLS_PER_DAY: Final = 144

SEPARATOR: Final = "||"
"""Separates values in `VariableListStr` (the provider's page on `MakeCallTemplate_V2`)."""

_MIN_INTERVAL: Final = timedelta(minutes=10)
_CRON_FIELDS: Final = 5
# Two weeks of calls every ten minutes. Rarer schedules repeat within that number.
_CRON_LIMIT: Final = 2_100
_CRON_START: Final = datetime(2024, 1, 1, tzinfo=UTC)  # a leap year
_CRON_SPAN: Final = timedelta(days=400)


def _cron(expression: str) -> str:
    """Check the interval between due times, for a year or for `_CRON_LIMIT` of them."""
    if len(expression.split()) != _CRON_FIELDS:
        raise ValueError  # CronSim accepts a sixth, for seconds
    try:
        simulated = CronSim(expression, _CRON_START)
        if (first := next(simulated, None)) is None:
            raise ValueError  # never due, such as on 30 February
        end = first + _CRON_SPAN
        dues = [first, *takewhile(lambda due: due < end, islice(simulated, _CRON_LIMIT))]
    except CronSimError:
        raise ValueError from None
    if any(later - earlier < _MIN_INTERVAL for earlier, later in pairwise(dues)):
        raise ValueError
    return expression


def _time_zone(value: str) -> str:
    if value not in available_timezones():
        raise ValueError
    return value


def _variable(value: str) -> str:
    if SEPARATOR in value or not value.isprintable():
        raise ValueError
    return value


CronExpression = Annotated[
    str,
    text(
        "five fields such as `30 8-18/2 * * 1-5`, with at least 10 minutes between calls",
        max_length=200,
        check=_cron,
    ),
]
TimeZone = Annotated[
    str, text("the name of a time zone, such as `Asia/Ho_Chi_Minh`", check=_time_zone)
]
_PHONE: Final = "a phone number of Vietnam in quotes: 0 or 84, then 9 or 10 digits"
PhoneNumber = Annotated[Secret, secret(_PHONE, r"(0|\+?84)[1-9][0-9]{8,9}"), Expected(_PHONE)]
TemplateId = Annotated[
    str,
    text(
        "an id of 1 to 64 letters, digits, `_`, `.` or `-`, in quotes if it is a number",
        r"^[A-Za-z0-9_.-]{1,64}$",
    ),
]
Variable = Annotated[
    str,
    text(
        f"a text of 1 to 200 characters without `{SEPARATOR}`, in quotes if it is a number",
        "^.{1,200}$",
        check=_variable,
    ),
]
PressedKey = Annotated[str, text("a key, `0` to `9`, `*` or `#`, in quotes", "^[0-9*#]$")]


class CanaryConfig(Section):
    """A test call that the exporter places on a schedule and watches."""

    name: Name
    """The value of the label `canary`. Unique."""

    account: OwnAccount = ""
    """The account that places the call. Optional if there is one account."""

    every: Annotated[float, duration("10m", "7d")] | None = None
    """Interval between calls, aligned to UTC: `1h` calls on every full hour. Either this or
    `cron`."""

    cron: CronExpression | None = None
    """Schedule in crontab format: minute, hour, day of the month, month, day of the week. Either
    this or `every`."""

    timezone: TimeZone = "UTC"
    """Time zone of `cron` and of the days of `max_per_day`."""

    phone: PhoneNumber
    """The phone number to call. Either this or `phone_file`."""

    recording: TemplateId | None = None
    """The id of the recording to play. Either this or `template`."""

    template: TemplateId | None = None
    """The id of the template to read out. Either this or `recording`."""

    variables: Annotated[tuple[Variable, ...], Field(max_length=MAX_VARIABLES)] = ()
    """The values of the template's variables, in the order of the template."""

    expect: Literal["answered", "finished"] = "answered"
    """The expected result. `finished` accepts every result except a rejection by the provider."""

    expect_key: PressedKey | None = None
    """The first key that the callee has to press. By default, keys are not checked."""

    within: Annotated[float, duration("10s", "1d")] = 300.0
    """Maximum time from placing the call to its result."""

    max_per_day: Annotated[int, count(1, MAX_CALLS_PER_DAY)]
    """Maximum number of calls per day, including calls placed by hand. Each call costs money."""

    @model_validator(mode="after")
    def _one_of_each(self) -> CanaryConfig:
        for one, other in (("every", "cron"), ("recording", "template")):
            given = [key for key in (one, other) if getattr(self, key) is not None]
            if len(given) != 1:
                count = "not both" if given else "but both are missing"
                raise invalid(f"expected either `{one}` or `{other}`, {count}")
        if self.variables and self.template is None:
            raise invalid("`variables` requires `template`")
        if self.expect_key and self.expect != "answered":
            raise invalid("`expect_key` requires `expect: answered`")
        return self

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.timezone)
