"""Whatever happens on the exporter's machine or comes from scrapers: a process for each fault."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from exporter.simulator import Simulator
from tests.faults import commits, machine, scrapers
from tests.faults.machine import ACCOUNT
from tests.faults.scene import Scene, environment
from tests.faults.together import Outcomes, judge, run_together

AT_ONCE = 6
"""Cases; more would only be in each other's way."""


@contextmanager
def own_folder(folder: Path) -> Iterator[Path]:
    yield folder


@dataclass(frozen=True)
class Case:
    """A fault.

    Attributes:
        happens: has it happen, and returns when it is over.
        lasts: seconds over which calls finish meanwhile.
        disk: where the ledger is.
        preload: the fault of `preload/sitecustomize.py` that it needs, and what it starts with.
        by_name: the provider is reached by a name that `hosts` holds.
        calls: in each phase.
        endless: calls with labels of their own, for a large exposition.
        query: a watch source that finds nothing.
    """

    happens: Callable[[Scene], Awaitable[None]]
    lasts: float = 2.0
    disk: Callable[[Path], AbstractContextManager[Path]] = own_folder
    preload: tuple[str, str | None] | None = None
    by_name: bool = False
    calls: int = 5
    endless: int = 1
    query: str | None = None


# The long ones first.
CASES = {
    "stopped-for-a-minute": Case(machine.stopped, lasts=machine.STOPPED),
    "killed-at-every-commit": Case(
        commits.killed_at_every_commit, lasts=45, preload=("commits", "0 never"), calls=200
    ),
    "no-names": Case(machine.no_names, by_name=True),
    "file-system-turned-read-only": Case(machine.read_only, disk=machine.breakable_disk),
    "disk-full": Case(machine.disk_full, disk=machine.small_disk),
    "ledger-held-by-another": Case(machine.held_by_another),
    "ledger-deleted": Case(machine.deleted),
    "ledger-deleted-with-all": Case(machine.deleted_with_all),
    "clock-jumps": Case(machine.clock_jumps, preload=("clock", "0")),
    "no-files-left": Case(machine.no_files_left),
    "no-threads": Case(
        machine.no_threads,
        preload=("threads", None),
        endless=50,
        query="SELECT reference_id FROM calls WHERE false",
    ),
    "many-scrapers": Case(scrapers.many_at_once),
    "scrapers-that-leave": Case(scrapers.leaving_in_the_middle),
    "scrapers-that-never-read": Case(scrapers.never_reading),
}


async def withstand(folder: Path, case: Case) -> None:
    ledgers = folder / "ledger"
    ledgers.mkdir()
    environ: dict[str, str] = {}
    if case.preload:
        name, content = case.preload
        environ = environment(**{name: folder / name})
        if content is not None:
            (folder / name).write_text(content)
    with case.disk(ledgers) as disk:
        async with Scene(
            folder,
            {ACCOUNT: Simulator()},
            ledger=disk / "ledger.db",
            host=machine.HOST if case.by_name else "127.0.0.1",
            calls=case.calls,
            endless=case.endless,
            query=case.query,
            environ=environ,
            inside=machine.namespace(folder) if case.by_name else (),
        ) as scene:
            scene.place(ACCOUNT, "before")
            await scene.until_counted(ACCOUNT)
            scene.settle()
            scene.place(ACCOUNT, "during", case.lasts)
            await case.happens(scene)
            await scene.until_ended(ACCOUNT)
            scene.place(ACCOUNT, "after")
            await scene.until_counted(ACCOUNT)
            await scene.keeps_its_promise()


async def withstand_all(folder: Path) -> Outcomes:
    cases = {}
    for name, case in CASES.items():
        (folder / name).mkdir()
        cases[name] = withstand(folder / name, case)
    return await run_together(cases, AT_ONCE)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    return asyncio.run(withstand_all(tmp_path_factory.mktemp("machine")))


@pytest.mark.parametrize("name", CASES)
def test_every_call_is_counted_once_in_time(outcomes: Outcomes, name: str) -> None:
    judge(outcomes, name)
