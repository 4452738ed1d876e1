"""What a user may want, and change: accounts, labels, bounds, calls."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from hypothesis import strategies as st

from exporter.config import (
    AccountConfig,
    BalanceConfig,
    CallbackConfig,
    CallConfig,
    Config,
    LedgerConfig,
    PollingConfig,
    WatchConfig,
)
from exporter.ids import Kind, reference_id
from exporter.ledger.types import NewCall
from exporter.secrets import Secret
from tests.counting.model import KEEP_FINISHED, Model, Named

ACCOUNTS: Final = ("main", "other")
FILES: Final = ("a.csv", "b.csv")

NAMES: Final = st.sampled_from(["Call-1", "CALL1", "call-2", "Ca-ll2", "call-3", "Call-4"])
_LABELS: Final = st.sampled_from(
    [(), (("campaign", "otp"),), (("campaign", "sales"), ("team", "x")), (("team", "y"),)]
).map(frozenset)
KINDS: Final = st.sampled_from([Kind.CALL, Kind.MESSAGE])
_CALL: Final = st.builds(Named, st.sampled_from(ACCOUNTS), NAMES, _LABELS, KINDS)
CALLS: Final = st.lists(_CALL, max_size=4)

# Seconds; a day and more is what grace, patience and memory are about. Whole, so that sums are.
_DAY: Final = 86_400.0
CLOCK_MOVES: Final = st.sampled_from([1.0, 7.0, 60.0, 660.0, 7200.0, 4 * _DAY, 8 * _DAY, 31 * _DAY])
# By how much the machine's clock is wrong: what it says is not to matter.
CLOCK_ERRORS: Final = st.sampled_from(
    [0.0, 0.0, 1.0, -60.0, 3600.0, -_DAY, 4 * _DAY, -4 * _DAY, 40 * _DAY, -9000 * _DAY]
)


@dataclass(frozen=True)
class Wish:
    """What stands in the configuration."""

    accounts: tuple[str, ...] = ACCOUNTS
    labels: tuple[str, ...] = ("campaign",)
    max_values: int = 100
    max_calls: int = 100
    calls: tuple[Named, ...] = ()
    trust: Literal["verify", "accept"] = "verify"
    unknown: Literal["watch", "ignore"] = "watch"

    @property
    def allowed(self) -> list[Named]:
        """The calls; a configuration that names an account that it has not is refused."""
        return [call for call in self.calls if call.account in self.accounts]

    def changed(self, change: dict[str, Any]) -> Wish:  # Any: as the fields above
        return replace(self, **change)

    def config(self, folder: Path) -> Config:
        secret = Secret("made-up")
        return Config(
            accounts=tuple(
                # It polls nothing by itself: what is asked, and when, is up to the test.
                AccountConfig(name=name, api_key=secret, secret_key=secret).model_copy(
                    update={"max_concurrency": 0}
                )
                for name in self.accounts
            ),
            polling=PollingConfig(),
            balance=BalanceConfig(interval=0.0),
            watch=WatchConfig(
                labels=self.labels,
                max_label_values=self.max_values,
                calls=tuple(
                    CallConfig(reference_id(call.name), call.account, dict(call.labels), call.kind)
                    for call in self.allowed
                ),
                files=(f"{folder}/*.csv",),
                callback=CallbackConfig(trust=self.trust, unknown=self.unknown),
                # Not validated: more calls may be configured than there is room for beside others.
            ).model_copy(update={"max_calls": self.max_calls}),
            ledger=LedgerConfig(url=f"sqlite:///{folder}/ledger.db", keep_finished=KEEP_FINISHED),
        )


_FIELDS: Final = {
    "accounts": st.sampled_from([ACCOUNTS, ACCOUNTS, ("main",), ("other",)]),
    "labels": st.sampled_from([(), ("campaign",), ("campaign", "team")]),
    "max_values": st.sampled_from([1, 100]),
    "max_calls": st.sampled_from([1, 3, 100]),
    "calls": st.lists(_CALL, max_size=4, unique_by=lambda call: call.place).map(tuple),
    "trust": st.sampled_from(["verify", "accept"]),
    "unknown": st.sampled_from(["watch", "ignore"]),
}
CHANGES: Final = st.one_of(
    *(st.fixed_dictionaries({name: value}) for name, value in _FIELDS.items()),
    st.fixed_dictionaries({"max_calls": st.sampled_from([1, 2]), "calls": _FIELDS["calls"]}),
    st.fixed_dictionaries({}, optional=_FIELDS),
)


def new_calls(calls: Iterable[Named]) -> list[NewCall]:
    """Return calls as the exporter takes them in."""
    return [
        NewCall(call.account, reference_id(call.name), dict(call.labels), call.kind)
        for call in calls
    ]


def reloaded(model: Model, wish: Wish, files: dict[str, list[Named]], now: float) -> None:
    """Do with a model what going over to a configuration does, and reading these files."""
    model.max_calls = wish.max_calls
    model.watch("config", wish.allowed, now)
    for file in sorted(files):
        file_read(model, wish, file, files[file], now)
    model.keep_only("config", wish.allowed, now)


def file_read(model: Model, wish: Wish, file: str, calls: list[Named], now: float) -> None:
    """Do with a model what reading a file of calls does."""
    good = [call for call in calls if call.account in wish.accounts]
    whole = model.watch(f"file:{file}", good, now)
    # A file that is not as it should be lets go of nothing.
    if good == calls:
        model.keep_only(f"file:{file}", calls, now)
        if not whole:
            model.watch(f"file:{file}", good, now)
