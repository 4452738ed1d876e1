"""The authorities that certificates of other servers are verified against."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from pydantic import BaseModel, PrivateAttr

from exporter.config.files import FileProblemError, NamedFiles


@dataclass(frozen=True, slots=True)
class Authorities:
    """Authorities as they were read; equal where nothing has changed.

    Attributes:
        context: verifies against them.
        version: digest of the certificates, and when their folder changed (in nanoseconds).
    """

    context: ssl.SSLContext = field(compare=False, repr=False)
    version: tuple[bytes, int]


def _authorities(context: ssl.SSLContext, folder: str | None = None) -> Authorities:
    certificates = sorted(context.get_ca_certs(binary_form=True))
    # Certificates of a folder are read when they are needed.
    changed = os.stat(folder).st_mtime_ns if folder else 0  # noqa: PTH116 - a text
    return Authorities(context, (sha256(b"".join(certificates)).digest(), changed))


def system_authorities(files: NamedFiles) -> Authorities:
    """Read the system's authorities, or those that `SSL_CERT_FILE` and `SSL_CERT_DIR` name.

    Args:
        files: takes down the file.

    Raises:
        FileProblemError: the file of `SSL_CERT_FILE` cannot be used.
    """
    paths = ssl.get_default_verify_paths()
    named = os.environ.get(paths.openssl_cafile_env)
    file = Path(named or paths.openssl_cafile)
    files.note(file)
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    if named:  # OpenSSL overlooks a file that it cannot use
        try:
            context.load_verify_locations(file)
        except ssl.SSLError:
            raise FileProblemError(f"the file {file} holds no certificate in PEM") from None
        except OSError as error:
            raise FileProblemError(f"the file {file} cannot be read: {error.strerror}") from None
    return _authorities(context, paths.capath)


def authorities_of(pem: str) -> Authorities:
    """Return the authorities of a text.

    Raises:
        FileProblemError: it holds none.
    """
    try:
        # Comments may hold anything, and are no part of it.
        text = pem.encode("ascii", "replace").decode()
        return _authorities(ssl.create_default_context(cadata=text))
    except (ssl.SSLError, ValueError):
        raise FileProblemError(
            "expected certificates as PEM, between `BEGIN CERTIFICATE` and `END CERTIFICATE`"
        ) from None


class Trusting(BaseModel):
    """A model with the authorities that it was loaded with; None for those that the library has."""

    _authorities: Authorities | None = PrivateAttr(default=None)

    @property
    def authorities(self) -> Authorities | None:
        """The authorities that certificates are verified against."""
        return self._authorities

    @property
    def tls(self) -> ssl.SSLContext | bool:
        """What aiohttp takes to verify against them."""
        return self._authorities.context if self._authorities else True

    def trust(self, authorities: Authorities | None) -> None:
        """Take the authorities that were read with it."""
        self._authorities = authorities
