from __future__ import annotations

import typing
from pathlib import Path

import pytest

from exporter.calls import Result, Status
from exporter.config.targets import ResultName, StatusName
from exporter.secrets import Secret
from tests.config.loading import FindProblems, Load

HEAD = (
    "accounts: [{name: main, api_key: k, secret_key: s}, {name: b, api_key: k, secret_key: s}]\n"
    "watch: {labels: [campaign, team]}\n"
)
KEY = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
URL = "https://crm.example.com/hooks?token=t0k3n"
ADDRESS = "`https://HOST...` or `http://HOST...`, not a link-local or metadata address"


def block(**keys: str) -> str:
    """Give a configuration whose target starts on line 5."""
    given = {"name": "crm", "url": f"'{URL}'", "secret": KEY, **keys}
    lines = "".join(f"    {key}: {value}\n" for key, value in given.items() if value != "-")
    return f"{HEAD}notify:\n  - # the target\n{lines}"


def test_all_that_a_target_may_say(load: Load) -> None:
    (found,) = load(
        block(
            accounts="[main, b]",
            results="[failure, unknown]",
            statuses="[busy]",
            labels="{campaign: [otp, 'a b'], team: ''}",
            timeout="5s",
            give_up_after="2h",
            max_concurrency="3",
        )
    ).notify
    assert (found.name, found.url, found.secret) == ("crm", Secret(URL), Secret(KEY))
    assert (found.accounts, found.results) == (("main", "b"), ("failure", "unknown"))
    assert found.statuses == ("busy",)
    assert found.label_values == {"campaign": {"otp", "a b"}, "team": {""}}
    assert (found.timeout, found.give_up_after, found.max_concurrency) == (5, 7200, 3)
    assert "t0k3n" not in repr(found)
    assert KEY not in repr(found)


def test_secrets_from_files(load: Load, tmp_path: Path) -> None:
    (tmp_path / "url").write_text(f"{URL}\n")
    (tmp_path / "key").write_text(f"{KEY}\n")
    (found,) = load(block(url="-", url_file="url", secret="-", secret_file="key")).notify
    assert (found.url, found.secret) == (Secret(URL), Secret(KEY))


@pytest.mark.parametrize(
    "url",
    [
        *("http://crm:8080/x", "https://user:pass@crm.example.com/", "https://10.0.0.1/"),
        *("http://localhost/", "https://[2001:db8::1]:8443/x", "HTTPS://CRM.example.com"),
    ],
)
def test_urls(load: Load, url: str) -> None:
    assert load(block(url=f"'{url}'")).notify[0].url == Secret(url)


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://crm/x", "crm.example.com/x", "https://", "https:///x", "https://crm/#f"),
        *("https://crm\\x@y/", "https://xn--/"),  # the client takes none
        *("https://crm:0/", "https://crm:99999/", "https://crm:x/", "https://[::1/"),
        *("http://169.254.169.254/latest", "http://[fe80::1]/", "http://[fe80::1%25eth0]/"),
        *("http://[::ffff:169.254.169.254]/", "http://[fd00:ec2::254]/"),
    ],
)
def test_urls_that_are_refused(problems: FindProblems, url: str) -> None:
    assert problems(block(url=f"'{url}'")) == [f"6: notify[0].url: expected {ADDRESS}"]


@pytest.mark.parametrize(
    "key",
    [
        *("abc", "whsec_", "whsec_c2hvcnQ=", KEY[6:], KEY[:-1]),
        *(KEY[:-3] + " La", KEY[:-2] + "-_", f"whsec_{'A' * 88}"),
    ],
)
def test_keys_that_are_refused(problems: FindProblems, key: str) -> None:
    assert problems(block(secret=f"'{key}'")) == [
        "7: notify[0].secret: expected `whsec_` and 24 to 64 bytes in Base64"
    ]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"url": "-"}, "5: notify[0].url: missing; expected this key or `url_file`"),
        ({"secret": "-"}, "5: notify[0].secret: missing; expected this key or `secret_file`"),
        ({"name": "-"}, "5: notify[0].name: missing required key"),
        ({"name": "'a b'"}, "5: notify[0].name: expected a name of 1 to 64 letters"),
        ({"url_file": "x"}, "8: notify[0].url_file: expected either `url` or `url_file`"),
        ({"acounts": "[b]"}, "8: notify[0].acounts: unknown key; did you mean `accounts`?"),
        ({"accounts": "[]"}, "8: notify[0].accounts: expected at least 1 item"),
        ({"accounts": "[main, c]"}, "8: notify[0].accounts[1]: expected the name of one of the"),
        ({"results": "[busy]"}, "8: notify[0].results[0]: expected `success`, `failure` or `unk"),
        ({"results": "success"}, "8: notify[0].results: expected a list"),
        ({"statuses": "[success]"}, "8: notify[0].statuses[0]: expected `answered`, `no_answer`"),
        ({"labels": "{other: x}"}, "8: notify[0].labels.other: expected one of the names in `wat"),
        ({"labels": "[campaign]"}, "8: notify[0].labels: expected a mapping of keys to values"),
        ({"labels": "{campaign: 5}"}, "8: notify[0].labels.campaign: expected a text, or a"),
        ({"labels": "{campaign: []}"}, "8: notify[0].labels.campaign: expected a text, or a"),
        ({"labels": "{campaign: [x, 5]}"}, "8: notify[0].labels.campaign: expected a text, or a"),
    ],
)
def test_one_mistake_is_one_problem(
    problems: FindProblems, keys: dict[str, str], expected: str
) -> None:
    (found,) = problems(block(**keys))
    assert found.startswith(expected)


def test_names_are_unique_and_few(problems: FindProblems) -> None:
    one = f"{{name: crm, url: '{URL}', secret: {KEY}}}"
    assert problems(f"{HEAD}notify: [{one},\n  {one}]\n") == [
        "4: notify[1].name: expected a unique name; an earlier item has the same"
    ]
    many = ", ".join(one.replace("crm,", f"t{number},") for number in range(21))
    assert problems(f"{HEAD}notify: [{many}]\n") == ["3: notify: expected at most 20 items"]


def test_the_values_are_those_of_the_metrics() -> None:
    assert set(typing.get_args(ResultName)) == set(Result)
    assert set(typing.get_args(StatusName)) == set(Status)
