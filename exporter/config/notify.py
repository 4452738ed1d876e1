"""The section `notify`: webhooks that are notified of finished calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field
from yarl import URL

from exporter.config.types import (
    Count,
    Duration,
    Expected,
    KnownAccounts,
    KnownLabel,
    LabelValue,
    Name,
    SecretAddress,
)
from exporter.config.validation import Section
from exporter.secrets import Secret, decode_signing_key
from exporter.ssrf import is_forbidden, is_ip_address

MAX_TARGETS: Final = 20


def _signing_key(secret: Secret) -> Secret:
    decode_signing_key(secret)
    return secret


def _target_url(secret: Secret) -> Secret:
    url = urlsplit(secret.reveal())
    if url.scheme not in {"http", "https"} or not url.hostname or url.port == 0 or url.fragment:
        raise ValueError
    # The client is stricter, and would fail when the first call is notified.
    if not URL(secret.reveal()).host:
        raise ValueError
    # A name is checked when it is connected to; here, what can be seen to fail.
    if is_ip_address(url.hostname) and is_forbidden(url.hostname):
        raise ValueError
    return secret


TargetUrl = Annotated[
    SecretAddress,
    Field(json_schema_extra={"pattern": "^https?://[^#]+$"}),
    AfterValidator(_target_url),
    Expected("`https://HOST...` or `http://HOST...`, and no link-local or metadata address"),
]
SigningKey = Annotated[
    SecretAddress,
    Field(json_schema_extra={"pattern": "^whsec_"}),
    AfterValidator(_signing_key),
    Expected("`whsec_` and 24 to 64 bytes in Base64"),
]
ResultName = Literal["success", "failure", "unknown"]
StatusName = Literal[
    "answered",
    "no_answer",
    "busy",
    "failed",
    "rejected",
    "none",
    "other",
    "not_found",
    "expired",
]
LabelValues = Annotated[
    LabelValue | Annotated[tuple[LabelValue, ...], Field(min_length=1)],
    Expected("a text, or a list of texts"),
]


class NotifyConfig(Section):
    """A webhook that is notified of finished calls: a POST for each, as a signed CloudEvent."""

    name: Name
    """The value of the label `target`. Unique."""

    url: TargetUrl
    """Where notifications are sent: `https://HOST...` or `http://HOST...`. Either this or
    `url_file`."""

    secret: SigningKey
    """What notifications are signed with: `whsec_` and 24 to 64 bytes in Base64. Either this or
    `secret_file`."""

    accounts: KnownAccounts | None = None
    """Only calls of these accounts; of all of them where this is left out."""

    results: Annotated[tuple[ResultName, ...], Field(min_length=1, max_length=3)] | None = None
    """Only calls with one of these values of the label `result`."""

    statuses: Annotated[tuple[StatusName, ...], Field(min_length=1, max_length=9)] | None = None
    """Only calls with one of these values of the label `status`."""

    labels: dict[KnownLabel, LabelValues] | None = None
    """Only calls whose labels have these values, each a text or a list of texts; a call without a
    label shows it empty."""

    timeout: Annotated[float, Duration("1s", "1m")] = 10.0
    """Of one request, from connecting to the status of the answer."""

    give_up_after: Annotated[float, Duration("1s", "30d")] = 86_400.0
    """How long delivery is tried, from the finish of the call."""

    max_concurrency: Annotated[int, Count(1, 100)] = 8
    """Requests under way at a time, at most."""

    @property
    def label_values(self) -> Mapping[str, frozenset[str]]:
        """The values of `labels`, by name."""
        return {
            name: frozenset((values,) if isinstance(values, str) else values)
            for name, values in (self.labels or {}).items()
        }
