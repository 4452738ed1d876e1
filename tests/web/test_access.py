"""Users, limits, headers, TLS, and changes of the web configuration."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import ssl
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta

import aiohttp
import bcrypt
import pytest
import trustme
from structlog.testing import capture_logs

from exporter.errors import ConfigError, ExporterError
from exporter.web.access import Passwords
from exporter.web.server import WebOptions, WebServer
from exporter.web.sockets import systemd_sockets
from tests.waiting import DEADLINE, deadline, until
from tests.web.bench import TLS, Bench, basic, users

CLIENTS = f"{TLS}, client_auth_type: RequireAndVerifyClientCert, client_ca_file: ca.crt"
RIGHT = basic("prometheus", "right")


async def test_users_and_their_passwords(idle: Bench) -> None:
    await idle.start(users(prometheus="right", other="secret"))
    response, _ = await idle.get("/metrics")
    assert response.status == 401
    assert response.headers["WWW-Authenticate"].startswith('Basic realm="')
    for user, password, status in (
        ("prometheus", "right", 200),
        ("other", "secret", 200),
        ("prometheus", "secret", 401),
        ("nobody", "right", 401),
        ("prometheus", "", 401),
        ("prometheus", "wrong", 401),
    ):
        shown = basic(user, password)
        assert await idle.status(Authorization=shown) == status, (user, password)
        assert await idle.status("/-/reload", "POST", Authorization=shown) == status
    for path in ("/", "/metrics", "/-/healthy", "/-/ready", "/nothing", "/api/v1/nothing"):
        assert await idle.status(path) == 401
    assert await idle.status("/-/reload", "POST") == 401
    assert await idle.status("/nothing", Authorization=basic("other", "secret")) == 404


async def test_odd_headers_give_no_access(idle: Bench) -> None:
    await idle.start(users(prometheus="right"))
    encoded = (base64.b64encode(text).decode() for text in (b"pr:right\0", b"\xff:right"))
    for header in (
        "Basic", "Basic !", "Basic cHJvbWV0aGV1cw==", "Bearer cHI6cmlnaHQ=", "basic \x80",
        "Basic Og==", "Basic " + "A" * 8000, *(f"Basic {text}" for text in encoded),
    ):  # fmt: skip
        assert await idle.status(Authorization=header) == 401
    assert await idle.status(Authorization=RIGHT.replace("Basic ", "BASIC  ")) == 200


async def test_paths_with_tokens_need_no_user(idle: Bench) -> None:
    await idle.start(users(prometheus="right"), telemetry_path="/callbacks")
    callback = "/callback/main/made%2Fup%20token?ReferenceId=a"
    for path, header, expected in (
        ("/api/v1/status", "Bearer token-all", {200}),
        ("/api/v1/status", "", {401}),
        (callback, "", {200}),
        ("/callback/main/wrong?ReferenceId=a", "", {404}),
        # No spelling of another path is taken for one of these.
        ("/api/v1/../../callbacks", "", {401, 404}),
        ("/%61pi/v1/%2e%2e/%2e%2e/callbacks", "", {401, 404}),
        ("//api/v1/status", "", {401, 404}),
        ("/callback/../callbacks", "", {401, 404}),
        # Nor is one that only begins alike.
        ("/callbacks", "", {401}),
        ("/callbacks", RIGHT, {200}),
    ):
        headers = {"Authorization": header} if header else {}
        assert await idle.status(path, **headers) in expected, path


async def test_a_limit_of_requests(idle: Bench) -> None:
    headers = "Strict-Transport-Security: max-age=1, Content-Security-Policy: 'default-src https:'"
    more = f"http_server_config: {{headers: {{{headers}}}}}\n"
    await idle.start("rate_limit: {interval: 1h, burst: 3}\n" + more, open_probes=True)
    for path in ("/-/healthy", "/-/ready"):
        assert {await idle.status(path) for _ in range(3)} == {200}
    assert Counter([await idle.status() for _ in range(5)]) == {200: 3, 429: 2}
    response, _ = await idle.get("/api/v1/status")
    assert (response.status, response.headers["Retry-After"]) == (429, "3600")
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.headers["Strict-Transport-Security"] == "max-age=1"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Server"] == "esms-exporter"
    # Another limit begins anew, the same one does not; without one, there is none.
    await idle.rewrite("rate_limit: {interval: 1h, burst: 2}\n")
    await idle.rewrite("rate_limit: {interval: 1h, burst: 2}\n# the same\n")
    assert Counter([await idle.status() for _ in range(3)]) == {200: 2, 429: 1}
    await idle.rewrite("rate_limit: {interval: 1us, burst: 1}\n")
    assert [await idle.status() for _ in range(3)] == [200] * 3
    await idle.rewrite(more)
    assert Counter([await idle.status() for _ in range(9)]) == {200: 9}
    response, _ = await idle.get("/")
    assert response.headers["Content-Security-Policy"] == "default-src https:"


async def test_a_password_is_checked_once(idle: Bench) -> None:
    checks = Counter[bytes]()

    def counted(password: bytes, known: bytes) -> bool:
        checks[password] += 1
        return bcrypt.checkpw(password, known)

    await idle.start(users(prometheus="right"), passwords=Passwords(counted))
    asked = [idle.status(Authorization=RIGHT) for _ in range(20)]
    assert set(await asyncio.gather(*asked)) == {200}
    assert checks == {b"right": 1}
    # Guessing does not drive out what is known to be right.
    for number in range(5):
        assert await idle.status(Authorization=basic(f"u{number}", "guess")) == 401
    assert await idle.status(Authorization=RIGHT) == 200
    # An unknown user is checked as a known one is.
    assert checks == {b"right": 1, b"guess": 5}
    # Another hash makes what is remembered worthless.
    await idle.rewrite(users(prometheus="changed"))
    assert await idle.status(Authorization=RIGHT) == 401
    # A user that is renamed keeps the hash, but not the name.
    web = users(prometheus="right")
    await idle.rewrite(web)
    assert await idle.status(Authorization=RIGHT) == 200
    await idle.rewrite(web.replace("prometheus", "renamed"))
    assert await idle.status(Authorization=RIGHT) == 401


async def test_no_more_checks_than_can_be_waited_for(idle: Bench) -> None:
    await idle.start(users(prometheus="right"), passwords=Passwords(max_checks=2))
    asked = [idle.status(Authorization=basic("prometheus", str(n))) for n in range(10)]
    answers = Counter(await asyncio.gather(*asked))
    assert answers[401] >= 2
    assert answers[503] >= 1
    assert answers[401] + answers[503] == 10
    assert await idle.status(Authorization=RIGHT) == 200


# TLS.


async def test_a_new_certificate_drops_no_connection(idle: Bench) -> None:
    await idle.start(f"{TLS}}}\n")

    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", idle.port, ssl=idle.certificates.client())

    def serial_number(writer: asyncio.StreamWriter) -> str:
        return str(writer.get_extra_info("peercert")["serialNumber"])

    reader, kept = await connect()

    async def healthy() -> bool:
        kept.write(b"GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n")
        return b"200 OK" in await reader.readuntil(b"healthy.\n")

    assert await healthy()
    idle.certificates.renew()
    async with deadline():
        while True:
            _, other = await connect()
            other.close()
            if serial_number(other) != serial_number(kept):
                break
            await asyncio.sleep(0.05)
    assert await healthy()
    kept.close()


async def test_certificates_of_clients(idle: Bench) -> None:
    client = idle.certificates.client
    given = f"{TLS}, client_auth_type: VerifyClientCertIfGiven, client_ca_file: ca.crt"
    named = f"{given}, client_allowed_sans: [a.example.com, '::1', x@example.com]"
    await idle.start("")
    assert await idle.status(Connection="close") == 200
    idle.url = idle.url.replace("http:", "https:")
    for web, accepted, refused in (
        (f"{TLS}, min_version: TLS13", [""], []),
        (CLIENTS, ["p.example.com"], [""]),
        (given, ["", "p.example.com"], []),
        (named, ["a.example.com", "::1", "x@example.com"], ["", "b.example.com"]),
    ):
        await idle.rewrite(f"{web}}}\n")
        for name in accepted:
            assert await idle.status(client=client(*filter(None, [name]))) == 200
        for name in refused:
            with pytest.raises(aiohttp.ClientError):
                await idle.status(client=client(*filter(None, [name])))
    with pytest.raises(aiohttp.ClientError):
        await idle.status(client=client("a.example.com", authority=trustme.CA()))


def handshake(port: int, client: ssl.SSLContext | bytes | None) -> str:
    """Connect, send nothing or some bytes, and return what the client is told at the end."""
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE) as stream:
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


async def test_a_refused_handshake_says_why(idle: Bench) -> None:
    await idle.start(f"{CLIENTS}, client_allowed_sans: [a.example.com]}}\n")
    make, authority = idle.certificates.client, idle.certificates.authority
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
    seen = set()
    for client, told, reason, problem in cases:
        before = await failures(idle)
        with capture_logs() as logs:
            found = await asyncio.to_thread(handshake, idle.port, client)
            assert found.startswith(told), reason
            async with deadline():
                while (after := await failures(idle)) == before:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        assert after - before == {reason: 1}
        lines = [line for line in logs if line["event"] == "TLS handshake failed"]
        # Once a minute for each reason.
        assert [(line["reason"], line["peer"]) for line in lines] == (
            [] if reason in seen else [(reason, "127.0.0.1")]
        )
        assert all(problem in line["problem"] for line in lines)
        seen.add(reason)


async def failures(bench: Bench) -> Counter[str]:
    """Return how many handshakes have failed, by reason, as the metrics have it."""
    client = bench.certificates.client("a.example.com")
    _, text = await bench.get("/metrics", client=client)
    name = "esms_exporter_tls_handshake_failures_total"
    lines = [line for line in text.splitlines() if line.startswith(name)]
    return Counter({line.split('"')[1]: int(float(line.rpartition(" ")[2])) for line in lines})


async def test_a_certificate_that_expires_is_reported(idle: Bench) -> None:
    end = (datetime.now(UTC) + timedelta(days=10)).replace(microsecond=0)
    idle.certificates.write(idle.certificates.authority, end - timedelta(days=90), end)
    with capture_logs() as logs:
        await idle.start(f"{TLS}}}\n")
    (told,) = [line["problem"] for line in logs if line["event"] == "TLS certificate needs renewal"]
    assert f" expires soon, at {end:%Y-%m-%dT%H:%M:%SZ}" in told
    name = "\nesms_exporter_tls_certificate_expiry_timestamp_seconds "
    for web, scheme, expected in (None, "https:", end.timestamp()), ("", "http:", 0):
        if web is not None:
            await idle.rewrite(web)
        idle.url = f"{scheme}{idle.url.partition(':')[2]}"
        _, text = await idle.get("/metrics")
        assert float(text.partition(name)[2].partition("\n")[0]) == expected


# Changes.


def reloaded(bench: Bench) -> bool:
    return not bench.app.config_status.problems


async def test_a_broken_or_removed_file_is_reported_and_changes_nothing(idle: Bench) -> None:
    login = users(prometheus="right")
    await idle.start(f"{CLIENTS}}}\n{login}")
    client = idle.certificates.client("prometheus.example.com")

    async def status(path: str = "/metrics", method: str = "GET") -> int:
        return await idle.status(path, method, client=client, Authorization=RIGHT)

    with capture_logs() as logs:
        await idle.rewrite("basic_auth_users: {prometheus: nonsense}\n", reload=False)
        await until(lambda: not reloaded(idle))
        assert (await status(), await status("/-/reload", "POST")) == (200, 400)
        await idle.rewrite(f"{CLIENTS}}}\n{login}", reload=False)
        await until(lambda: reloaded(idle))
    errors = [line for line in logs if line["log_level"] == "error"]
    assert {line["event"] for line in errors} == {"web configuration reload failed"}
    assert "nonsense" not in str(logs)
    for path in (idle.folder / name for name in ("ca.crt", "web.yml")):
        with capture_logs() as logs:
            path.rename(path.with_suffix(".away"))
            await until(lambda: not reloaded(idle))
            assert await status() == 200
            path.with_suffix(".away").rename(path)
            await until(lambda: reloaded(idle))
        (told,) = [line["problems"] for line in logs if line["log_level"] == "error"]
        assert f"{path}" in told
        assert "cannot be read: No such file or directory" in told


async def test_all_who_ask_for_a_reload_share_the_next(idle: Bench) -> None:
    await idle.start()
    loads, release = Counter[str](), threading.Event()

    def hold() -> None:
        loads["begun"] += 1
        assert release.wait(DEADLINE)

    idle.loading = hold
    asked = [asyncio.create_task(idle.app.reload()) for _ in range(5)]
    await until(lambda: loads["begun"] == 1)
    asked += [asyncio.create_task(idle.app.reload()) for _ in range(50)]
    release.set()
    await asyncio.gather(*asked)
    assert loads["begun"] == 2


async def test_it_does_not_start_with_a_broken_file(idle: Bench) -> None:
    with pytest.raises(ConfigError, match="min_version: expected `TLS12` or `TLS13`"):
        await idle.start(f"{TLS}, min_version: TLS9}}\n")
    with pytest.raises(ExporterError, match="no socket activation file descriptors found"):
        await WebServer(idle.app, WebOptions(systemd_socket=True)).start()
    for count in ("-1", "0", "x", ""):
        with pytest.raises(ExporterError, match="no socket activation file descriptors found"):
            systemd_sockets({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count})
