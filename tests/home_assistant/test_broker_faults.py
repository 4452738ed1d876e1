"""Brokers that are away, slow, hostile or not to be trusted: the exporter goes on."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from exporter.backoff import ExponentialBackoff
from exporter.config import HomeAssistantConfig
from exporter.config.document import Problems
from exporter.config.validation import LoadContext
from exporter.errors import LedgerError
from exporter.home_assistant import broker as module
from exporter.home_assistant import publisher
from exporter.ledger.engine import Database
from exporter.ledger.listing import records_of
from exporter.secrets import Secret
from exporter.simulator import Simulator
from tests import subprocesses
from tests.brokers import PASSWORD, Mosquitto, listening, mosquitto
from tests.e2e.processes import Exporter
from tests.home_assistant.bench import Bench
from tests.programs import program
from tests.waiting import deadline, until
from tests.web.certificates import Certificates

AVAILABILITY = "esms-exporter/availability"
STATE = "esms-exporter/main/state"
EVENTS = "esms-exporter/main/finished"


@asynccontextmanager
async def telling(
    simulator: Simulator, folder: Path, config: HomeAssistantConfig
) -> AsyncIterator[Bench]:
    bench = Bench(simulator, f"sqlite:///{folder / 'ledger.db'}", config)
    await bench.start()
    try:
        yield bench
        assert bench.service.supervisor.failure is None
    finally:
        await bench.service.stop()


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


@pytest.fixture
def secured(tmp_path: Path, certificates: Certificates) -> Iterator[Mosquitto]:
    """A broker with TLS that wants a password."""
    users = tmp_path / "users"
    command = [program("mosquitto_passwd", "Debian's mosquitto"), "-b", "-c", str(users)]
    subprocesses.run(*command, "exporter", PASSWORD, check=True)
    users.chmod(0o644)
    for name in ("server.key", "server.crt", "ca.crt"):
        (tmp_path / name).chmod(0o644)  # it gives its rights up before it reads them
    tmp_path.chmod(0o755)
    settings = (
        f"password_file {users}",
        "allow_anonymous false",
        f"certfile {tmp_path}/server.crt",
        f"keyfile {tmp_path}/server.key",
        f"user {tmp_path.owner()}",
    )
    with mosquitto(tmp_path, *settings) as broker:
        yield broker


async def test_tls_and_a_password(
    simulator: Simulator, secured: Mosquitto, tmp_path: Path, certificates: Certificates
) -> None:
    config = HomeAssistantConfig.model_validate(
        {
            "url": f"mqtts://localhost:{secured.port}",
            "username": "exporter",
            "password": PASSWORD,
            "ca_file": "ca.crt",
        },
        context=LoadContext(tmp_path, Problems("config.yaml")),
    )
    # As they were loaded, whatever has happened to the file since.
    (tmp_path / "ca.crt").unlink()
    options = {"username": "exporter", "password": PASSWORD, "tls_context": certificates.client()}
    async with (
        telling(simulator, tmp_path, config) as bench,
        listening(secured.port, **options) as listener,
    ):
        await until(lambda: STATE in listener.kept)
        assert bench.connected == 1


# The library leaves it to Python to close a socket whose handshake failed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"password": Secret("wrong-password")}, "Not authorized"),
        ({"password": Secret("p" * 65_536)}, "65535"),  # more than the protocol has room for
        ({"ca_file": None}, "CERTIFICATE_VERIFY_FAILED"),
        ({"url": "mqtts://127.0.0.2:{port}"}, "Connection refused"),
        ({"url": "mqtts://no-such-host.invalid"}, "Name or service not known"),
        ({"url": "mqtts://a..b"}, "label"),
        ({"url": "mqtt://localhost:{port}", "ca_file": None}, ""),
        ({"ca_file": "/nowhere/ca.crt"}, "No such file"),
    ],
)
async def test_what_is_wrong_is_told_once_and_counted(
    simulator: Simulator,
    secured: Mosquitto,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, object],
    problem: str,
) -> None:
    monkeypatch.setattr(publisher, "_BACK_OFF", ExponentialBackoff(0.01, 0.1))
    monkeypatch.setattr(module, "_TIMEOUT", 1.0)
    config = HomeAssistantConfig(
        url=f"mqtts://localhost:{secured.port}",
        username="exporter",
        password=Secret(PASSWORD),
        ca_file=str(tmp_path / "ca.crt"),
    )
    if isinstance(url := change.get("url"), str):
        change = {**change, "url": url.format(port=secured.port)}
    with capture_logs() as logs:
        async with telling(simulator, tmp_path, config.model_copy(update=change)) as bench:
            errors = bench.service.metrics.mqtt_errors.labels()
            await until(lambda: errors.value >= 3)
            assert bench.connected == 0
            await bench.finish("a")
            await until(lambda: bench.service.calls.count == 0)
    (line,) = (line for line in logs if line["event"] == "MQTT broker not connected")
    assert problem in line["problem"]
    assert PASSWORD not in str(logs)
    assert "wrong-password" not in str(logs)


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)


async def speak_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await writer.drain()


async def accept_and_leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    writer.write(b"\x20\x02\x00\x00")
    await writer.drain()


async def accept_and_babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    writer.write(b"\x20\x02\x00\x00" + bytes(range(256)) * 40)
    await writer.drain()
    await reader.read()


async def accept_and_say_a_topic_that_is_no_text(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    await reader.read(1)
    # Retained, and once more: whoever does not leave is woken for the second one for ever.
    writer.write(b"\x20\x02\x00\x00" + b"\x31\x05\x00\x02\xff\xfe!" * 2)
    await writer.drain()
    await reader.read()


async def accept_and_hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    writer.write(b"\x20\x02\x00\x00")
    await writer.drain()
    await reader.read()


Peer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]


@pytest.mark.parametrize(
    "peer",
    [
        hang,
        leave,
        speak_http,
        accept_and_leave,
        accept_and_babble,
        accept_and_say_a_topic_that_is_no_text,
        accept_and_hang,
    ],
)
async def test_peers_that_are_no_good_brokers(
    simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peer: Peer
) -> None:
    monkeypatch.setattr(publisher, "_BACK_OFF", ExponentialBackoff(0.01, 0.05))
    monkeypatch.setattr(module, "_TIMEOUT", 0.3)
    writers = []

    async def met(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        try:
            await peer(reader, writer)  # type: ignore[misc] # each is a coroutine
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(met, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    config = HomeAssistantConfig(url=f"mqtt://127.0.0.1:{port}")
    async with telling(simulator, tmp_path, config) as bench:
        errors = bench.service.metrics.mqtt_errors.labels()
        await until(lambda: errors.value >= 3)
        await bench.finish("a")
        await until(lambda: bench.service.calls.count == 0)
        # Nothing is left of a connection that broke, whoever ended it.
        await until(lambda: sum(not writer.is_closing() for writer in writers) <= 1)
    server.close()


async def test_a_broker_that_stands_still_delays_nothing(
    simulator: Simulator, broker: Mosquitto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TIMEOUT", 1000.0)
    async with telling(simulator, tmp_path, HomeAssistantConfig(url=broker.url)) as bench:
        await bench.change(shutdown_timeout=1e6)
        await until(lambda: bench.connected == 1)
        await bench.pause(1)
        broker.signal(signal.SIGSTOP)
        for number in range(20):
            await bench.finish(f"call-{number}")
        await until(lambda: bench.service.calls.count == 0)
        async with deadline():
            await bench.service.stop()


async def test_a_broker_that_stood_still_is_caught_up_with(
    simulator: Simulator, broker: Mosquitto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TIMEOUT", 0.5)
    monkeypatch.setattr(publisher, "_BACK_OFF", ExponentialBackoff(1.0, 1.0))
    config = HomeAssistantConfig(url=broker.url)
    async with listening(broker.port) as listener, telling(simulator, tmp_path, config) as bench:
        await until(lambda: STATE in listener.kept)
        broker.signal(signal.SIGSTOP)
        await bench.finish("a")
        await until(lambda: bench.messages("event", "failed") > 0)
        broker.signal(signal.SIGCONT)
        await until(lambda: bench.messages("event", "published") > 0)
        await until(lambda: listener.json(STATE)["success_today"] == 1)
        # It is told at least once: what was not acknowledged may have come.
        assert {event["reference_id"] for event in listener.said(EVENTS)} == {"a"}


async def test_calls_wait_for_a_ledger_that_cannot_be_read(
    bench: Bench, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "_LEDGER_AGAIN", 0.05)
    tries = []

    def fail_twice(database: Database, rows: list[int]) -> object:
        tries.append(rows)
        if len(tries) < 3:
            raise LedgerError("made up")
        return records_of(database, rows)

    monkeypatch.setattr(publisher, "records_of", fail_twice)
    async with listening(broker.port) as listener:
        await until(lambda: STATE in listener.kept)
        await bench.finish("a")
        await until(lambda: len(listener.said(EVENTS)) == 1)
    assert len(tries) == 3


async def test_who_cannot_say_goodbye_in_time_is_not_available(
    bench: Bench, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(database: Database, rows: list[int]) -> object:
        raise LedgerError("made up")

    monkeypatch.setattr(publisher, "records_of", fail)
    async with listening(broker.port) as listener:
        await until(lambda: listener.kept.get(AVAILABILITY) == b"online")
        await bench.finish("a")
        await until(lambda: bench.service.calls.count == 0)
        await bench.service.stop()
        await until(lambda: listener.kept[AVAILABILITY] == b"offline")


async def test_an_exporter_that_is_killed_is_not_available_and_comes_back(
    simulator: Simulator, broker: Mosquitto, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        f"accounts: [{{name: main, api_key: key, secret_key: s, base_url: '{simulator.url}'}}]\n"
        f"balance: {{interval: 0}}\n"
        f"ledger: {{url: 'sqlite:///{tmp_path}/ledger.db'}}\n"
        f"home_assistant: {{url: '{broker.url}', username: u, password: {PASSWORD}}}\n"
    )
    async with listening(broker.port) as listener:
        for end in ("kill", "stop"):
            exporter = Exporter(config, "--log.level=debug")
            await exporter.start()
            await exporter.ready()
            await until(lambda: listener.kept.get(AVAILABILITY) == b"online")
            metrics = await exporter.scrape()
            assert metrics["esms_mqtt_connected", frozenset()] == 1
            await (exporter.kill() if end == "kill" else exporter.stop())
            await until(lambda: listener.kept.get(AVAILABILITY) == b"offline")
            assert PASSWORD not in exporter.output
            assert "Traceback" not in exporter.output


@asynccontextmanager
async def cutting(port: int, poison: bytes) -> AsyncIterator[int]:
    """Stand before a broker, and cut each connection on which this is said."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while (data := await reader.read(65536)) and poison not in data:
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", port)
        pumps = [pump(reader, to_writer), pump(to_reader, writer)]
        tasks = [asyncio.ensure_future(one) for one in pumps]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for end in (writer, to_writer):
            end.transport.abort()
        await asyncio.gather(*tasks)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_an_event_that_breaks_the_connection_blocks_no_other_one(
    simulator: Simulator, broker: Mosquitto, tmp_path: Path
) -> None:
    async with cutting(broker.port, b'"reference_id":"poison","status"') as port:
        config = HomeAssistantConfig(url=f"mqtt://127.0.0.1:{port}")
        async with (
            listening(broker.port) as listener,
            telling(simulator, tmp_path, config) as bench,
        ):
            await until(lambda: bench.connected == 1)
            names = ["poison", *(f"call-{number}" for number in range(25))]
            for name in names:
                await bench.finish(name)
            await until(
                lambda: {event["reference_id"] for event in listener.said(EVENTS)} == {*names[1:]}
            )
            await until(lambda: bench.messages("event", "dropped") == 1)
            await until(lambda: STATE in listener.kept)
            await until(lambda: listener.json(STATE)["success_today"] == len(names))
