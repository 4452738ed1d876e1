"""Every exception of the project, in one tree.

    ExporterError
    ├── ConfigError              the configuration cannot be used; carries every problem
    ├── LedgerError              the ledger cannot be used; the message says what to do
    │   ├── LedgerBusyError      another exporter has it
    │   └── LedgerConflictError  another exporter's transaction was in the way
    ├── SourceError              a watch source cannot be read
    ├── CapacityError            there is no room for calls now; there may be later
    ├── ListenError              an address cannot be listened on
    ├── ResultsError             a file of results cannot be used
    ├── BrokerError              the MQTT broker cannot be spoken to
    │   └── BrokerAwayError      it is not connected; nothing was sent
    ├── RemoteExporterError      a running exporter cannot be asked, or refuses to answer
    └── RequestError             an HTTP request to another server got no usable response
        ├── RequestTimeoutError  no complete response within the time-out
        ├── ConnectionFailedError  no connection, or one that broke
        ├── TLSError             the peer could not be authenticated
        └── InvalidResponseError   the response is not HTTP, or larger than allowed

No message of any of them holds a credential, a phone number or the URL of a request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


class ExporterError(Exception):
    """The root of the tree: everything that this project raises on purpose."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a configuration.

    Attributes:
        file: the file as the user named it.
        line: 1 for the first line; 0 where no line can be named.
        key: the path of the key, such as `accounts[0].api_key`; empty for the whole file.
        message: what is wrong and what was expected. Never holds a value that may be a secret.
    """

    file: str
    line: int
    key: str
    message: str

    def __str__(self) -> str:
        """Render as `file:line: key: message`, which editors and terminals make clickable."""
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.key}: {self.message}" if self.key else f"{place}: {self.message}"


class ConfigError(ExporterError):
    """The configuration cannot be used.

    Attributes:
        problems: all of them, in the order of the file; at least one.
    """

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


class LedgerError(ExporterError):
    """The ledger cannot be opened, read or written."""


class LedgerBusyError(LedgerError):
    """Another process uses the ledger."""


class LedgerConflictError(LedgerError):
    """A transaction of another exporter was in the way; the next try sees what it did."""


class SourceError(ExporterError):
    """A watch source cannot be read; the message says why."""


class CapacityError(ExporterError):
    """Calls cannot be taken in now.

    Attributes:
        retry_after: seconds after which it may be worth another try.
    """

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ListenError(ExporterError):
    """An address cannot be listened on."""


class ResultsError(ExporterError):
    """A file of results cannot be read, or not be written further."""


class BrokerError(ExporterError):
    """The MQTT broker cannot be connected, or the connection broke; the message says why."""


class BrokerAwayError(BrokerError):
    """The MQTT broker is not connected; nothing was sent."""


class RemoteExporterError(ExporterError):
    """A running exporter cannot be reached, or does not answer; the message says what to do."""


class RequestError(ExporterError):
    """An HTTP request to another server got no usable response.

    Attributes:
        reason: the kind of failure, as metrics name it.
        sent: whether the request may have reached the server.
    """

    reason: ClassVar[str]
    sent = True


class RequestTimeoutError(RequestError):
    """The last byte had not come when the time-out ended."""

    reason = "timeout"


class ConnectionFailedError(RequestError):
    """No connection could be made, or it broke before the response was complete."""

    reason = "connection"


class TLSError(RequestError):
    """The TLS handshake failed or the certificate is not to be trusted."""

    reason = "tls"


class InvalidResponseError(RequestError):
    """The peer did not speak HTTP, or its response was too large."""

    reason = "bad_response"
