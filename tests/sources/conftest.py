from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.databases import Server, mariadb, postgresql
from tests.sources.queried import File


@pytest.fixture(scope="module", params=["sqlite", "postgresql", "mariadb"])
def database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[File | Server]:
    if request.param == "sqlite":
        yield File(tmp_path_factory.mktemp("sql") / "the calls.db")
        return
    with {"postgresql": postgresql, "mariadb": mariadb}[request.param]() as server:
        yield server
