"""Brokers that are away, slow, hostile or not to be trusted: the exporter goes on."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal, Self

import pytest
from structlog.testing import capture_logs

from exporter.backoff import ExponentialBackoff
from exporter.config import HomeAssistantConfig
from exporter.errors import BrokerAwayError, BrokerError
from exporter.home_assistant.integration import Exposed as RealExposed
from exporter.home_assistant.integration import Publisher
from exporter.home_assistant.payloads import MqttStats, Topics
from exporter.notify.home_assistant import NAME
from exporter.secrets import Secret
from exporter.simulator import Simulator
from tests import subprocesses
from tests.brokers import PASSWORD, Mosquitto, listening
from tests.notify.bench import Bench
from tests.peers import peer
from tests.programs import program
from tests.waiting import deadline, until
from tests.web.certificates import Certificates

# The library leaves it to Python to close a socket whose handshake failed, some time later.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

AVAILABILITY = "esms-exporter/availability"
STATE = "esms-exporter/main/state"
EVENTS = "esms-exporter/main/finished"


class Exposed(RealExposed):
    """What a broker is to retain, as a test has it.

    Args:
        config: the broker.

    Attributes:
        wanted: by topic.
        others: topics that another exporter publishes.
        known: for as long as this is not set, nothing is known of the accounts.
    """

    interval = 0.05
    topics = Topics("homeassistant", "esms-exporter")

    def __init__(self, config: HomeAssistantConfig) -> None:
        self.config = config
        self.wanted = {STATE: b"{}"}
        self.others: set[str] = set()
        self.known = asyncio.Event()
        self.known.set()

    def left_to_others(self) -> set[str]:
        return self.others

    async def messages(self) -> dict[str, bytes]:
        await self.known.wait()
        return self.wanted


class Publishing:
    """A publisher without an exporter.

    Attributes:
        publisher: runs within the block.
        exposed: what it publishes.
        stats: what it counts.
        ready: how often it has become ready for events.
    """

    def __init__(self, config: HomeAssistantConfig, timeout: float = 1000.0) -> None:
        self.stats, self.exposed, self.ready = MqttStats(), Exposed(config), 0
        parts = self.exposed, self.stats, self._count
        self.publisher = Publisher(*parts, timeout, ExponentialBackoff(0.01, 0.1))

    def _count(self) -> None:
        self.ready += 1

    @property
    def errors(self) -> int:
        return self.stats.connection_errors

    async def __aenter__(self) -> Self:
        self.running = asyncio.create_task(self.publisher.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.publisher.stop(clear_retained=False)
        await asyncio.wait([self.running], timeout=5)
        self.running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.running


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


@pytest.fixture
def secured(
    tmp_path: Path, certificates: Certificates, request: pytest.FixtureRequest
) -> Iterator[Mosquitto]:
    """A broker with TLS that wants a password, with more settings as its parameter."""
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
        *(line.format(folder=tmp_path) for line in getattr(request, "param", ())),
    )
    with Mosquitto(tmp_path, *settings) as broker:
        yield broker


@pytest.mark.parametrize(
    "secured", [(), ("cafile {folder}/ca.crt", "require_certificate true")], indirect=True
)
async def test_tls_a_password_and_a_certificate(
    secured: Mosquitto, certificates: Certificates
) -> None:
    issued = certificates.authority.issue_cert("exporter.example.com")
    config = HomeAssistantConfig(
        url=f"mqtts://localhost:{secured.port}",
        username="exporter",
        password=Secret(PASSWORD),
        ca=certificates.text("ca.crt"),
        cert=issued.cert_chain_pems[0].bytes().decode(),
        key=Secret(issued.private_key_pem.bytes().decode()),
    )
    tls = certificates.client("listener.example.com")
    options = {"username": "exporter", "password": PASSWORD, "tls_context": tls}
    async with Publishing(config), listening(secured.port, **options) as listener:
        await until(lambda: STATE in listener.kept)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"password": Secret("wrong-password")}, "Not authorized"),
        ({"password": Secret("p" * 65_536)}, "65535"),  # more than the protocol has room for
        ({"ca": ""}, "CERTIFICATE_VERIFY_FAILED"),
        ({"url": "mqtts://127.0.0.2:{port}"}, "Connection refused"),
        ({"url": "mqtts://no-such-host.invalid"}, "Name or service not known"),
        ({"url": "mqtts://a..b"}, "label"),
        ({"url": "mqtt://localhost:{port}", "ca": ""}, ""),
    ],
)
async def test_a_problem_is_logged_once_and_counted(
    secured: Mosquitto, tmp_path: Path, change: dict[str, object], problem: str
) -> None:
    config = HomeAssistantConfig(
        url=f"mqtts://localhost:{secured.port}",
        username="exporter",
        password=Secret(PASSWORD),
        ca=(tmp_path / "ca.crt").read_text(),
    )
    if isinstance(url := change.get("url"), str):
        change = {**change, "url": url.format(port=secured.port)}
    with capture_logs() as logs:
        timeout = 1000.0 if problem else 1.0  # a broker that wants TLS waits for more
        async with Publishing(config.model_copy(update=change), timeout) as publishing:
            await until(lambda: publishing.errors >= 3)
            with pytest.raises(BrokerAwayError):
                await publishing.publisher.publish_event("main", b"{}", 60)
    (line,) = (line for line in logs if line["event"] == "MQTT connection failed")
    assert problem in line["problem"]
    assert PASSWORD not in str(logs)
    assert "wrong-password" not in str(logs)
    gc.collect()  # here, where the warning of the library's open socket is expected


ACCEPTED = b"\x20\x03\x00\x00\x00"
REFUSED = b"\x20\x02\x00\x01"  # the version, as brokers without MQTT 5 say it


@pytest.mark.parametrize(
    ("said", "stays"),
    [
        (b"", True),
        (b"", False),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", False),
        (ACCEPTED, False),
        (ACCEPTED, True),
        (ACCEPTED + bytes(range(256)) * 40, True),
        # A topic that is no text, retained, and once more: whoever does not leave is woken for the
        # second one for ever.
        (ACCEPTED + b"\x31\x06\x00\x02\xff\xfe\x00!" * 2, True),
        (REFUSED, False),
    ],
)
async def test_peers_that_are_no_good_brokers(said: bytes, *, stays: bool) -> None:
    writers = []

    async def met(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(ConnectionError):
            await reader.read(1)
            writer.write(said)
            await writer.drain()
            await reader.read(-1 if stays else 0)
        writer.close()

    async with peer(met) as port:
        config = HomeAssistantConfig(url=f"mqtt://127.0.0.1:{port}")
        async with Publishing(config, timeout=0.3) as publishing:
            await until(lambda: publishing.errors >= 3)
            # Nothing is left of a connection that broke, whoever ended it.
            await until(lambda: sum(not writer.is_closing() for writer in writers) <= 1)


async def test_a_broker_without_mqtt_5(broker: Mosquitto) -> None:
    async with cutting(broker.port, b"\x00\x04MQTT\x05", REFUSED) as port:
        config = HomeAssistantConfig(url=f"mqtt://127.0.0.1:{port}")
        async with listening(broker.port) as listener, Publishing(config) as publishing:
            await until(lambda: publishing.ready == 1)
            await publishing.publisher.publish_event("main", b"1", 60)
            await until(lambda: (EVENTS, b"1") in listener.heard)
            assert publishing.errors == 0


async def test_a_broker_that_stands_still_delays_nothing(
    simulator: Simulator, broker: Mosquitto, tmp_path: Path
) -> None:
    config = HomeAssistantConfig(url=broker.url)
    async with Bench(simulator, tmp_path, home_assistant=config) as bench:
        await bench.change(shutdown_timeout=1e6)
        await until(lambda: bench.value("esms_mqtt_connected") == 1)
        await asyncio.sleep(1)
        broker.signal(signal.SIGSTOP)
        await bench.finish(*(f"call-{number}" for number in range(20)))
        async with deadline():
            await bench.stop()


async def test_after_a_broker_that_stood_still_everything_goes_on(broker: Mosquitto) -> None:
    config = HomeAssistantConfig(url=broker.url)
    async with listening(broker.port) as listener, Publishing(config, 0.5) as publishing:
        await until(lambda: publishing.ready == 1)
        broker.signal(signal.SIGSTOP)
        with pytest.raises(BrokerError) as caught:
            await publishing.publisher.publish_event("main", b"1", 60)
        assert not isinstance(caught.value, BrokerAwayError)  # it may have arrived
        await until(lambda: not publishing.publisher.ready)
        publishing.exposed.wanted = {STATE: b'{"a": 1}'}
        broker.signal(signal.SIGCONT)
        await until(lambda: publishing.ready == 2)
        await publishing.publisher.publish_event("main", b"2", 60)
        await until(lambda: listener.kept[STATE] == b'{"a": 1}')
        await until(lambda: (EVENTS, b"2") in listener.heard)


async def test_states_get_their_turn_beside_endless_events(broker: Mosquitto) -> None:
    config = HomeAssistantConfig(url=broker.url)
    async with listening(broker.port) as listener, Publishing(config) as publishing:
        await until(lambda: publishing.ready == 1)

        async def endless() -> None:
            while True:
                await publishing.publisher.publish_event("main", b"1", 60)

        tasks = [asyncio.create_task(endless()) for _ in range(20)]
        await until(lambda: len(listener.said(EVENTS)) > 50)
        publishing.exposed.wanted = {STATE: b'{"a": 1}'}
        await until(lambda: listener.kept[STATE] == b'{"a": 1}')
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_retained_message_that_breaks_the_connection_blocks_no_events(
    broker: Mosquitto,
) -> None:
    async with cutting(broker.port, b"poison") as port:
        config = HomeAssistantConfig(url=f"mqtt://127.0.0.1:{port}")
        async with listening(broker.port) as listener, Publishing(config) as publishing:
            publishing.exposed.wanted = {"a": b"1", "b": b"poison", "c": b"2"}
            await until(lambda: {"a", "c"} <= listener.kept.keys())
            errors = publishing.errors
            for number in range(5):
                await until(lambda: publishing.publisher.ready)
                with contextlib.suppress(BrokerError):
                    await publishing.publisher.publish_event("main", b"%d" % number, 60)
            await until(lambda: publishing.errors > errors)  # it is tried again and again
            assert listener.said(EVENTS)


async def test_an_event_beside_an_update_that_fails_is_kept(broker: Mosquitto) -> None:
    events: list[asyncio.Task[None]] = []

    class Failing(asyncio.Event):
        async def wait(self) -> Literal[True]:
            event = publishing.publisher.publish_event("main", b"{}", 60)
            events.append(asyncio.create_task(event))
            raise BrokerError("cut off")

    async with Publishing(HomeAssistantConfig(url=broker.url)) as publishing:
        await until(lambda: publishing.publisher.ready)
        known, publishing.exposed.known = publishing.exposed.known, Failing()
        await until(lambda: bool(events))
        publishing.exposed.known = known
        ends = await asyncio.gather(*events, return_exceptions=True)
    assert {type(end) for end in ends} == {BrokerAwayError}


async def test_an_exporter_that_begins_to_publish_looks_at_what_others_published(
    broker: Mosquitto,
) -> None:
    gone = "homeassistant/device/esms-exporter/gone/config"
    config = HomeAssistantConfig(url=broker.url)
    async with listening(broker.port) as listener, Publishing(config) as publishing:
        await until(lambda: listener.kept.get(STATE) == b"{}")
        wanted, publishing.exposed.wanted = publishing.exposed.wanted, {}
        publishing.exposed.others = set(wanted)
        await asyncio.sleep(0.5)
        await listener.say(STATE, '{"watched": 17}', retain=True)
        await listener.say(gone, "{}", retain=True)
        await until(lambda: listener.json(STATE) == {"watched": 17} and gone in listener.kept)
        publishing.exposed.wanted = wanted
        await until(lambda: listener.kept[STATE] == b"{}")
        await until(lambda: not listener.kept.get(gone))


async def test_an_exporter_that_cannot_say_goodbye_is_unavailable(broker: Mosquitto) -> None:
    config = HomeAssistantConfig(url=broker.url)
    async with listening(broker.port) as listener, Publishing(config) as publishing:
        await until(lambda: listener.kept.get(AVAILABILITY) == b"online")
        publishing.exposed.known.clear()
        await asyncio.sleep(0.2)
        publishing.publisher.stop(clear_retained=False)
        publishing.running.cancel()
        await until(lambda: listener.kept[AVAILABILITY] == b"offline")


@asynccontextmanager
async def cutting(port: int, poison: bytes, answer: bytes = b"") -> AsyncIterator[int]:
    """A proxy of a broker: answer `poison` with `answer`, and close the connection."""

    async def pump(reader: asyncio.StreamReader, *writers: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while (data := await reader.read(65536)) and poison not in data:
                writers[0].write(data)
                await writers[0].drain()
            if data:
                writers[-1].write(answer)
                await writers[-1].drain()
        writers[0].close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", port)
        pumps = [pump(reader, to_writer, writer), pump(to_reader, writer)]
        tasks = [asyncio.ensure_future(one) for one in pumps]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in (writer, to_writer):
                end.transport.abort()
            await asyncio.gather(*tasks)

    async with peer(serve) as here:
        yield here


async def test_an_event_that_breaks_the_connection_blocks_no_other_one(
    simulator: Simulator, broker: Mosquitto, tmp_path: Path
) -> None:
    async with cutting(broker.port, b'"reference_id":"poison","status"') as port:
        config = HomeAssistantConfig(url=f"mqtt://127.0.0.1:{port}")
        async with (
            listening(broker.port) as listener,
            Bench(simulator, tmp_path, home_assistant=config) as bench,
        ):
            await until(lambda: bench.value("esms_mqtt_connected") == 1)
            names = ["poison", *(f"call-{number}" for number in range(25))]
            await bench.finish(*names)
            await until(
                lambda: {event["reference_id"] for event in listener.said(EVENTS)} == {*names[1:]}
            )
            await until(lambda: bench.done("gave_up", NAME) == 1)
            await until(lambda: STATE in listener.kept)
            await until(lambda: listener.json(STATE)["success_today"] == len(names))
