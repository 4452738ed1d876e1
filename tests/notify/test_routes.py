from __future__ import annotations

from collections.abc import Collection, Mapping

import pytest

from exporter.calls import Finished, Result, Status
from exporter.config.notify import NotifyConfig
from exporter.notify.routes import Route, route_of
from exporter.secrets import Secret
from tests.notify.receiver import SECRET

BUSY = Finished(Result.SUCCESS, Status.BUSY)
OTP = {"campaign": "otp", "team": "a"}


@pytest.mark.parametrize(
    ("accounts", "results", "statuses", "labels", "taken"),
    [
        (None, None, None, {}, True),
        (("main", "b"), None, None, {}, True),
        (("b",), None, None, {}, False),
        (None, ("success",), None, {}, True),
        (None, ("failure", "unknown"), None, {}, False),
        (None, None, ("busy", "failed"), {}, True),
        (None, None, ("failed",), {}, False),
        (None, None, None, {"campaign": {"otp", "x"}}, True),
        (None, None, None, {"campaign": {"otp"}, "team": {"b"}}, False),
        (None, None, None, {"absent": {""}}, True),
        (None, None, None, {"absent": {"x"}}, False),
        (("main",), ("success",), ("busy",), {"team": {"a"}}, True),
        (("main",), ("success",), ("busy",), {"team": {"b"}}, False),
    ],
)
def test_a_call_has_to_pass_all_that_is_named(
    accounts: Collection[str] | None,
    results: Collection[str] | None,
    statuses: Collection[str] | None,
    labels: Mapping[str, Collection[str]],
    taken: bool,  # noqa: FBT001 - a column of a table
) -> None:
    route = Route("t", 1.0, accounts, results, statuses, labels)
    assert route.takes("main", BUSY, OTP) is taken


def test_what_a_configuration_says() -> None:
    config = NotifyConfig(
        name="crm",
        url=Secret("https://crm.example.com/x"),
        secret=Secret(SECRET),
        accounts=("main",),
        results=("failure",),
        statuses=("busy",),
        labels={"campaign": "otp", "team": ("a", "b")},
        give_up_after=7.0,
    )
    labels = {"campaign": frozenset({"otp"}), "team": frozenset({"a", "b"})}
    assert route_of(config) == Route("crm", 7.0, ("main",), ("failure",), ("busy",), labels)
