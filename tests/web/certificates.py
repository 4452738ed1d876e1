"""Certificates for tests."""

from __future__ import annotations

import ssl
from datetime import datetime
from pathlib import Path

import trustme


class Certificates:
    """An authority, with certificates of a server in files, and of clients."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = trustme.CA()
        self.renew()

    def renew(self) -> None:
        """Write a new certificate and key for the server."""
        self.write(self.authority)

    def write(
        self, authority: trustme.CA, begin: datetime | None = None, end: datetime | None = None
    ) -> None:
        server = authority.issue_cert("localhost", "127.0.0.1", not_before=begin, not_after=end)
        self._put("server.crt", b"".join(pem.bytes() for pem in server.cert_chain_pems))
        self._put("server.key", server.private_key_pem.bytes())
        self._put("ca.crt", self.authority.cert_pem.bytes())

    def _put(self, name: str, data: bytes) -> None:
        path = self.folder / name
        aside = path.with_suffix(".new")
        aside.write_bytes(data)
        aside.chmod(0o600)
        aside.replace(path)

    def text(self, name: str) -> str:
        return (self.folder / name).read_text()

    def client(self, *names: str, authority: trustme.CA | None = None) -> ssl.SSLContext:
        """Return what a client connects with, with a certificate of these names if any."""
        context = ssl.create_default_context(cadata=self.authority.cert_pem.bytes().decode())
        if names:
            (authority or self.authority).issue_cert(*names).configure_cert(context)
        return context
