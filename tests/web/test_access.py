from __future__ import annotations

import asyncio
import base64
import os
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import bcrypt
import pytest
import pytest_asyncio
import trustme
from structlog.testing import capture_logs

from exporter.app import App
from exporter.config import (
    AccountConfig,
    ApiConfig,
    BalanceConfig,
    Config,
    LedgerConfig,
    TokenConfig,
    WatchConfig,
)
from exporter.errors import ConfigError, ListenError
from exporter.secrets import Secret
from exporter.sources.configuration import ConfigFile
from exporter.web import access as module
from exporter.web.server import WebOptions, WebServer
from exporter.web.sockets import ListenAddress, systemd_sockets
from exporter.web.web_config import load_web_config
from tests.waiting import DEADLINE, deadline, until
from tests.web.certificates import Certificates

TLS = "tls_server_config: {cert_file: server.crt, key_file: server.key"
TOKEN = "callback-token"


def hashed(password: str) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()


def users(**passwords: str) -> str:
    lines = "".join(f"  {name}: {hashed(word)}\n" for name, word in passwords.items())
    return f"basic_auth_users:\n{lines}"


class Bench:
    """A server with a web configuration."""

    def __init__(self, folder: Path) -> None:
        self.certificates = Certificates(folder)
        self.path = folder / "web.yml"
        token = Secret(TOKEN)
        account = AccountConfig(
            name="main", api_key=Secret("k"), secret_key=Secret("s"), callback_token=token
        )
        watch = WatchConfig(api=ApiConfig(tokens=(TokenConfig(name="t", token=token),)))
        ledger = LedgerConfig(url=f"sqlite:///{folder / 'ledger.db'}")
        balance = BalanceConfig(interval=0.0)
        self.config = Config(accounts=(account,), balance=balance, watch=watch, ledger=ledger)
        self.service = App(lambda: self.config)
        self.server: WebServer | None = None
        self.url = ""

    async def start(
        self, text: str, *, open_probes: bool = False, telemetry_path: str = "/metrics"
    ) -> None:
        self.path.write_text(text)
        config = ConfigFile(self.path, load_web_config)
        options = WebOptions(
            [ListenAddress("127.0.0.1", 0)], telemetry_path, config, open_probes=open_probes
        )
        self.server = WebServer(self.service, options)
        (self.url,) = await self.server.start()

    def write(self, text: str) -> None:
        aside = self.path.with_suffix(".new")
        aside.write_text(text)
        aside.replace(self.path)

    async def ask(
        self,
        path: str = "/metrics",
        user: str | None = None,
        password: str = "",
        method: str = "GET",
        client: ssl.SSLContext | None = None,
        **headers: str,
    ) -> int:
        if user is not None:
            shown = base64.b64encode(f"{user}:{password}".encode()).decode()
            headers["Authorization"] = f"Basic {shown}"
        context = client or self.certificates.client()
        async with (
            aiohttp.ClientSession() as http,
            http.request(method, self.url + path, headers=headers, ssl=context) as answer,
        ):
            await answer.read()
            return answer.status


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    await bench.service.open()
    await bench.service.start()
    yield bench
    if bench.server:
        await bench.server.stop()
    await bench.service.stop()


async def test_users_and_their_passwords(bench: Bench) -> None:
    await bench.start(users(prometheus="right", other="secret"))
    for _ in range(2):  # the second time out of the cache
        assert await bench.ask() == 401
        assert await bench.ask(user="prometheus", password="right") == 200
        assert await bench.ask(user="prometheus", password="wrong") == 401
        assert await bench.ask(user="prometheus", password="secret") == 401
        assert await bench.ask(user="nobody", password="right") == 401
        assert await bench.ask(user="other", password="secret") == 200
        assert await bench.ask("/nothing", "other", "secret") == 404
        for path in ("/", "/-/healthy", "/-/ready", "/nothing", "/api/v1/nothing"):
            assert await bench.ask(path) == 401
        assert await bench.ask("/-/reload", method="POST") == 401


@pytest.mark.parametrize(
    "header",
    ["Basic", "Basic !", "Basic cHJvbWV0aGV1cw==", "Bearer cHI6cmlnaHQ=", "basic \x80",
     "Basic Og==", "Basic " + base64.b64encode(b"pr:right\0").decode(), "Basic " + "A" * 8000],
)  # fmt: skip
async def test_odd_headers_let_nobody_in(bench: Bench, header: str) -> None:
    await bench.start(users(pr="right"))
    assert await bench.ask(Authorization=header) == 401
    good = base64.b64encode(b"pr:right").decode()
    assert await bench.ask(Authorization=f"BASIC  {good}") == 200


async def test_what_has_its_own_lock_needs_no_user(bench: Bench) -> None:
    await bench.start(users(prometheus="right"))
    assert await bench.ask("/api/v1/status", Authorization=f"Bearer {TOKEN}") == 200
    assert await bench.ask("/api/v1/status") == 401
    assert await bench.ask(f"/callback/main/{TOKEN}?ReferenceId=a") == 200
    assert await bench.ask("/callback/main/wrong?ReferenceId=a") == 404
    # No spelling of another path is taken for one of these.
    for path in ("/api/v1/../../metrics", "/%61pi/v1/%2e%2e/%2e%2e/metrics", "//api/v1/status"):
        assert await bench.ask(path) in {401, 404}
    assert await bench.ask("/callback/../metrics") in {401, 404}


async def test_a_path_that_only_begins_alike_has_no_lock_of_its_own(bench: Bench) -> None:
    await bench.start(users(prometheus="right"), telemetry_path="/callbacks")
    assert await bench.ask("/callbacks") == 401
    assert await bench.ask("/callbacks", "prometheus", "right") == 200


async def test_open_probes(bench: Bench) -> None:
    limit = "rate_limit: {interval: 1h, burst: 1}\n"
    await bench.start(users(prometheus="right") + limit, open_probes=True)
    for _ in range(3):
        assert await bench.ask("/-/healthy") == 200
        assert await bench.ask("/-/ready") == 200
    assert await bench.ask("/metrics") == 401
    assert await bench.ask("/metrics", "prometheus", "right") == 429


async def test_a_limit_of_requests(bench: Bench) -> None:
    await bench.start("rate_limit: {interval: 1h, burst: 3}\n")
    assert Counter([await bench.ask() for _ in range(5)]) == {200: 3, 429: 2}
    async with aiohttp.ClientSession() as http, http.get(f"{bench.url}/api/v1/status") as answer:
        assert (answer.status, answer.headers["Retry-After"]) == (429, "3600")
        assert answer.content_type == "application/problem+json"
    # Another limit begins anew, the same one does not; without one, there is none.
    await reload(bench, "rate_limit: {interval: 1h, burst: 2}\n")
    await reload(bench, "rate_limit: {interval: 1h, burst: 2}\n# the same\n")
    assert Counter([await bench.ask() for _ in range(3)]) == {200: 2, 429: 1}
    await reload(bench, "rate_limit: {interval: 1ms, burst: 1}\n")
    for _ in range(3):
        await asyncio.sleep(0.01)
        assert await bench.ask() == 200
    await reload(bench, "")
    assert Counter([await bench.ask() for _ in range(9)]) == {200: 9}


async def reload(bench: Bench, text: str) -> None:
    bench.write(text)
    assert bench.server is not None
    await bench.server.reload()


async def test_headers_of_every_answer(bench: Bench) -> None:
    headers = "Strict-Transport-Security: max-age=1, Content-Security-Policy: 'default-src https:'"
    await bench.start(f"http_server_config: {{headers: {{{headers}}}}}\n")
    async with aiohttp.ClientSession() as http:
        for path in ("/", "/metrics", "/nothing", "/api/v1/nothing"):
            async with http.get(bench.url + path) as answer:
                assert answer.headers["Strict-Transport-Security"] == "max-age=1"
                assert answer.headers["Content-Security-Policy"] == "default-src https:"
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
                assert answer.headers["Server"] == "esms-exporter"


async def test_many_at_once_cost_one_check(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = Counter[bytes]()
    check = bcrypt.checkpw

    def counted(password: bytes, known: bytes) -> bool:
        checks[password] += 1
        return check(password, known)

    monkeypatch.setattr(bcrypt, "checkpw", counted)
    await bench.start(users(prometheus="right"))
    asked = [bench.ask(user="prometheus", password="right") for _ in range(20)]
    assert set(await asyncio.gather(*asked)) == {200}
    assert checks == {b"right": 1}
    # Guessing does not drive out what is known to be right.
    for number in range(module.CACHED + 5):
        assert await bench.ask(user=f"u{number}", password="guess") == 401
    assert await bench.ask(user="prometheus", password="right") == 200
    assert checks[b"right"] == 1
    # Somebody who is not known is checked as everybody else is.
    assert checks[b"guess"] == module.CACHED + 5
    # Another hash makes what is remembered worthless.
    await reload(bench, users(prometheus="changed"))
    assert await bench.ask(user="prometheus", password="right") == 401


async def test_no_more_checks_than_can_be_waited_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 2)
    await bench.start(users(prometheus="right"))
    asked = [bench.ask(user="prometheus", password=str(number)) for number in range(10)]
    answers = Counter(await asyncio.gather(*asked))
    assert answers[401] >= 2
    assert answers[503] >= 1
    assert answers[401] + answers[503] == 10
    assert await bench.ask(user="prometheus", password="right") == 200


async def test_a_new_certificate_drops_no_connection(bench: Bench) -> None:
    await bench.start(f"{TLS}}}\n")
    assert bench.url.startswith("https://")
    connector = aiohttp.TCPConnector(ssl=bench.certificates.client())
    async with aiohttp.ClientSession(connector=connector) as kept:

        async def ask() -> int:
            async with kept.get(f"{bench.url}/-/healthy") as answer:
                await answer.read()
                return answer.status

        assert await ask() == 200
        ((held, _),) = next(iter(connector._conns.values()))
        first = await serial_number(bench)
        bench.certificates.renew()
        async with deadline():
            while await serial_number(bench) == first:  # noqa: ASYNC110 - nobody tells the test
                await asyncio.sleep(0.05)
        assert await ask() == 200
        # The connection from before is the one that was used all the time.
        ((still_held, _),) = next(iter(connector._conns.values()))
        assert still_held is held


async def serial_number(bench: Bench) -> str:
    _, writer = await asyncio.open_connection(
        "127.0.0.1", int(bench.url.rpartition(":")[2]), ssl=bench.certificates.client()
    )
    found = writer.get_extra_info("peercert")["serialNumber"]
    writer.close()
    return str(found)


async def test_tls_is_turned_off_and_on(bench: Bench) -> None:
    await bench.start("")
    assert await bench.ask() == 200
    await reload(bench, f"{TLS}}}\n")
    with pytest.raises(aiohttp.ClientError):
        await bench.ask()
    bench.url = bench.url.replace("http:", "https:")
    assert await bench.ask() == 200


async def test_versions_of_tls(bench: Bench) -> None:
    await bench.start(f"{TLS}, min_version: TLS13}}\n")
    old = bench.certificates.client()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(aiohttp.ClientError):
        await bench.ask(client=old)
    assert await bench.ask() == 200


async def test_certificates_of_clients(bench: Bench) -> None:
    await bench.start(
        f"{TLS}, client_auth_type: RequireAndVerifyClientCert, client_ca_file: ca.crt}}\n"
    )
    client, stranger = bench.certificates.client, trustme.CA()
    assert await bench.ask(client=client("prometheus.example.com")) == 200
    for bad in (client(), client("prometheus.example.com", authority=stranger)):
        with pytest.raises(aiohttp.ClientError):
            await bench.ask(client=bad)
    given = f"{TLS}, client_auth_type: VerifyClientCertIfGiven, client_ca_file: ca.crt"
    await reload(bench, f"{given}}}\n")
    assert await bench.ask(client=client()) == 200
    with pytest.raises(aiohttp.ClientError):
        await bench.ask(client=client("a.example.com", authority=stranger))
    await reload(bench, f"{given}, client_allowed_sans: [a.example.com, '::1', x@example.com]}}\n")
    for name in ("a.example.com", "::1", "x@example.com"):
        assert await bench.ask(client=client(name)) == 200
    for bad in (client(), client("b.example.com")):
        with pytest.raises(aiohttp.ClientError):
            await bench.ask(client=bad)


def raw(bench: Bench, client: ssl.SSLContext | bytes | None) -> str:
    """Connect, send nothing or some bytes, and return what the client is told at the end."""
    address = ("127.0.0.1", int(bench.url.rpartition(":")[2]))
    with socket.create_connection(address, timeout=DEADLINE) as stream:
        if client is None:
            return ""
        if isinstance(client, bytes):
            stream.sendall(client)
            return str(stream.recv(100))
        try:
            with client.wrap_socket(stream, server_hostname="localhost") as wrapped:
                return str(wrapped.recv(100))
        except ssl.SSLError as error:
            return str(error.reason)


async def test_a_refused_handshake_says_why(bench: Bench) -> None:
    given = f"{TLS}, client_auth_type: RequireAndVerifyClientCert, client_ca_file: ca.crt"
    await bench.start(f"{given}, client_allowed_sans: [a.example.com]}}\n")
    make, authority = bench.certificates.client, bench.certificates.authority
    expired, old = make(), make("a.example.com")
    yesterday = datetime.now(UTC) - timedelta(days=1)
    authority.issue_cert("a.example.com", not_after=yesterday).configure_cert(expired)
    old.set_ciphers("AES256-SHA")
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    distrusting = ssl.create_default_context()
    cases: list[tuple[ssl.SSLContext | bytes | None, str, str, str]] = [
        (make(), "TLSV13_ALERT_CERTIFICATE_REQUIRED", "no_certificate", "peer did not return"),
        (make("a.example.com", authority=trustme.CA()), "TLSV1_ALERT_UNKNOWN_CA",
         "bad_certificate", "unable to get local issuer certificate"),
        (expired, "SSLV3_ALERT_CERTIFICATE_EXPIRED", "bad_certificate", "has expired"),
        (old, "SSLV3_ALERT_HANDSHAKE_FAILURE", "unsupported", "no shared cipher"),
        (distrusting, "CERTIFICATE_VERIFY_FAILED", "client_refused", "tlsv1 alert unknown ca"),
        (make("b.example.com"), "b''", "not_allowed", ""),
        (b"GET / HTTP/1.1\r\n\r\n", "b''", "not_tls", "http request"),
        (b"\x16\x03\x01\x00\x05\x01\xff\xff\xff\xff", r"b'\x15\x03", "other", ""),
        (None, "", "closed", ""),
    ]  # fmt: skip
    counted = bench.service.metrics.tls_failures
    for client, told, reason, problem in cases:
        before = counted.labels(reason).value
        with capture_logs() as logs:
            assert (await asyncio.to_thread(raw, bench, client)).startswith(told), reason
            await until(lambda: counted.labels(reason).value == before + 1)  # noqa: B023
        lines = [line for line in logs if line["event"] == "TLS handshake failed"]
        # Once a minute for each reason.
        assert [(line["reason"], line["peer"]) for line in lines] == (
            [] if before else [(reason, "127.0.0.1")]
        )
        assert all(problem in line["problem"] for line in lines)
    assert await bench.ask(client=make("a.example.com")) == 200
    assert sum(series.value for _, series in counted.series()) == len(cases)


@pytest.mark.parametrize(
    ("begun", "left", "warned"),
    [(80, 30, None), (80, 10, "expires soon"), (4, 2, None), (80, -1, "expired")],
)
async def test_a_certificate_that_expires_is_told(
    bench: Bench, begun: int, left: int, warned: str | None
) -> None:
    now, day = datetime.now(UTC).replace(microsecond=0), timedelta(days=1)
    end = now + left * day
    bench.certificates.write(bench.certificates.authority, now - begun * day, end)
    with capture_logs() as logs:
        await bench.start(f"{TLS}}}\n")
    told = [line["event"] for line in logs if "certificate" in line["event"]]
    assert len(told) == (1 if warned else 0)
    assert all(f" {warned}" in event and f"{end:%Y-%m-%dT%H:%M:%SZ}" in event for event in told)
    assert bench.service.metrics.tls_expiry.labels().value == end.timestamp()
    await reload(bench, "")
    assert bench.service.metrics.tls_expiry.labels().value == 0


async def test_a_broken_change_changes_nothing(bench: Bench) -> None:
    await bench.start(users(prometheus="right"))
    problems = bench.service.config_status.problems
    assert not problems
    with capture_logs() as logs:
        bench.write("basic_auth_users: {prometheus: nonsense}\n")
        await until(lambda: bool(problems))
        assert await bench.ask(user="prometheus", password="right") == 200
        assert await bench.ask("/-/reload", "prometheus", "right", "POST") == 400
        bench.write(users(prometheus="other"))
        await until(lambda: not problems)
    assert await bench.ask(user="prometheus", password="right") == 401
    assert await bench.ask(user="prometheus", password="other") == 200
    errors = [line for line in logs if line["log_level"] == "error"]
    assert {line["event"] for line in errors} == {"web configuration not reloaded"}
    assert "nonsense" not in str(logs)


@pytest.mark.parametrize("name", ["server.crt", "server.key", "ca.crt", "web.yml"])
async def test_a_file_that_is_removed_is_told_and_changes_nothing(bench: Bench, name: str) -> None:
    await bench.start(
        f"{TLS}, client_auth_type: RequireAndVerifyClientCert, client_ca_file: ca.crt}}\n"
    )
    problems = bench.service.config_status.problems
    client, path = bench.certificates.client("prometheus.example.com"), bench.path.parent / name
    with capture_logs() as logs:
        path.rename(path.with_suffix(".away"))
        await until(lambda: bool(problems))
        assert await bench.ask(client=client) == 200
        path.with_suffix(".away").rename(path)
        await until(lambda: not problems)
    (told,) = [line["problems"] for line in logs if line["log_level"] == "error"]
    assert f"{path}" in told
    assert "cannot be read: No such file or directory" in told


async def test_it_does_not_start_with_a_broken_file(bench: Bench) -> None:
    with pytest.raises(ConfigError, match="unknown TLS version: TLS9"):
        await bench.start(f"{TLS}, min_version: TLS9}}\n")
    assert bench.server is not None
    with pytest.raises(ListenError, match="no socket activation file descriptors found"):
        await WebServer(bench.service, WebOptions(systemd_socket=True)).start()
    for count in ("-1", "0", "x", ""):
        with pytest.raises(ListenError, match="no socket activation file descriptors found"):
            systemd_sockets({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count})
