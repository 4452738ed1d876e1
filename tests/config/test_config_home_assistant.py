from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import trustme

from exporter.config import HomeAssistantConfig
from exporter.secrets import Secret
from tests.config.loading import FindProblems, Load

HEAD = "accounts: [{name: main, api_key: k, secret_key: s}]\n"
URL = "home_assistant.url: expected `mqtt://HOST[:PORT]`, or `mqtts://HOST[:PORT]` for TLS"


def test_a_broker_alone_will_do(load: Load) -> None:
    found = load(HEAD + "home_assistant: {url: 'mqtt://Broker/'}\n").home_assistant
    assert found == HomeAssistantConfig(url="mqtt://Broker")
    assert (found.discovery_prefix, found.topic_prefix) == ("homeassistant", "esms-exporter")


def test_all_of_it(load: Load, tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("exporter.example.com")
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    (tmp_path / "password").write_text("made-up\n")
    text = (
        "home_assistant:\n  url: mqtts://[::1]:8884\n  username: Nguyễn An\n"
        "  password_file: password\n  ca_file: ca.pem\n  cert_file: cert.pem\n"
        "  key_file: key.pem\n  discovery_prefix: ha\n  topic_prefix: voice/one\n"
        "  accounts: [main]\n  language: vi\n  buttons: false\n"
    )
    expected = HomeAssistantConfig(
        url="mqtts://[::1]:8884",
        username="Nguyễn An",
        password=Secret("made-up"),
        ca=(tmp_path / "ca.pem").read_text(),
        cert=(tmp_path / "cert.pem").read_text(),
        key=Secret((tmp_path / "key.pem").read_text().strip()),
        discovery_prefix="ha",
        topic_prefix="voice/one",
        accounts=("main",),
        language="vi",
        buttons=False,
    )
    found = load(HEAD + text).home_assistant
    assert found is not None
    assert dict(found) == dict(expected)


@pytest.mark.parametrize(
    "password",
    [" two words ", "m\u1eadt kh\u1ea9u", "a\tb", "x" * 4096, "q\"uo'ted", "\u3000", " "],
)
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_password_of_a_broker_is_taken_as_it_is(
    load: Load, tmp_path: Path, password: str, end: str
) -> None:
    (tmp_path / "password").write_bytes(f"{password}{end}".encode())
    inline = json.dumps(password)
    for form in ("password_file: password", f"password: {inline}", "password: ${SHOWN}"):
        text = f"home_assistant:\n  url: mqtt://a\n  username: u\n  {form}\n"
        found = load(HEAD + text, {"SHOWN": password}).home_assistant
        assert found is not None
        assert found.password == Secret(password), form


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5", "home_assistant: expected a mapping of keys to values"),
        ("{}", "home_assistant.url: missing required key"),
        *(
            (f"{{url: '{url}'}}", URL)
            for url in (
                *("broker", "http://broker", "mqtt://", "mqtt://:1883", "mqtt://a:0", "mqtt://a:x"),
                *("mqtt://a/b", "mqtt://u:p@a", "mqtt://a?b", "mqtt://a#b"),
                *("mqtt://a b", "mqtt://é"),
            )
        ),
        ("{url: 'mqtt://a', password: x}", "home_assistant.password: requires `username`"),
        ("{url: 'mqtt://a', topic_prefix: a/+}", "home_assistant.topic_prefix: expected up to 8"),
        ("{url: 'mqtt://a', topic_prefix: /a}", "home_assistant.topic_prefix: expected up to 8"),
        ("{url: 'mqtt://a', discovery_prefix: ''}", "home_assistant.discovery_prefix: expected up"),
        ("{url: 'mqtt://a', username: ''}", "home_assistant.username: expected a name of 1 to"),
        (
            "{url: 'mqtt://a', accounts: [other]}",
            "home_assistant.accounts[0]: expected the name of one of the accounts",
        ),
        ("{url: 'mqtt://a', accounts: []}", "home_assistant.accounts: expected at least 1 item"),
        ("{url: 'mqtt://a', broker: x}", "home_assistant.broker: unknown key"),
        (
            "{url: 'mqtts://a', ca_file: missing}",
            "home_assistant.ca_file: the file {folder}/missing cannot be read: No such file or",
        ),
        ("{url: 'mqtts://a', ca_file: config.yaml}", "home_assistant.ca_file: expected PEM cert"),
        (
            "{url: 'mqtt://a', cert: x}",
            "home_assistant.cert: requires a `url` that begins with `mq",
        ),
        ("{url: 'mqtts://a', cert: x}", "home_assistant.cert: requires `key`"),
        ("{url: 'mqtts://a', key: '-----BEGIN x'}", "home_assistant.key: requires `cert`"),
        ("{url: 'mqtts://a', key: x, cert: x}", "home_assistant.key: expected a private key in"),
        (
            "{url: 'mqtts://a', key: '-----BEGIN x', cert: x}",
            "home_assistant.key: failed to load X509KeyPair: ",
        ),
        ("{url: 'mqtt://a', language: fr}", "home_assistant.language: expected `en` or `vi`"),
        ("{url: 'mqtt://a', buttons: x}", "home_assistant.buttons: expected `true` or `false`"),
        ("{url: 'mqtts://a', ca_file: 5}", "home_assistant.ca_file: expected the path of a file"),
    ],
)
def test_what_is_wrong(problems: FindProblems, tmp_path: Path, text: str, expected: str) -> None:
    (found,) = problems(HEAD + f"home_assistant: {text}\n")
    expected = expected.replace("{folder}", str(tmp_path))
    assert found.startswith((f"2: {expected}", f"1: {expected}"))


def test_certificates_are_checked_whatever_else_is_wrong(problems: FindProblems) -> None:
    text = "{url: 'mqtts://a', password: x, ca_file: config.yaml, accounts: [other]}"
    keys = [found.split(": ")[1] for found in problems(HEAD + f"home_assistant: {text}\n")]
    assert keys == [f"home_assistant.{key}" for key in ("password", "ca_file", "accounts[0]")]


def test_authorities_of_a_broker_that_change(load: Load, tmp_path: Path) -> None:
    text, seen = HEAD + "home_assistant: {url: 'mqtts://a', ca_file: ca.pem}\n", []
    first, second = trustme.CA().cert_pem.bytes(), trustme.CA().cert_pem.bytes()
    for pem in (first, first, "# Chứng chỉ\n".encode() + second):
        (tmp_path / "ca.pem").write_bytes(pem)
        seen.append(load(text).home_assistant)
    assert seen[0] == seen[1] != seen[2]  # which makes the connection anew
    assert seen[2] is not None
    assert len(seen[2].tls().get_ca_certs()) == 1


def test_a_client_that_is_not_installed(
    problems: FindProblems, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "aiomqtt", None)
    (found,) = problems(HEAD + "home_assistant: {url: 'mqtt://a'}\n")
    assert found.startswith("2: home_assistant.url: the MQTT client is not installed: `pip install")
