"""The section `canaries`: calls that the exporter places itself."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal
from zoneinfo import ZoneInfo, available_timezones

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from exporter.canaries.schedule import Cron, Every, Schedule, is_cron
from exporter.config.types import Count, Duration, Expected, KnownAccount, Name, SecretKey
from exporter.config.validation import Section, invalid
from exporter.secrets import Secret

MAX_CANARIES: Final = 100
MAX_VARIABLES: Final = 20
MAX_CALLS_PER_DAY: Final = 144

SEPARATOR: Final = "||"
"""Between values in `VariableListStr` (the provider's page of `MakeCallTemplate_V2`)."""

_PHONE: Final = re.compile(r"(?:0|\+?84)[1-9][0-9]{8,9}", re.ASCII)


def _cron(value: str) -> str:
    if not is_cron(value):
        raise ValueError
    return value


def _time_zone(value: str) -> str:
    if value not in available_timezones():
        raise ValueError
    return value


def _variable(value: str) -> str:
    if SEPARATOR in value or not value.isprintable():
        raise ValueError
    return value


def _phone(value: Secret) -> Secret:
    if not _PHONE.fullmatch(value.reveal()):
        raise ValueError
    return value


CronExpression = Annotated[
    str,
    Field(strict=True, max_length=200),
    AfterValidator(_cron),
    Expected("five fields as `30 8-18/2 * * 1-5`, of times at least 10 minutes apart"),
]
TimeZone = Annotated[
    str,
    Field(strict=True),
    AfterValidator(_time_zone),
    Expected("the name of a time zone, such as `Asia/Ho_Chi_Minh`"),
]
PhoneNumber = Annotated[
    SecretKey,
    AfterValidator(_phone),
    Expected("a phone number of Vietnam, such as 0 or 84 and 9 or 10 digits, in quotes"),
]
TemplateId = Annotated[
    str,
    Field(strict=True, pattern=r"^[A-Za-z0-9_.-]{1,64}$"),
    Expected("an id of 1 to 64 letters, digits, `_`, `.` or `-`, in quotes if it is a number"),
]
Variable = Annotated[
    str,
    Field(strict=True, min_length=1, max_length=200),
    AfterValidator(_variable),
    Expected(f"a text of 1 to 200 characters without `{SEPARATOR}`, in quotes if it is a number"),
]
PressedKey = Annotated[
    str,
    Field(strict=True, pattern=r"^[0-9*#]$"),
    Expected("a key, `0` to `9`, `*` or `#`, in quotes"),
]


class CanaryConfig(Section):
    """A call that is placed on a schedule, and followed to its end."""

    name: Name
    """The value of the label `canary`. Unique."""

    account: KnownAccount | None = Field(default=None, validate_default=True)
    """The account that places it; may be left out where there is one account."""

    every: Annotated[float, Duration("10m", "7d")] | None = None
    """From one call to the next, counted from the start of 1970 (UTC): `1h` is every full hour.
    Either this or `cron`."""

    cron: CronExpression | None = None
    """When to call, as in a crontab: minute, hour, day of the month, month, day of the week. Either
    this or `every`."""

    timezone: TimeZone = "UTC"
    """Of `cron`, and of the days of `max_per_day`."""

    phone: PhoneNumber
    """The number that is called. Either this or `phone_file`."""

    recording: TemplateId | None = None
    """The id of the recording that is played. Either this or `template`."""

    template: TemplateId | None = None
    """The id of the template that is read out. Either this or `recording`."""

    variables: Annotated[tuple[Variable, ...], Field(max_length=MAX_VARIABLES)] = ()
    """The values of the template's variables, in its order."""

    expect: Literal["answered", "finished"] = "answered"
    """How it has to end: `finished` is content with any end but the provider's rejection."""

    expect_key: PressedKey | None = None
    """The first key that the callee has to press; any or none where this is left out."""

    within: Annotated[float, Duration("10s", "1d")] = 300.0
    """In what time the call has to have finished."""

    max_per_day: Annotated[int, Count(1, MAX_CALLS_PER_DAY)]
    """Calls a day, at most: each costs money. Those placed by hand count, too."""

    @field_validator("account")
    @classmethod
    def _named(cls, account: str | None, info: ValidationInfo) -> str | None:
        if account is None and info.context and len(info.context.accounts or "") > 1:
            raise invalid("missing; expected it where there are several accounts")
        return account

    @model_validator(mode="after")
    def _one_of_each(self) -> CanaryConfig:
        for one, other in (("every", "cron"), ("recording", "template")):
            given = [key for key in (one, other) if getattr(self, key) is not None]
            if len(given) != 1:
                count = "not both" if given else "and there is neither"
                raise invalid(f"expected either `{one}` or `{other}`, {count}")
        if self.variables and self.template is None:
            raise invalid("expected no `variables` without `template`")
        if self.expect_key and self.expect != "answered":
            raise invalid("expected `expect: answered` with `expect_key`")
        return self

    @property
    def schedule(self) -> Schedule:
        """When it is due."""
        return Every(self.every) if self.every else Cron(self.cron or "", self.zone)

    @property
    def zone(self) -> ZoneInfo:
        """The time zone of its days."""
        return ZoneInfo(self.timezone)
