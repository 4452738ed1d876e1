"""Databases to query: an SQLite file, and servers; and queries on them."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from exporter.config import SqlConfig
from exporter.secrets import Secret
from exporter.sources.source import SourceContext
from tests.databases import Server

DAY = 86_400.0
CONTEXT = SourceContext(("main", "b"), ("campaign",), 30 * DAY)
QUERY = "SELECT reference_id, account, campaign FROM calls ORDER BY id"


class File:
    """An SQLite file in the place of a server."""

    def __init__(self, path: Path) -> None:
        self.url = f"sqlite:///{path}"

    def execute(self, *statements: str) -> None:
        with create_engine(self.url, poolclass=NullPool).begin() as connection:
            for statement in statements:
                connection.execute(text(statement))


def kind(database: File | Server) -> str:
    return database.url.partition(":")[0].partition("+")[0]


def config(table: File | Server, query: str = QUERY, **more: object) -> SqlConfig:
    fields = {"name": "orders", "url": Secret(table.url), "query": query, "interval": 1.0, **more}
    return SqlConfig.model_validate(fields)


def many(database: File | Server, column: str = "reference_id") -> SqlConfig:
    """Return a query with more rows than any test reads."""
    query = {
        "postgresql": f"SELECT 'c' || generate_series(1, 20000000) AS {column}",
        "mariadb": f"SELECT CONCAT('c', seq) AS {column} FROM seq_1_to_20000000",
        "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
        f" SELECT 'c' || i AS {column} FROM n",
    }[kind(database)]
    return config(database, query, account="main")
