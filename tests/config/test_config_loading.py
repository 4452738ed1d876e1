from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import BaseModel

from exporter.config import AccountConfig, Config, LedgerConfig, load_config
from exporter.config.watch import WatchConfig
from exporter.errors import ConfigError
from exporter.secrets import Secret
from tests.config.loading import FindProblems, Load

HEAD = "accounts:\n  - name: main\n    api_key: k\n    secret_key: s\n"
DURATION = "expected a duration such as `15s`, `1m30s` or `3d`, from "


def test_a_whole_file(load: Load) -> None:
    config = load(
        "\ufeffaccounts:\n  - name: main\n    api_key: ' ${KEY} '\n    secret_key: '12'\n"
        "    base_url: http://127.0.0.1:80/x/\n    rate_limit: 0.5\n    max_concurrency: 4\n"
        "    balance_url: http://127.0.0.1:81/x/\n    balance_warning: 500000\n"
        "balance: {interval: 0}\n"
        "polling: {interval: 200ms, max_interval: 1s, timeout: 1s, not_found_grace: 0,"
        " give_up_after: 6d}\n"
        "watch: {labels: [a, b_2], max_label_values: 5, max_calls: 9}\n"
        "ledger: {url: 'sqlite:////var/x.db', keep_finished: 1w}\n"
        "shutdown_timeout: 1m30s\n",
        {"KEY": "from-environment"},
    )
    account = config.accounts[0]
    assert account.api_key == Secret("from-environment")
    assert account.secret_key == Secret("12")
    assert (account.base_url, account.rate_limit) == ("http://127.0.0.1:80/x", 0.5)
    assert (account.balance_url, account.balance_warning) == ("http://127.0.0.1:81/x", 500_000.0)
    assert config.balance.interval == 0.0
    assert config.polling.model_dump() == {
        "pace": "adaptive",
        "interval": 0.2,
        "max_interval": 1.0,
        "timeout": 1.0,
        "not_found_grace": 0.0,
        "give_up_after": 518_400.0,
    }
    assert config.watch.labels == ("a", "b_2")
    assert (config.watch.max_label_values, config.watch.max_calls) == (5, 9)
    assert config.ledger == LedgerConfig(url="sqlite:////var/x.db", keep_finished=604_800.0)
    assert config.shutdown_timeout == 90.0
    assert "from-environment" not in repr(config)


def test_what_is_left_out_has_its_default(load: Load) -> None:
    account = AccountConfig(name="main", api_key=Secret("k"), secret_key=Secret("s"))
    defaults = dict(Config(accounts=(account,)))
    assert dict(load(HEAD)) == defaults
    sections = "polling:\nbalance:\nwatch:\nledger:\n"
    assert dict(load(HEAD + sections)) == defaults
    assert dict(load(HEAD + "watch:\n  labels:\n  calls:\n")) == defaults
    for model, head in ((Config, ""), (WatchConfig, "watch:\n  ")):
        for name, field in model.model_fields.items():
            if isinstance(field.default, BaseModel | tuple) or name == "home_assistant":
                assert dict(load(f"{HEAD}{head}{name}:\n")) == defaults, name


def test_numbers_may_come_from_the_environment(load: Load) -> None:
    config = load(
        HEAD + "    rate_limit: ${RATE}\n    max_concurrency: ${NONE:-7}\n"
        "polling:\n  interval: ${INTERVAL}\n  not_found_grace: ${ZERO}\n",
        {"RATE": "2.5", "INTERVAL": "30s", "ZERO": "0"},
    )
    assert (config.accounts[0].rate_limit, config.accounts[0].max_concurrency) == (2.5, 7)
    assert (config.polling.interval, config.polling.not_found_grace) == (30, 0)


def test_secrets_stay_text(load: Load) -> None:
    text = "accounts: [{name: '${N}', api_key: '${N}', secret_key: '${T}'}]"
    account = load(text.replace("'", '"'), {"N": "12", "T": "true"}).accounts[0]
    assert (account.api_key, account.secret_key) == (Secret("12"), Secret("true"))
    block = "accounts:\n  - name: ${N}\n    api_key: ${N}\n    secret_key: ${T}\n"
    account = load(block, {"N": "12", "T": "true"}).accounts[0]
    assert (account.api_key, account.secret_key) == (Secret("12"), Secret("true"))
    assert type(account.name) is str
    assert type(account.api_key.reveal()) is str


# Texts after `HEAD`, what is told of them, and the values of VALUE in them.
MISTAKES: list[tuple[str, ...]] = [
    ("    rate_limit: ${NONE}\n", "5: accounts[0].rate_limit: the environment"),
    ("  -\n", "5: accounts[1]: expected a mapping of keys to values"),
    (
        "  - {name: main, api_key: k, secret_key: s}\n",
        "5: accounts[1].name: expected a unique name",
    ),
    ("polling: VALUE\n", "5: polling: expected a mapping of keys to values", "5", "[]"),
    ("pollling: {}\n", "5: pollling: unknown key; did you mean `polling`?"),
    ("    rate_limt: 1\n", "5: accounts[0].rate_limt: unknown key; did you mean `rate_"),
    ("watch:\n  filez: [x]\n", "6: watch.filez: unknown key; did you mean `files`?"),
    ("0123456789abcdef: x\n", "5: ?: unknown key"),
    (
        "    rate_limit: VALUE\n",
        "5: accounts[0].rate_limit: expected a number above 0, at most 100000",
        *("0", "-1", "1e6", "x", "''", "true", ".inf", ".nan", "[1]", "'5'", "", "1e9999"),
    ),
    (
        "    max_concurrency: VALUE\n",
        "5: accounts[0].max_concurrency: expected a whole number from 1 to 1000",
        *("0", "1001", "1.0", "1.5", "true", "x", "", "{}", "9" * 5000),
    ),
    (
        "    base_url: VALUE\n",
        "5: accounts[0].base_url: expected a URL `http://HOST...` or `https://HOST...`",
        *("x", "ftp://x", "http://", "http:///x", "https://u:p@x", "http://x?a"),
        *("http://x#", "http://x:99999", "http://x:0", "http://x:y", "'http://[::1'"),
        *("'http://x y'", '"http://x\\n"', "5", "", "http://\xe9"),
    ),
    ("    balance_url: http://x?a\n", "5: accounts[0].balance_url: expected a URL"),
    (
        "    balance_warning: VALUE\n",
        "5: accounts[0].balance_warning: expected an amount in VND",
        *("0", "-1", "1e16", "500k", "true", ".nan", "'5'", "[5]"),
    ),
    ("    codes: {'100': auth}\n", "5: accounts[0].codes.?: expected result codes of 1 to 8"),
    ("    codes: {x1: auth}\n", "5: accounts[0].codes.x1: expected result codes"),
    ("    codes: {102: failed}\n", "5: accounts[0].codes.?: expected `auth`, `not_found`"),
    (
        "polling:\n  interval: VALUE\n",
        f"6: polling.interval: {DURATION}100ms to 1d",
        *("15", "15.5", "true", "false", "", "0", "99ms", "1.5m", "[1s]"),
    ),
    ("polling: {interval: 6m}\n", "5: polling.max_interval: expected at least the value"),
    (
        "polling:\n  VALUE: 1s\n",
        "6: polling.VALUE: expected at least the value",
        *("max_interval", "give_up_after"),
    ),
    (
        "balance:\n  interval: VALUE\n",
        f"6: balance.interval: {DURATION}",
        *("2d", "15", "false", "-1s", ""),
    ),
    ("balance: {interval: 500ms}\n", "5: balance.interval: expected 0s, or a duration from 1s"),
    ("balance: {intervall: 5m}\n", "5: balance.intervall: unknown key"),
    ("balance: 5m\n", "5: balance: expected a mapping"),
    ("metrics: {exemplars: 1}\n", "5: metrics.exemplars: expected `true` or `false`"),
    (
        "ledger: {url: VALUE}\n",
        "5: ledger.url: expected sqlite:///PATH or postgresql://USER:",
        *("'mysql://u:pw@h/d'", "'sqlite:///'", "'sqlite:///x?mode=ro'", "5"),
    ),
    (
        "ledger: {url: 'VALUE'}\n",
        "5: ledger.url: expected the path of a file",
        *("sqlite:///:memory:", "sqlite:///file::memory:", "sqlite:///file:x.db"),
        *("sqlite:////data/", "sqlite:///..", "sqlite:////data/."),
    ),
    ("ledger: {url: a, url_file: b}\n", "5: ledger.url_file: expected either `url` or"),
    ("ledger: {url: 'postgresql://h:x/d'}\n", "5: ledger.url: expected a URL such as"),
    ("watch: {labels: x}\n", "5: watch.labels: expected a list"),
    ("watch: {labels: [a, b, c, d, e, f]}\n", "5: watch.labels: expected at most 5 items"),
    ("watch: {labels: [a,\n b, a]}\n", "6: watch.labels[2]: expected a unique label; an"),
    (
        "watch: {labels: [VALUE]}\n",
        "5: watch.labels[0]: expected a lower-case label name",
        *("A", "__a", "account", "le", "job", "pod", "service", "severity"),
        *("1a", "a-b", "''", "5", "{}", "\u00e9"),
    ),
    ("watch: {calls: x}\n", "5: watch.calls: expected a list"),
    ("watch: {calls: '${NONE}'}\n", "5: watch.calls: the environment variable `NONE`"),
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty; expected a mapping with the key `accounts`"),
        ("- a\n", "1: expected a mapping with the key `accounts`"),
        ("abc\n", "1: expected a mapping with the key `accounts`"),
        ("${NONE}\n", "1: the environment variable `NONE` is not set"),
        ("{}\n", "is empty; expected a mapping with the key `accounts`"),
        ("accounts:\n", "1: accounts: expected a list"),
        ("accounts: {a: b}\n", "1: accounts: expected a list"),
        ("accounts: []\n", "1: accounts: expected at least 1 item"),
        (
            "accounts:\n"
            + "".join(f"  - {{name: a{i}, api_key: k, secret_key: s}}\n" for i in range(1001)),
            "1: accounts: expected at most 1000 items",
        ),
        *(
            (
                HEAD.replace("main", name),
                "2: accounts[0].name: expected a name of 1 to 64 letters, digits, `_`, `.`",
            )
            for name in ["", "''", "a b", '"a\\n"', "\u00e9", "x" * 65, "5", "[]", "a/b"]
        ),
        (HEAD.replace("api_key: k", "api_key_file: ${NONE}"), "3: accounts[0].api_key_file: the e"),
        (HEAD.replace("api_key: k", "api_key: ${NONE}"), "3: accounts[0].api_key: the environment"),
        ("\naccounts:\n  - x\n", "3: accounts[0]: expected a mapping of keys to values"),
        *(
            (HEAD + text.replace("VALUE", value), expected.replace("VALUE", value))
            for text, expected, *values in MISTAKES
            for value in values or [""]
        ),
    ],
)
def test_one_mistake_is_one_problem(problems: FindProblems, text: str, expected: str) -> None:
    (found,) = problems(text)
    assert found.startswith(expected)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "expected a key, but the value is empty"),
        ("''", "expected a key, but the value is empty"),
        ("${EMPTY}", "expected a key, but the value is empty"),
        ("123456", "expected text; a key that looks like a number needs quotes"),
        ("true", "expected text; a key that looks like a number needs quotes"),
        ("hunter2 hunter2", "expected a key: up to 1024 printable ASCII characters without spaces"),
        ('"hunter2\\0"', "expected a key: up to 1024 printable ASCII characters without spaces"),
        ("hunter2\u00e9", "expected a key: up to 1024 printable ASCII characters without spaces"),
        ("${hunter", "malformed `${`"),
    ],
)
def test_a_key_that_is_wrong_is_not_shown(problems: FindProblems, value: str, message: str) -> None:
    text = f"accounts:\n  - name: a\n    api_key: {value}\n    secret_key: s\n"
    found = problems(text, {"EMPTY": ""})
    assert len(found) == 1
    assert found[0].startswith(f"3: accounts[0].api_key: {message}")
    assert "hunter" not in found[0]


def test_all_problems_come_at_once_in_the_order_of_the_file(problems: FindProblems) -> None:
    found = problems(
        "ledger: {url: x}\n"
        "watch:\n  calls: [a b]\n  labels: [A]\n"
        "polling: {interval: 1, max_interval: 1}\n"
        "accounts:\n  - {}\n  - nme: x\n    api_key: ${A}\n"
        "    api_key_file: y\n    secret_key_file: z\n"
    )
    assert [problem.split(": ")[:2] for problem in found] == [
        ["1", "ledger.url"],
        ["3", "watch.calls[0]"],
        ["4", "watch.labels[0]"],
        ["5", "polling.interval"],
        ["5", "polling.max_interval"],
        ["7", "accounts[0].name"],
        ["7", "accounts[0].api_key"],
        ["7", "accounts[0].secret_key"],
        ["8", "accounts[1].name"],
        ["8", "accounts[1].nme"],
        ["9", "accounts[1].api_key"],
        ["10", "accounts[1].api_key_file"],
        ["11", "accounts[1].secret_key_file"],
    ]


FILES = "accounts:\n  - name: a\n    api_key_file: ${FILE:-secrets/key}\n    secret_key: s\n"


@pytest.mark.parametrize(
    "content", [b"k3y", b"k3y\n", b"k3y\r\n", b" k3y \n\n", b"\xef\xbb\xbfk3y\n"]
)
def test_keys_come_from_files_beside_the_configuration(
    load: Load, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/key").write_bytes(content)
    assert load(FILES).accounts[0].api_key == Secret("k3y")
    assert load(FILES, {"FILE": str(tmp_path / "secrets/key")}).accounts[0].api_key == Secret("k3y")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "the file {path} cannot be read: No such file or directory"),
        (b"", "expected a key, but the value is empty"),
        (b"\n", "expected a key, but the value is empty"),
        (b"k3y\nk3y\n", "expected a key: up to 1024 printable ASCII characters without spaces"),
        (b"k3y\xff", "the file {path} is not UTF-8 text"),
        (b"k3y" * 30_000, "the file {path} is larger than 64 KiB"),
    ],
)
def test_a_file_without_a_key_is_a_problem(
    problems: FindProblems, tmp_path: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    found = problems(FILES, {"FILE": "key"})
    told = message.replace("{path}", f"{tmp_path}/key")  # as it was resolved
    assert found == [f"3: accounts[0].api_key_file: {told}"]


@pytest.mark.parametrize("value", ["''", "5", "[]", ""])
def test_the_name_of_a_file_is_text(problems: FindProblems, value: str) -> None:
    found = problems(f"accounts: [{{name: a, api_key_file: {value}, secret_key: s}}]\n")
    assert found == ["1: accounts[0].api_key_file: expected the path of a file"]


def test_the_name_of_a_file_may_be_odd(problems: FindProblems, tmp_path: Path) -> None:
    found = problems('accounts: [{name: a, api_key_file: "a\\0\\nb", secret_key: s}]\n')
    told = f"the file {tmp_path}/a??b cannot be read: not a path"
    assert found == [f"1: accounts[0].api_key_file: {told}"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "cannot be read: No such file or directory"),
        (Path.mkdir, "cannot be read: Is a directory"),
        (os.mkfifo, "cannot be read: not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "cannot be read: not a regular file"),
        (lambda path: path.symlink_to(path), "cannot be read: Too many levels of symbolic links"),
        (lambda path: path.write_bytes(b"\xff\x00\x80"), "is not UTF-8 text"),
        (lambda path: path.write_bytes(b"accounts: \0\n"), "is not YAML text"),
    ],
)
def test_a_file_that_cannot_be_read_is_reported_without_waiting(
    tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
    path = tmp_path / "config.yaml"
    make(path)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path, {})
    assert len(caught.value.problems) == 1
    assert str(caught.value).startswith(f"{path}: ")


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    with path.open("wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(ConfigError, match="is larger than 65536 KiB"):
        load_config(path, {})


def test_a_file_may_be_linked_as_kubernetes_does(load: Load, tmp_path: Path) -> None:
    (tmp_path / "..data").mkdir()
    (tmp_path / "..data/config.yaml").write_text(HEAD)
    (tmp_path / "linked.yaml").symlink_to("..data/config.yaml")
    assert load_config(tmp_path / "linked.yaml", {}).accounts[0].name == "main"


def test_the_environment_of_the_process_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONFIG_TEST_NAME", "from-process")
    path = tmp_path / "config.yaml"
    path.write_text(HEAD.replace("main", "${CONFIG_TEST_NAME}"))
    assert load_config(path).accounts[0].name == "from-process"


@pytest.mark.parametrize(
    "url",
    [
        *("proxy:3128", "socks5://proxy:1080", "http://", "http://:3128", "http://proxy:x"),
        *("http://u:hunter2@x@proxy:3128", "http://u:hunter2/x@proxy", "http://u:hunter2#@proxy"),
        *("http://proxy/path", "http://proxy?hunter2", "http://u%3Ahunter2:x@proxy"),
    ],
)
def test_the_address_of_a_proxy_is_refused_without_showing_its_password(
    problems: FindProblems, url: str
) -> None:
    (found,) = problems(f"{HEAD}    proxy_url: '{url}'\n")
    assert "proxy_url: expected a URL `http://HOST:PORT`" in found
    assert "hunter2" not in found


def test_the_address_of_a_proxy_is_a_secret(load: Load, tmp_path: Path) -> None:
    (tmp_path / "proxy").write_text("http://u:hunter2%40@proxy:3128/\n")
    config = load(f"{HEAD}    proxy_url_file: proxy\n")
    assert config.accounts[0].proxy_url == Secret("http://u:hunter2%40@proxy:3128/")
    assert "hunter2" not in repr(config) + str(config)
