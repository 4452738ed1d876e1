"""The languages of the status page: messages, and how numbers, times and durations are written."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, tzinfo
from importlib.resources import files
from typing import Final

import yaml

LANGUAGES: Final = ("en", "vi")
"""The languages that the page has, the default first."""


class Language:
    """One language.

    Args:
        code: as in `lang` of HTML and in `Accept-Language`.
        messages: every text of the page by its key, with placeholders in braces.
    """

    def __init__(self, code: str, messages: Mapping[str, str]) -> None:
        self.code = code
        self.messages = messages

    def say(self, key: str, **values: object) -> str:
        """Return a message, with its placeholders filled in."""
        return self.messages[key].format(**values)

    def source(self, name: str) -> str:
        """Return what a watch source is called."""
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
        whole, rest = divmod(tenths, 10)
        digits = f"{whole}{self.messages['decimal']}{rest}" if rest else str(whole)
        return self.say("percent", number=digits)

    def duration(self, seconds: float) -> str:
        """Write a duration, in its two largest units."""
        minutes, s = divmod(round(max(0.0, seconds)), 60)
        hours, m = divmod(minutes, 60)
        d, h = divmod(hours, 24)
        name = "days" if d else "hours" if h else "minutes" if m else "seconds"
        return self.say(f"duration_{name}", d=self.number(d), h=h, m=m, s=s)

    def time(self, at: float, now: float, zone: tzinfo | None = None) -> str:
        """Write a Unix time with its zone (None: of the process), and the date where not today."""
        when, today = local(at, zone), local(now, zone).date()
        time = f"{when:%H:%M:%S} {when.tzname()}"
        if when.date() == today:
            return time
        month = self.messages["months"].split()[when.month - 1]
        return self.say("date", day=when.day, month=month, time=time)


def local(at: float, zone: tzinfo | None = None) -> datetime:
    """Return a Unix time in a zone; None for that of the process."""
    return datetime.fromtimestamp(at, zone).astimezone(zone)


def load(code: str) -> Language:
    """Read the messages of a language."""
    text = (files("exporter.web") / "messages" / f"{code}.yaml").read_text("utf-8")
    return Language(code, yaml.safe_load(text))


def choose(accept: str) -> str:
    """Return the language that an `Accept-Language` header prefers (RFC 9110, 12.5.4); total."""
    best, preference = LANGUAGES[0], 0.0
    for part in accept.split(","):
        name, _, parameter = part.partition(";")
        code = name.strip().lower().partition("-")[0]
        quality = _quality(parameter)
        if code in LANGUAGES and quality > preference:
            best, preference = code, quality
    return best


def _quality(parameter: str) -> float:
    name, _, value = parameter.partition("=")
    if not parameter.strip():
        return 1.0
    try:
        quality = float(value) if name.strip().lower() == "q" else 0.0
    except ValueError:
        return 0.0
    return quality if 0 <= quality <= 1 else 0.0
