"""A server that authenticates as MySQL 8 does by default, for which there is no server here."""

from __future__ import annotations

import itertools
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from exporter.config.document import Problems
from exporter.errors import SourceError
from exporter.secrets import Secret
from exporter.sources.sql import Query
from tests.sources.queried import CONTEXT, File, config

PASSWORD = "made-up password"
SALT = b"saltsaltsaltsaltsalt"
PLUGIN = b"caching_sha2_password\0"
# With a database, protocol 4.1, authentication by a plugin, and no TLS.
CAPABILITIES = 0x8 | 0x200 | 0x8000 | 0x80000


class Peer:
    """The packets of one connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._file = connection.makefile("rwb")
        self._number = 0

    def send(self, payload: bytes) -> None:
        self._file.write(struct.pack("<I", len(payload))[:3] + bytes([self._number]) + payload)
        self._file.flush()

    def receive(self) -> bytes:
        *size, number = self._file.read(4)
        self._number = number + 1
        return self._file.read(int.from_bytes(bytes(size), "little"))


def authenticate(peer: Peer) -> bytes:
    """Ask for the password as `caching_sha2_password` does where it is not cached; return it."""
    low, high = CAPABILITIES & 0xFFFF, CAPABILITIES >> 16
    peer.send(
        b"\x0a8.4.0\0" + struct.pack("<I", 1) + SALT[:8] + b"\0" + struct.pack("<H", low) + b"\x2d"
        + struct.pack("<HHB", 2, high, len(SALT) + 1) + bytes(10) + SALT[8:] + b"\0" + PLUGIN
    )  # fmt: skip
    peer.receive()
    peer.send(b"\x01\x04")  # the whole authentication is needed
    assert peer.receive() == b"\x02"  # the public key, please
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    peer.send(
        b"\x01"
        + key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    oaep = padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)
    shown = key.decrypt(peer.receive(), oaep)
    return bytes(a ^ b for a, b in zip(shown, itertools.cycle(SALT), strict=False))


@pytest.fixture
def server() -> Iterator[tuple[int, list[bytes]]]:
    """The port of a server, and the passwords that it was shown."""
    shown: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                peer = Peer(connection)
                shown.append(authenticate(peer))
                peer.send(b"\xff" + struct.pack("<H", 1049) + b"#42000Unknown database 'calls'")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1], shown
        thread.join(60)


def test_a_user_of_mysql_8_is_authenticated(server: tuple[int, list[bytes]]) -> None:
    port, shown = server
    address = f"mysql://esms:{PASSWORD.replace(' ', '%20')}@127.0.0.1:{port}/calls"
    query = Query(config(File(Path()), url=Secret(address)), CONTEXT)
    with pytest.raises(SourceError, match="1049"):
        next(query.batches(lambda now: now, Problems("")))
    assert shown == [PASSWORD.encode() + b"\0"]
