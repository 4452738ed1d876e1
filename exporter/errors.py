"""Every exception of the project, in one tree.

    ExporterError
    ├── ConfigError              the configuration cannot be used; carries every problem
    ├── LedgerError              the ledger cannot be used; the message says what to do
    │   ├── LedgerBusyError      another process has the ledger open
    │   └── LedgerConflictError  a concurrent transaction conflicts
    ├── SourceError              a watch source cannot be read
    ├── CapacityError            a limit of calls is reached; retry later
    ├── BrokerError              the MQTT connection failed
    │   └── BrokerAwayError      there is no connection; nothing was sent
    ├── RemoteExporterError      a running exporter does not answer, or refuses the request
    │   └── ClientCertificateError  it requires a client certificate
    └── RequestError             an HTTP request to another server got no usable response
        ├── RequestTimeoutError  no complete response within the timeout
        ├── ConnectionFailedError  the connection failed or was lost
        ├── TLSError             the peer could not be authenticated
        └── InvalidResponseError  the response is not HTTP, or too large

No message of any of them holds a credential, a phone number or the URL of a request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


class ExporterError(Exception):
    """The base class of all exceptions of this project."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a configuration."""

    file: str  # the path as the user wrote it
    line: int  # from 1; 0 if the problem has no line
    key: str  # path of the key, such as `accounts[0].api_key`; empty for the whole file
    message: str  # what was expected; never holds a value that may be a secret

    def __str__(self) -> str:
        """Render as `file:line: key: message`, which editors and terminals make clickable."""
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.key}: {self.message}" if self.key else f"{place}: {self.message}"


class ConfigError(ExporterError):
    """The configuration cannot be used; has all problems, in the order of the file."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


class LedgerError(ExporterError):
    """The ledger cannot be opened, read or written."""


class LedgerBusyError(LedgerError):
    """Another process has the ledger open."""


class LedgerConflictError(LedgerError):
    """The transaction conflicts with one of another exporter, and can be retried."""


class SourceError(ExporterError):
    """A watch source cannot be read; the message says why."""


class CapacityError(ExporterError):
    """Calls cannot be added now, because a limit is reached; retry after some seconds."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class BrokerError(ExporterError):
    """The connection to the MQTT broker failed or was lost; the message says why."""


class BrokerAwayError(BrokerError):
    """The MQTT broker is not connected; nothing was sent."""


class RemoteExporterError(ExporterError):
    """A running exporter cannot be reached, or does not answer; the message says what to do."""


class ClientCertificateError(RemoteExporterError):
    """A running exporter requires a client certificate."""


class RequestError(ExporterError):
    """An HTTP request to another server got no usable response.

    Attributes:
        reason: the kind of failure, as metrics name it.
        sent: whether the request may have reached the server.
    """

    reason: ClassVar[str]
    sent = True


class RequestTimeoutError(RequestError):
    """The response was not complete within the timeout."""

    reason = "timeout"


class ConnectionFailedError(RequestError):
    """The connection failed, or was lost before the response was complete."""

    reason = "connection"


class TLSError(RequestError):
    """The TLS handshake failed, or the certificate is not trusted."""

    reason = "tls"


class InvalidResponseError(RequestError):
    """The response is not HTTP, or is too large."""

    reason = "bad_response"
