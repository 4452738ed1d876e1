"""What a configuration says of those who are told of finished calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from exporter.config.fields import (
    AccountName,
    Count,
    Duration,
    LabelValues,
    ResultName,
    SigningKey,
    StatusName,
    TargetUrl,
)

MAX_TARGETS = 20

_MOST_ACCOUNTS = 1000


class NotifyConfig(BaseModel):
    """Somebody who is told of finished calls: a POST for each, as a signed CloudEvent."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True
    )

    name: AccountName
    """The value of the label `target`. Unique."""

    url: TargetUrl
    """Where calls are told of: `https://HOST...` or `http://HOST...`. Either this or `url_file`."""

    secret: SigningKey
    """What notifications are signed with: `whsec_` and 24 to 64 bytes in Base64. Either this or
    `secret_file`."""

    accounts: (
        Annotated[tuple[AccountName, ...], Field(min_length=1, max_length=_MOST_ACCOUNTS)] | None
    ) = None
    """Only calls of these accounts; of all of them where this is left out."""

    results: Annotated[tuple[ResultName, ...], Field(min_length=1, max_length=3)] | None = None
    """Only calls with one of these values of the label `result`."""

    statuses: Annotated[tuple[StatusName, ...], Field(min_length=1, max_length=9)] | None = None
    """Only calls with one of these values of the label `status`."""

    labels: LabelValues | None = None
    """Only calls whose labels have these values; a call without a label shows it empty."""

    timeout: Annotated[float, Duration("1s", "1m")] = 10.0
    """Of one request, from connecting to the status of the answer."""

    give_up_after: Annotated[float, Duration("1s", "30d")] = 86_400.0
    """How long a call is tried to be told of, from its finish."""

    max_concurrency: Annotated[int, Count(1, 100)] = 8
    """Requests under way at a time, at most."""

    @property
    def label_values(self) -> Mapping[str, frozenset[str]]:
        """The values of `labels`, by name."""
        return {
            name: frozenset((values,) if isinstance(values, str) else values)
            for name, values in (self.labels or {}).items()
        }
