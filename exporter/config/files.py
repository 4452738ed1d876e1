"""Read the files that a configuration names: text, secrets and CA certificates."""

from __future__ import annotations

import io
import os
import ssl
import stat
import tempfile
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, TextIO
from weakref import WeakValueDictionary


class FileProblemError(Exception):
    """A file cannot be used; the message never contains its content.

    `line` and `path` (keys and indices) lead to the problem, if it is in a line.
    """

    def __init__(self, message: str, line: int = 0, path: Iterable[str | int] = ()) -> None:
        super().__init__(message)
        self.line, self.path = line, tuple(path)


@contextmanager
def open_text(path: Path, limit: int, newline: str = "\n") -> Iterator[TextIO]:
    """Open a regular file of at most `limit` bytes of text: UTF-8, or UTF-16 with a BOM.

    Raises `FileProblemError` for any other file, also from reads within the block.
    """
    try:
        # A FIFO without a writer must not block. Check the open file: its path may change between
        # a check and the opening.
        with open(path, "rb", opener=lambda name, how: os.open(name, how | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise FileProblemError("cannot be read: not a regular file")
            if status.st_size > limit:
                raise FileProblemError(f"is larger than {limit >> 10} KiB")
            # "Unicode text" of Excel, and redirected output of PowerShell.
            is_utf_16 = file.peek(2)[:2] in (BOM_UTF16_LE, BOM_UTF16_BE)
            encoding = "utf-16" if is_utf_16 else "utf-8-sig"
            yield io.TextIOWrapper(file, encoding=encoding, newline=newline)
    except OSError as error:
        raise FileProblemError(f"cannot be read: {error.strerror}") from None
    except UnicodeError:
        raise FileProblemError("is not UTF-8 text") from None
    except ValueError:
        raise FileProblemError("cannot be read: not a path") from None


def read_text(path: Path, limit: int) -> str:
    """Return the text of a file; see `open_text`."""
    with open_text(path, limit) as file:
        return file.read()


class FileStat(NamedTuple):
    """The attributes that show a change of a file; times in nanoseconds."""

    device: int
    inode: int
    mtime: int
    ctime: int
    size: int


def stat_file(path: str | Path) -> FileStat | None:
    """Return the stat of a path; None for a folder or an inaccessible path."""
    try:
        found = os.stat(path)  # noqa: PTH116 - half the time, for thousands of files
    except (OSError, ValueError):
        return None
    if stat.S_ISDIR(found.st_mode):
        return None
    times = found.st_mtime_ns, found.st_ctime_ns
    return FileStat(found.st_dev, found.st_ino, *times, found.st_size)


@dataclass(slots=True)
class NamedFiles:
    """The files that a configuration names, including unreadable ones."""

    stats: dict[Path, FileStat | None] = field(default_factory=dict)  # before they were read
    exposed: set[Path] = field(default_factory=set)  # secrets that every user can read

    def note(self, path: Path) -> None:
        """Record a file before it is read."""
        self.stats.setdefault(path, stat_file(path))

    def read(self, path: Path, limit: int, *, secret: bool = False) -> str:
        """Record and read a file; see `read_text`. Errors name the file."""
        self.note(path)
        try:
            text = read_text(path, limit)
        except FileProblemError as error:
            shown = "".join(c if c.isprintable() else "?" for c in os.path.abspath(path))  # noqa: PTH100 - keeps symlinks
            raise FileProblemError(f"the file {shown} {error}") from None
        with suppress(OSError):  # the file may be gone
            if secret and path.stat().st_mode & stat.S_IROTH:
                self.exposed.add(path)
        return text


# Equal certificates are one object, so that a reload without a change keeps the connections.
_contexts: Final = WeakValueDictionary[object, ssl.SSLContext]()


def system_tls(files: NamedFiles) -> ssl.SSLContext:
    """Return TLS with the authorities of the system, or of `SSL_CERT_FILE` and `SSL_CERT_DIR`."""
    paths = ssl.get_default_verify_paths()
    named = os.environ.get(paths.openssl_cafile_env)
    file = Path(named or paths.openssl_cafile)
    files.note(file)
    try:
        # OpenSSL ignores an unusable file in `SSL_CERT_FILE`: pass it explicitly.
        folder = paths.capath if named else None
        context = ssl.create_default_context(cafile=named, capath=folder)
    except ssl.SSLError:
        raise FileProblemError(f"the file {file} contains no PEM certificate") from None
    except OSError as error:
        raise FileProblemError(f"the file {file} cannot be read: {error.strerror}") from None
    context.set_alpn_protocols(["http/1.1"])
    # OpenSSL reads certificates in a folder on demand.
    changed = os.stat(paths.capath).st_mtime_ns if paths.capath else 0  # noqa: PTH116 - a text
    certificates = frozenset(context.get_ca_certs(binary_form=True))
    return _contexts.setdefault((certificates, changed), context)


def ascii_pem(pem: str) -> str:
    """Return PEM text in ASCII, as `ssl` requires; in comments, other characters become `?`."""
    return pem.encode("ascii", "replace").decode()


@contextmanager
def as_file(content: str) -> Iterator[str]:
    """Yield the path of an in-memory file, so that no key is written to a disk."""
    in_memory = hasattr(os, "memfd_create")
    with (
        os.fdopen(os.memfd_create("tls"), "w", encoding="utf-8")
        if in_memory
        else tempfile.NamedTemporaryFile("w", encoding="utf-8")
    ) as file:
        file.write(content)
        file.flush()
        yield f"/proc/self/fd/{file.fileno()}" if in_memory else file.name


def load_certificate(context: ssl.SSLContext, certificate: str, key: str) -> None:
    """Present a certificate to peers; both texts are PEM. Raises `FileProblemError`."""
    try:
        with as_file(certificate) as first, as_file(key) as second:
            # Never prompt for a password.
            context.load_cert_chain(first, second, password=lambda: "")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or "expected a certificate and a key in PEM"
        raise FileProblemError(f"failed to load X509KeyPair: {reason}") from None
