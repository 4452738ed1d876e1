"""A provider that costs as little as can be, so that what is measured is the exporter.

Each call is unknown at first, then queued, then twice awaiting its report, and finished at the
fifth poll: what a call of a minute comes to with the default interval of 15 s.
"""

from __future__ import annotations

import argparse
import asyncio
import ssl
from typing import cast

import uvloop

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "
_UNKNOWN = b'{"CodeResult":"105","CountRegenerate":0,"ErrorMessage":"ReferenceId not found"}'
POLLS = 5
"""Polls of a call, the one that finds it finished included."""


class Provider(asyncio.Protocol):
    """Speaks just the HTTP that a client with keep-alive needs."""

    def __init__(self, polls: dict[bytes, int], *, endless: bool) -> None:
        self._polls = polls
        self._endless = endless
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not inherit from asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            request, self._buffer = self._buffer[:end], self._buffer[end + 4 :]
            target = request[: request.index(b" HTTP/1.1")]
            body = self._body(target[target.index(b"ReferenceId=") + 12 :])
            self._transport.write(b"%b%d\r\n\r\n%b" % (_HEAD, len(body), body))

    def _body(self, reference_id: bytes) -> bytes:
        if self._endless:
            return _unfinished(reference_id, b"7")
        polls = self._polls[reference_id] = self._polls.get(reference_id, 0) + 1
        if polls == 1:
            return _UNKNOWN
        if polls < POLLS:
            return _unfinished(reference_id, b"2" if polls == 2 else b"7")
        return (
            b'{"CallDuration":13,"CallStatus":"ANSWERED","CodeResponse":"100","Ivr":"1",'
            b'"ReferenceId":"%b","SendStatus":5,"SentResult":1}' % reference_id
        )


def _unfinished(reference_id: bytes, state: bytes) -> bytes:
    return (
        b'{"CallDuration":0,"CallStatus":"","CodeResponse":"100","Ivr":"",'
        b'"ReferenceId":"%b","SendStatus":%b,"SentResult":0}' % (reference_id, state)
    )


async def _serve(certificate: str | None, *, endless: bool) -> None:
    context = None
    if certificate:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate)
    polls: dict[bytes, int] = {}
    server = await asyncio.get_running_loop().create_server(
        lambda: Provider(polls, endless=endless), "127.0.0.1", 0, ssl=context, backlog=1024
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--certificate", help="PEM of key and certificate: speak HTTPS")
    parser.add_argument("--endless", action="store_true", help="calls never finish")
    options = parser.parse_args()
    uvloop.run(_serve(options.certificate, endless=options.endless))


if __name__ == "__main__":
    main()
