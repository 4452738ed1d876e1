"""A query, and the calls that its rows are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Sequence
from datetime import UTC, datetime
from itertools import count
from typing import Final, NamedTuple

from pydantic_core import to_json
from sqlalchemy import DateTime, TextClause, bindparam, text

from exporter.config import CallConfig, SqlConfig
from exporter.config.calls import CallReader
from exporter.config.databases import database_url
from exporter.config.document import YamlMapping
from exporter.config.problems import Problems
from exporter.errors import SourceError
from exporter.sources.database import Database
from exporter.sources.tables import as_item, header_problem

BATCH: Final = 1_000


class Rules(NamedTuple):
    """What rows may name, and for how long they can be read again.

    Attributes:
        accounts: the names of the accounts.
        labels: the names in `watch.labels`.
        memory: how long the ledger remembers a call that has finished, in seconds.
    """

    accounts: Sequence[str]
    labels: Sequence[str]
    memory: float


def source_name(config: SqlConfig) -> str:
    """Return the source's name in metrics."""
    return f"sql:{config.name}"


class Query:
    """One query, on one database. Each run connects anew.

    Args:
        config: what to ask, and whom.
        rules: what rows may name.

    Attributes:
        source: its name in metrics.
        digest: the same for the same question to the same database, whatever its password.
        asked_at: when it was last run, by the database's clock (Unix time); None where it does not
            matter.
    """

    def __init__(self, config: SqlConfig, rules: Rules) -> None:
        self.source = source_name(config)
        self._query = config.query
        self._account = config.account
        self._rules = rules
        self._database = Database(config.url, config.timeout)
        url = database_url(config.url).set(password=None).render_as_string()
        asked = [config.query, config.account, url, sorted(rules.accounts), sorted(rules.labels)]
        self.digest = hashlib.sha256(to_json(asked)).hexdigest()
        self.asked_at: float | None = None

    def batches(
        self, since: Callable[[float], float], problems: Problems
    ) -> Generator[tuple[CallConfig, ...], None, None]:
        """Run the query; yields its calls batch by batch. Blocking.

        Args:
            since: makes `:since` of the time by the database's clock (Unix times).
            problems: takes what is wrong with rows; the others are yielded.

        Raises:
            SourceError: the database failed; the message holds nothing of its address.
        """
        reader = CallReader(self._rules.accounts, self._rules.labels, problems, (), repeats=True)
        with self._database.ask(lambda clock: self._statement(since, clock)) as found:
            header = list(found.keys())
            if problem := header_problem(header, self._rules.labels):
                raise SourceError(problem)
            lines = count(1)
            for rows in found.partitions(BATCH):
                items = [self._item(header, row, next(lines)) for row in rows]
                # A call that is just being placed has no id yet: no mistake, and read again soon.
                items = [item for item in items if "reference_id" in item]
                yield tuple(reader.read((item.line_of("reference_id"), item) for item in items))

    def _statement(self, since: Callable[[float], float], clock: Callable[[], float]) -> TextClause:
        query = text(self._query)
        if "since" not in query.compile().params:
            return query
        # Before the query: what it does not see yet was written after that.
        self.asked_at = clock()
        # Without a zone, because columns mostly are; the session's is UTC.
        moment = datetime.fromtimestamp(since(self.asked_at), UTC).replace(tzinfo=None)
        return query.bindparams(bindparam("since", moment, type_=DateTime()))

    def _item(self, header: Sequence[str], row: Sequence[object], line: int) -> YamlMapping:
        item = as_item(header, [_field(value) for value in row], line)
        if self._account is not None and "account" not in item:
            item["account"] = self._account
            item.lines.append(line)
        return item


def _field(value: object) -> str:
    """Return a field as text: numbers and UUIDs too; what is none becomes what no id can be."""
    if value is None:
        return ""
    return "\0" if isinstance(value, bytes | bytearray | memoryview) else str(value)
