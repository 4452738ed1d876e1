"""Looking up where a target is, without anybody else waiting for it."""

from __future__ import annotations

import socket

from aiohttp.abc import AbstractResolver, ResolveResult

from exporter.errors import SourceError
from exporter.threads import SerialThread


class Resolver(AbstractResolver):
    """Looks names up in a thread of its own.

    A lookup may take half a minute where no server of names answers. The event loop's few threads
    for that are also those in which the provider's name is looked up.
    """

    def __init__(self) -> None:
        self._thread = SerialThread("names of a target")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of a host.

        Raises:
            OSError: it has none, or none can be found out.
        """
        try:
            found = await self._thread.submit(
                lambda: socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
            )
        except SourceError as error:
            raise OSError(str(error)) from None
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=int(address[1]),
                family=kind,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, _, protocol, _, address in found
        ]

    async def close(self) -> None:
        """End the thread, once it is through."""
        self._thread.close()
