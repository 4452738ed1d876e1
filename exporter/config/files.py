"""Files that a configuration names: texts, secrets and certificates of authorities."""

from __future__ import annotations

import io
import os
import ssl
import stat
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class FileProblemError(Exception):
    """A file cannot be used; the message says why and holds nothing of its content.

    Attributes:
        line: where, or 0.
        path: the keys and indices that lead there.
    """

    line: int = 0
    path: tuple[str | int, ...] = ()


class _Bounded(io.RawIOBase):
    """The bytes of a file; fails beyond a limit, also where the file grows."""

    def __init__(self, file: io.FileIO, limit: int) -> None:
        self._file = file
        self._limit = self._left = limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int | None:
        count = self._file.readinto(buffer)
        self._left -= count or 0
        if self._left < 0:
            raise _too_large(self._limit)
        return count


def _open_at_once(path: str, flags: int) -> int:
    """Open a file without waiting: a FIFO waits for a writer that may never come."""
    return os.open(path, flags | os.O_NONBLOCK)


@contextmanager
def open_text(path: Path, limit: int, newline: str = "\n") -> Iterator[TextIO]:
    """Open a regular file of at most `limit` bytes of text: UTF-8, or UTF-16 with its mark.

    `newline` says where lines end, as of `open`; they are not translated.

    Raises:
        FileProblemError: it cannot be read, is not regular, too large or no such text; also
            while it is read within the block.
    """
    try:
        # Looked at when it is open, so that nothing can be swapped in between.
        with io.FileIO(path, opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise FileProblemError("cannot be read: not a regular file")
            if status.st_size > limit:
                raise _too_large(limit)
            raw = io.BufferedReader(_Bounded(file, limit))
            # Excel's "Unicode text", and what PowerShell redirects.
            is_utf_16 = raw.peek(2)[:2] in (BOM_UTF16_LE, BOM_UTF16_BE)
            encoding = "utf-16" if is_utf_16 else "utf-8-sig"
            yield io.TextIOWrapper(raw, encoding=encoding, newline=newline)
    except OSError as error:
        raise FileProblemError(f"cannot be read: {error.strerror}") from None
    except UnicodeError:
        raise FileProblemError("is not UTF-8 text") from None
    except ValueError:
        raise FileProblemError("cannot be read: not a path") from None


def read_text(path: Path, limit: int) -> str:
    """Return the text of a file, as of `open_text`."""
    with open_text(path, limit) as file:
        return file.read()


def _too_large(limit: int) -> FileProblemError:
    return FileProblemError(f"is larger than {limit >> 10} KiB")


@dataclass(slots=True)
class NamedFiles:
    """The files that a configuration names.

    Attributes:
        paths: of all of them, also of those that cannot be read.
        exposed: of those that hold a secret and that anybody on the machine can read.
        before: called with each file before it is read.
    """

    paths: set[Path] = field(default_factory=set)
    exposed: set[Path] = field(default_factory=set)
    before: Callable[[Path], None] = lambda _: None

    def note(self, path: Path) -> None:
        """Record a file that is about to be read."""
        self.paths.add(path)
        self.before(path)

    def read(self, path: Path, limit: int, *, secret: bool = False) -> str:
        """Read a file, as `read_text` does; errors name the file, whose path is no secret."""
        self.note(path)
        try:
            text = read_text(path, limit)
        except FileProblemError as error:
            shown = "".join(c if c.isprintable() else "?" for c in os.path.abspath(path))  # noqa: PTH100 - keeps symlinks
            raise FileProblemError(f"the file {shown} {error}") from None
        with suppress(OSError):  # removed since it was read
            if secret and path.stat().st_mode & stat.S_IROTH:
                self.exposed.add(path)
        return text


@dataclass(frozen=True, slots=True)
class Authorities:
    """Authorities that certificates of servers are verified against; equal where nothing changed.

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

    Raises:
        FileProblemError: the file of `SSL_CERT_FILE` cannot be used.
    """
    paths = ssl.get_default_verify_paths()
    named = os.environ.get(paths.openssl_cafile_env)
    file = Path(named or paths.openssl_cafile)
    files.note(file)
    try:
        # OpenSSL overlooks a file of its environment variable that it cannot use.
        folder = paths.capath if named else None
        context = ssl.create_default_context(cafile=named, capath=folder)
    except ssl.SSLError:
        raise FileProblemError(f"the file {file} holds no certificate in PEM") from None
    except OSError as error:
        raise FileProblemError(f"the file {file} cannot be read: {error.strerror}") from None
    context.set_alpn_protocols(["http/1.1"])
    return _authorities(context, paths.capath)


def authorities_of(pem: str) -> Authorities:
    """Return the authorities of a text in PEM; raises `FileProblemError` where it holds none."""
    try:
        # Comments may hold anything, and are no part of it.
        text = pem.encode("ascii", "replace").decode()
        return _authorities(ssl.create_default_context(cadata=text))
    except (ssl.SSLError, ValueError):
        raise FileProblemError(
            "expected certificates as PEM, between `BEGIN CERTIFICATE` and `END CERTIFICATE`"
        ) from None
