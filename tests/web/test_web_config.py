from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from exporter.config import NamedFiles
from exporter.errors import ConfigError
from exporter.secrets import Secret
from exporter.web.web_config import WebConfig, load_web_config
from tests.web.certificates import Certificates

HASH = "$2y$10$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi"
FILES = "  cert_file: server.crt\n  key_file: server.key\n"
TLS = "tls_server_config:\n" + FILES

Load = Callable[[str], WebConfig]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def load(certificates: Certificates) -> Load:
    def load(text: str) -> WebConfig:
        path = certificates.folder / "web.yml"
        path.write_text(text)
        return load_web_config(path)

    return load


def test_an_empty_file_asks_for_nothing(load: Load) -> None:
    for text in ("", "---\n", "tls_server_config:\nbasic_auth_users: {}\n"):
        assert load(text) == WebConfig()
    for text in ("{interval: 0, burst: 5}", "{interval: '0'}", "{}"):
        assert load(f"rate_limit: {text}\n").rate_limit.interval == 0


def test_a_whole_file(load: Load) -> None:
    config = load(
        TLS + "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.crt\n"
        "  client_allowed_sans: [prometheus.example.com]\n"
        "  min_version: TLS13\n  max_version: TLS13\n"
        "  cipher_suites: [TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, TLS_AES_128_GCM_SHA256]\n"
        "  curve_preferences: [X25519]\n  prefer_server_cipher_suites: false\n"
        "http_server_config:\n  http2: true\n  headers:\n    X-Frame-Options: deny\n"
        "    X-XSS-Protection: ''\n    Content-Security-Policy: default-src 'none'\n"
        f"basic_auth_users:\n  prometheus: {HASH}\n"
        "rate_limit:\n  interval: 1m0.5s\n  burst: 20\n"
    )
    assert config.tls_server_config is not None
    context = config.tls_server_config.context
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.minimum_version is context.maximum_version is ssl.TLSVersion.TLSv1_3
    assert not context.options & ssl.OP_CIPHER_SERVER_PREFERENCE
    named = {cipher["name"] for cipher in context.get_ciphers()}
    assert {name for name in named if not name.startswith("TLS_")} == {
        "ECDHE-RSA-AES128-GCM-SHA256"
    }
    assert config.tls_server_config.allowed_sans == {"prometheus.example.com"}
    assert config.http_server_config.headers == {
        "X-Frame-Options": "deny",
        "Content-Security-Policy": "default-src 'none'",
    }
    assert config.basic_auth_users == {"prometheus": Secret(HASH)}
    assert (config.rate_limit.interval, config.rate_limit.burst) == (60.5, 20)
    assert HASH not in repr(config)


def test_the_defaults_are_the_toolkits(load: Load) -> None:
    config = load(TLS + "  client_auth_type: ''\n  client_ca_file:\n  cert:\n")
    assert config.tls_server_config is not None
    context = config.tls_server_config.context
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.maximum_version is ssl.TLSVersion.TLSv1_3
    assert context.options & ssl.OP_CIPHER_SERVER_PREFERENCE
    assert context.verify_mode is ssl.CERT_NONE
    assert config.rate_limit.interval == 0


def test_scalars_are_texts_where_the_toolkit_has_texts(load: Load) -> None:
    config = load(
        "http_server_config:\n  http2: true\n  headers:\n    X-XSS-Protection: 1\n"
        "    X-Frame-Options: deny\n    Content-Security-Policy: 0x10\n"
        "    Strict-Transport-Security: 1.50\n    X-Content-Type-Options:\n"
        f"basic_auth_users:\n  007: {HASH}\n  true: {HASH}\nrate_limit: {{interval: 0, burst: 5}}\n"
    )
    assert config.http_server_config.headers == {
        "X-XSS-Protection": "1",
        "X-Frame-Options": "deny",
        "Content-Security-Policy": "0x10",
        "Strict-Transport-Security": "1.50",
    }
    assert list(config.basic_auth_users) == ["007", "true"]
    config = load(
        TLS + "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.crt\n"
        "  client_allowed_sans: [1.10, true]\n"
    )
    assert config.tls_server_config is not None
    assert config.tls_server_config.allowed_sans == {"1.10", "true"}


@pytest.mark.parametrize("memory", [True, False])
def test_certificates_in_the_file_itself(
    load: Load, certificates: Certificates, monkeypatch: pytest.MonkeyPatch, *, memory: bool
) -> None:
    if not memory:
        monkeypatch.delattr(os, "memfd_create")

    def block(key: str, name: str) -> str:
        lines = certificates.text(name).splitlines()
        return f"  {key}: |\n" + "".join(f"    {line}\n" for line in lines)

    inline = block("cert", "server.crt") + block("key", "server.key") + block("client_ca", "ca.crt")
    config = load(f"tls_server_config:\n{inline}  client_auth_type: VerifyClientCertIfGiven\n")
    assert config.tls_server_config is not None
    assert config.tls_server_config.context.verify_mode is ssl.CERT_OPTIONAL
    assert len(config.tls_server_config.context.get_ca_certs()) == 1


def test_only_tls_13_where_only_its_ciphers_are_named(load: Load) -> None:
    config = load(TLS + "  cipher_suites: [TLS_AES_128_GCM_SHA256]\n")
    assert config.tls_server_config is not None
    assert config.tls_server_config.context.minimum_version is ssl.TLSVersion.TLSv1_3


@pytest.mark.parametrize(
    ("interval", "seconds"),
    [("1s", 1.0), ("100ms", 0.1), ("1.5s", 1.5), ("1h0m1s", 3601.0), ("250us", 0.00025)],
)
def test_intervals_are_those_of_go(load: Load, interval: str, seconds: float) -> None:
    limit = load(f"rate_limit: {{interval: {interval}, burst: 1}}\n").rate_limit
    assert limit.interval == pytest.approx(seconds)


BAD_TLS = [
    ("  cert_fil: x", "unknown key; did you mean `cert_file`?"),
    ("  min_version: TLS11", "expected `TLS12` or `TLS13`"),
    ("  min_version: 1.2", "expected `TLS12` or `TLS13`"),
    ("  max_version: {TLS12: x}", "expected `TLS12` or `TLS13`"),
    ("  cipher_suites[0]: [TLS_X]", "expected `TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA`, "),
    ("  curve_preferences[0]: [CurveP192]", "expected `CurveP256`, `CurveP384`, "),
    ("  curve_preferences: [CurveP256, X25519]", "expected exactly one curve, or none"),
    ("  client_auth_type: RequireAnyClientCert", "expected `NoClientCert`, `VerifyClientCertIf"),
    ("  client_ca_file: ca.crt", "not used with this `client_auth_type`"),
    ("  client_allowed_sans: [a]", "not used with this `client_auth_type`"),
    ("  prefer_server_cipher_suites: 1", "expected `true` or `false`"),
    ("  min_version: TLS13\n  max_version: TLS12", "expected at least the value of `min_version`"),
    ("  max_version: TLS12\n  cipher_suites: [TLS_AES_128_GCM_SHA256]", "expected at least one"),
    ("  client_auth_type: VerifyClientCertIfGiven\n  client_ca_file: server.key",
     "expected PEM certificates, between"),
]  # fmt: skip
NO_CERT = "tls_server_config.cert: missing; expected this key or `cert_file`"
NO_KEY = "tls_server_config.key_file: missing; expected this key or `key_file`"
BOTH_CERTS = "tls_server_config.cert_file: expected either `cert` or `cert_file`, not both"
USER = "basic_auth_users:\n  a: "
HEADER = "http_server_config:\n  headers: "
NO_HASH = "2: basic_auth_users.a: expected a bcrypt hash with a cost from 4 to 20"
NO_INTERVAL = "1: rate_limit.interval: expected a duration such as"
NO_PAIR = "1: tls_server_config.key_file: failed to load X509KeyPair: "


def bad_tls() -> Iterator[tuple[str, str]]:
    for line, message in BAD_TLS:
        key = line.rpartition("\n")[2].partition(":")[0].strip()
        text = TLS + line.replace("[0]:", ":") + "\n"
        yield text, f"{text.count(chr(10))}: tls_server_config.{key}: {message}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *bad_tls(),
        ("- a\n", "1: expected a mapping with the key `tls_server_config`"),
        ("tls_server_confg: {}\n", "1: tls_server_confg: unknown key; did you mean `tls_server_c"),
        ("tls_server_config: 5\n", "1: tls_server_config: expected a mapping of keys to values"),
        ("tls_server_config:\n  key_file: server.key\n", f"1: {NO_CERT}"),
        ("tls_server_config:\n  cert_file: server.crt\n  key_file: ''\n", f"3: {NO_KEY}"),
        (TLS + "  cert: x\n", f"2: {BOTH_CERTS}"),
        ("tls_server_config: {cert_file: nothing.crt, key_file: server.key}\n",
         "1: tls_server_config.cert_file: the file {folder}/no"),
        ("tls_server_config: {cert_file: server.key, key_file: server.key}\n", NO_PAIR),
        ("tls_server_config: {cert_file: server.crt, key_file: server.crt}\n", NO_PAIR),
        ("http_server_config: {http2: yes}\n", "1: http_server_config.http2: expected `true` or "),
        (HEADER + "{Server: x}\n", "2: http_server_config.headers.Server: expected `Strict-Tra"),
        (HEADER + "{X-Frame-Options: allow}\n",
         "2: http_server_config.headers: X-Frame-Options: expected one of: deny, sameorigin"),
        (HEADER + '{X-XSS-Protection: "a\\r\\nb: c"}\n',
         "2: http_server_config.headers.X-XSS-Protection: expected a text of printable ASCII"),
        (USER + "secret\n", NO_HASH),
        (f"{USER}$1{HASH[2:]}\n", NO_HASH),
        (USER + HASH.replace("$10$", "$31$") + "\n", NO_HASH),
        (f"basic_auth_users:\n  'a:b': {HASH}\n", "2: basic_auth_users.?: expected a user name"),
        ("rate_limit: {interval: 1s}\n", "1: rate_limit.burst: missing required key"),
        ("rate_limit: {interval: 1s, burst: 0}\n", "1: rate_limit.burst: expected a whole number"),
        *((f"rate_limit: {{interval: {text}, burst: 1}}\n", NO_INTERVAL)
          for text in ("5", "1d", "-1s", "25h")),
    ],
)  # fmt: skip
def test_one_mistake_is_one_problem(
    load: Load, certificates: Certificates, text: str, expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(text)
    found = [
        str(problem).removeprefix(f"{certificates.folder}/web.yml:")
        for problem in caught.value.problems
    ]
    assert len(found) == 1, found
    assert found[0].startswith(expected.replace("{folder}", str(certificates.folder)))
    assert HASH[10:] not in found[0]


def test_all_problems_in_one_go(load: Load) -> None:
    with pytest.raises(ConfigError) as caught:
        load(
            "tls_server_config: {cert_file: no.crt, key_file: no.key, min_version: TLS13,"
            " curve_preferences: [X25519, CurveP256]}\nhttp: 5\nrate_limit: {interval: 1s}\n"
        )
    assert [problem.key for problem in caught.value.problems] == [
        "tls_server_config.cert_file",
        "tls_server_config.key_file",
        "tls_server_config.curve_preferences",
        "http",
        "rate_limit.burst",
    ]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"web\.yml: cannot be read: No such file or directory$"):
        load_web_config(tmp_path / "web.yml")


def test_which_files_it_names(certificates: Certificates) -> None:
    files, path = NamedFiles(), certificates.folder / "web.yml"
    path.write_text(TLS)
    load_web_config(path, files)
    names = {"server.crt", "server.key"}
    assert (set(files.stats), files.exposed) == ({certificates.folder / n for n in names}, set())
    (certificates.folder / "server.key").chmod(0o644)
    load_web_config(path, files)
    assert files.exposed == {certificates.folder / "server.key"}


@pytest.mark.parametrize(
    ("begun", "left", "warning"),
    [(80, 30, None), (80, 10, " expires soon, at "), (4, 2, None), (80, -1, " expired at ")],
)
def test_when_a_certificate_expires(
    tmp_path: Path, begun: int, left: int, warning: str | None
) -> None:
    now, day = datetime.now(UTC).replace(microsecond=0), timedelta(days=1)
    certificates = Certificates(tmp_path)
    certificates.write(certificates.authority, now - begun * day, now + left * day)
    (tmp_path / "web.yml").write_text(TLS)
    tls = load_web_config(tmp_path / "web.yml").tls_server_config
    assert tls is not None
    assert tls.expires_at == (now + left * day).timestamp()
    text = tls.expiry_warning(now.timestamp())
    assert text is None if warning is None else warning in str(text)
