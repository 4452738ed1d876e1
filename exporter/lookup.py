"""Look calls up by hand: poll each until there is a result for it; count nothing."""

from __future__ import annotations

import asyncio
import csv
import fcntl
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import uvloop
from pydantic_core import from_json

from exporter.calls import (
    Finished,
    GiveUpPolicy,
    Key,
    OddField,
    PollAgain,
    Result,
    Status,
    WatchedCall,
    verdict,
)
from exporter.config import AccountConfig, Config
from exporter.errors import ResultsError
from exporter.esms.answers import Answer
from exporter.esms.client import EsmsClient
from exporter.esms.codes import Outcome
from exporter.ids import ReferenceId, ReferenceKey, reference_key
from exporter.output import csv_header, csv_line, csv_text, json_line
from exporter.polling.circuit_breaker import GOOD
from exporter.polling.poller import Poller, PollingSettings
from exporter.polling.stats import AccountStats
from exporter.signals import handled_signals

FINISHED: Final = "finished"

SUFFIXES: Final = (".csv", ".json", ".jsonl", ".ndjson")
"""Of files of results."""

TRIES: Final = 3
"""How often a call is polled whose polls fail."""

PAUSES: Final = 12
"""Pauses in a row, without a good answer in between, after which an account is given up."""

_RETRY_EVERY: Final = 1.0
"""Seconds until a call whose poll failed is polled again."""

_LOOK_EVERY: Final = 0.05
"""Seconds after which it is checked whether the account is paused, or all is done."""

# A call is polled once where the provider has said this of it, or of the credentials.
_FINAL: Final = frozenset({Outcome.OK, Outcome.NOT_FOUND, Outcome.AUTH, Outcome.API_ERROR})

# No call is too old to be looked up.
_NEVER: Final = GiveUpPolicy(math.inf, math.inf)

# Where the provider's own words are missing.
_MESSAGES: Final = {
    Outcome.BAD_RESPONSE: "the answer is not one about this call",
    Outcome.HTTP_ERROR: "the provider answered with an HTTP error",
    Outcome.THROTTLED: "the provider asks for fewer requests",
}
_GUESSED: Final = "without a SentResult: the result is taken from the status"

CallName = tuple[str, ReferenceKey]
"""An account's name and an id as ids are compared."""


@dataclass(frozen=True, slots=True)
class LookupResult:
    """What was found out about one call, in the words of the metrics.

    Attributes:
        reference_id: as it was named.
        account: whose call it is.
        state: of an open call, or `finished`; None where the provider has not answered.
        result: of a finished call; so are `status`, `duration` (seconds) and `key`.
        status: see `Status`.
        duration: of an answered call.
        key: the first key that the callee pressed.
        outcome: of the request, or of another one because of which none was sent.
        code: the provider's code; `other` for one that is not documented.
        message: the provider's words for a failure, or the exporter's.
        asked_at: when the answer came (UTC); None where no request was sent.
    """

    reference_id: ReferenceId
    account: str
    state: str | None
    result: Result | None
    status: Status | None
    duration: float | None
    key: Key | None
    outcome: Outcome
    code: str | None
    message: str
    asked_at: datetime | None

    @property
    def answered(self) -> bool:
        """Whether the provider has answered, also that it knows no such call."""
        return self.outcome in GOOD

    @property
    def name(self) -> CallName:
        """Which call it is."""
        return self.account, reference_key(self.reference_id)

    @property
    def summary(self) -> str:
        """One word for people: the result, else the state, else why there is none."""
        return self.result or self.state or self.outcome


COLUMNS: Final = tuple(field.name for field in fields(LookupResult))


def result_of(account: str, asked: ReferenceId, answer: Answer, now: float) -> LookupResult:
    """Return what an answer means for a call, as the exporter would decide it.

    Args:
        account: the name of the account.
        asked: the id that was asked for.
        answer: the answer, or the failure that took its place.
        now: Unix time of the answer.
    """
    asked_at = datetime.fromtimestamp(now, UTC).replace(microsecond=0)
    unknown = LookupResult(
        asked,
        account,
        *(None, None, None, None, None),
        answer.outcome,
        answer.code,
        answer.message,
        asked_at,
    )
    decided = verdict(WatchedCall(0, asked, now), answer, now, _NEVER)
    if isinstance(decided, Finished):
        return replace(
            unknown,
            state=FINISHED,
            result=decided.result,
            status=decided.status,
            duration=decided.duration,
            key=decided.key,
            message=_GUESSED if OddField.SENT_RESULT in decided.odd else "",
        )
    if isinstance(decided, PollAgain):
        return replace(unknown, state=decided.state)
    message = answer.message or _MESSAGES.get(decided.outcome, "")
    return replace(unknown, outcome=decided.outcome, message=message)


class ResultsFile:
    """A file to which results are appended, also after Ctrl-C or a crash.

    A last line that is incomplete is removed. Of several lines for a call, the last counts.

    Args:
        path: ends in one of `SUFFIXES`; need not exist.

    Attributes:
        answered: the calls that it holds an answer for.

    Raises:
        ResultsError: it cannot be used, or holds anything else; also from each method.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._csv = path.suffix == ".csv"
        self.answered: set[CallName] = set()
        with self._mapped_errors(), ExitStack() as stack:
            self._file = stack.enter_context(path.open("a+b", buffering=0))
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ResultsError(f"{path}: is being written by another lookup") from None
            self._read()
            stack.pop_all()

    def write(self, results: Iterable[LookupResult]) -> None:
        """Append results. Blocking."""
        as_line = csv_line if self._csv else json_line
        with self._mapped_errors():
            self._append("".join(map(as_line, results)).encode())

    def close(self) -> None:
        """Close it."""
        with self._mapped_errors():
            self._file.close()

    def _read(self) -> None:
        header = csv_header(COLUMNS).encode() if self._csv else b""
        start = header or b'{"reference_id":'
        self._file.seek(0)
        data = self._file.read()
        if not (data.startswith(start) or start.startswith(data)):
            raise ResultsError(f"{self._path}: is no file of results")
        complete = data[: data.rfind(b"\n") + 1]
        for number, line in enumerate(complete.split(b"\n")[:-1], 1):
            if self._csv and number == 1:
                continue
            name, answered = self._parse(line, number)
            self.answered.discard(name)
            if answered:
                self.answered.add(name)
        self._file.truncate(len(complete))
        if not complete:
            self._append(header)

    def _append(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]

    def _parse(self, line: bytes, number: int) -> tuple[CallName, bool]:
        try:
            if self._csv:
                (row,) = csv.reader([line.decode()], strict=True)
                values = dict(zip(COLUMNS, map(csv_text, row), strict=True))
            else:
                values = from_json(line)
            name = values["account"], reference_key(values["reference_id"])
            return name, Outcome(values["outcome"]) in GOOD
        except (ValueError, KeyError, TypeError, AttributeError, csv.Error):
            message = f"{self._path}: is no file of results: line {number} is none"
            raise ResultsError(message) from None

    @contextmanager
    def _mapped_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ResultsError(f"{self._path}: cannot be used: {error.strerror}") from None


ReportPause = Callable[[str, LookupResult, float], None]
"""Called with each pause: the account, why, and for how many seconds."""


class LookupClient:
    """Looks up calls of one account, with the exporter's own poller.

    It ends early where the credentials are refused before any answer was good, and after `PAUSES`.

    Args:
        account: whose calls they are.
        calls: their ids, each once.
        timeout: of one request, in seconds.
        report: takes the result of each call, in the order in which they are known.
        report_pause: see `ReportPause`.

    Must be made inside a running loop.
    """

    def __init__(
        self,
        account: AccountConfig,
        calls: Iterable[ReferenceId],
        *,
        timeout: float,
        report: Callable[[LookupResult], None],
        report_pause: ReportPause,
    ) -> None:
        self._account = account.name
        self._rows = {call: row for row, call in enumerate(calls)}
        self._report, self._report_pause = report, report_pause
        self._tries: Counter[ReferenceId] = Counter()
        self._any_answered = False
        self._pauses = 0  # in a row
        self._failure: LookupResult | None = None  # the last result without an answer
        self._bug: BaseException | None = None
        self._client = EsmsClient(account, timeout)
        settings = PollingSettings(
            _RETRY_EVERY, _RETRY_EVERY, _NEVER, account.rate_limit, account.max_concurrency
        )
        self._poller = Poller(
            account.name, self, settings, AccountStats(), lambda *_: None, self._fail
        )

    async def run(self) -> None:
        """Look all of them up."""
        async with self._client:
            for call, row in self._rows.items():
                self._poller.add(WatchedCall(row, call, time.time()))
            self._poller.wake()
            await self._until_done()
            left = [call.reference_id for call in self._poller.calls.values()]
            await self._poller.stop(0)
        if self._bug:
            raise self._bug
        for call in left:
            if self._failure:
                self._report(replace(self._failure, reference_id=call, asked_at=None))

    async def send_status(self, reference_id: ReferenceId) -> Answer:
        """Poll a call for the poller, whose `Provider` this is."""
        answer = await self._client.send_status(reference_id)
        result = result_of(self._account, reference_id, answer, time.time())
        self._tries[reference_id] += 1
        if result.answered:
            self._any_answered, self._pauses = True, 0
        else:
            self._failure = result
        if result.outcome in _FINAL or self._tries[reference_id] >= TRIES:
            self._poller.remove(self._rows[reference_id])
            self._report(result)
        return answer

    async def _until_done(self) -> None:
        loop, poller = asyncio.get_running_loop(), self._poller
        retry_at, paused_until = loop.time() + _RETRY_EVERY, poller.health.breaker.paused_until
        while poller.calls and self._bug is None:
            await asyncio.sleep(_LOOK_EVERY)
            if loop.time() >= retry_at:
                retry_at += _RETRY_EVERY
                self._retry()
            before, paused_until = paused_until, poller.health.breaker.paused_until
            if poller.paused and self._failure and paused_until != before:
                self._pauses += 1
                refused = poller.paused is Outcome.AUTH and not self._any_answered
                if refused or self._pauses >= PAUSES:
                    return
                self._report_pause(self._account, self._failure, paused_until - loop.time())

    def _retry(self) -> None:
        """Poll again what failed; one call is not to wait for a `Retry-After` that is its own."""
        if not self._poller.paused and not self._poller.backlog().calls:
            for call in self._poller.idle_calls(len(self._rows)):
                self._poller.poll_now(call.id)

    def _fail(self, error: BaseException) -> None:
        self._bug = error


def look_up(
    config: Config,
    calls: Mapping[CallName, ReferenceId],
    write: Callable[[Sequence[LookupResult]], None],
    report_pause: ReportPause,
) -> bool:
    """Look calls up, those of each account at its own pace.

    Args:
        config: the accounts.
        calls: which.
        write: takes results as they come, in a thread: it may block, and what it raises ends all.
        report_pause: see `ReportPause`.

    Returns:
        False where a signal ended it: what was known by then is written.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_look_up(config, calls, write, report_pause))


async def _look_up(
    config: Config,
    calls: Mapping[CallName, ReferenceId],
    write: Callable[[Sequence[LookupResult]], None],
    report_pause: ReportPause,
) -> bool:
    results: asyncio.Queue[LookupResult | None] = asyncio.Queue()
    clients = [
        LookupClient(
            account,
            [asked for (name, _), asked in calls.items() if name == account.name],
            timeout=config.polling.timeout,
            report=results.put_nowait,
            report_pause=report_pause,
        )
        for account in config.accounts
    ]
    looking_up = asyncio.create_task(_run_all(clients))
    writing = asyncio.create_task(_write_all(results, write))
    writing.add_done_callback(lambda _: looking_up.cancel())
    with handled_signals(looking_up.cancel):
        await asyncio.wait({looking_up})
        results.put_nowait(None)
        await writing
    if looking_up.cancelled():
        return False
    looking_up.result()
    return True


async def _run_all(clients: Collection[LookupClient]) -> None:
    async with asyncio.TaskGroup() as tasks:
        for client in clients:
            tasks.create_task(client.run())


async def _write_all(
    results: asyncio.Queue[LookupResult | None], write: Callable[[Sequence[LookupResult]], None]
) -> None:
    # In a thread: an output that is read slowly, or not at all, makes no request late.
    last = False
    while not last:
        batch = [await results.get()]
        while not results.empty():
            batch.append(results.get_nowait())
        last = batch[-1] is None
        await asyncio.to_thread(write, [result for result in batch if result is not None])
