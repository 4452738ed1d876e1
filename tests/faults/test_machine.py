"""Whatever happens on the exporter's machine or comes from scrapers: a process for each fault."""

from __future__ import annotations

import asyncio
import resource
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pytest

from exporter.simulator import Simulator
from tests import subprocesses
from tests.e2e.processes import total
from tests.faults.scene import Outcomes, Scene, environment, judge, run_together
from tests.programs import program, unavailable
from tests.waiting import until

ACCOUNT = "main"
HOST = "provider.invalid"
LASTS = 4.0  # seconds
STOPPED = 60.0
HOUR = 3600.0
DNS_CACHE: Final = 11.0
"""Seconds after which the exporter looks names up anew: 10, and one more."""

BOUNDARIES: Final = 14
"""Commits of one life that are died at: some eight at the start, and then groups of verdicts."""

SCRAPERS: Final = 50
REQUEST: Final = b"GET /metrics HTTP/1.1\r\nHost: exporter\r\n\r\n"
PIPELINED: Final = 100
"""Requests whose answers together are more than the kernel holds for a connection."""

AT_ONCE: Final = 6
"""Cases; more would only be in each other's way."""


# File systems and names.


def run(*command: str) -> str:
    return subprocesses.run(*command, check=True).stdout.strip()


def mount(*options: str) -> None:
    try:
        run("mount", *options)
    except (OSError, subprocess.CalledProcessError):
        unavailable("needs to mount file systems: run it as root, outside of a container")


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    mount("-t", "tmpfs", "-o", "size=2m", "ledger-disk", str(folder))
    try:
        yield folder
    finally:
        run("umount", str(folder))


@contextmanager
def breakable_disk(folder: Path) -> Iterator[Path]:
    """A file system that turns read-only when it meets an error, as servers' do."""
    image = folder.with_suffix(".image")
    with image.open("wb") as file:
        file.truncate(8 << 20)
    run(program("mkfs.ext4", "apt-get install e2fsprogs"), "-q", "-O^has_journal", str(image))
    mount_image(image, folder)
    try:
        yield folder
    finally:
        run("umount", str(folder))


def mount_image(image: Path, folder: Path) -> None:
    mount("-o", "loop,errors=remount-ro", str(image), str(folder))


def namespace(folder: Path) -> list[str]:
    """Return a program that becomes another, for which `hosts` in a folder knows all hosts."""
    (folder / "hosts").write_text(f"127.0.0.1 {HOST}\n")
    # Nobody listens there: what `hosts` does not know is not known at once.
    (folder / "resolv.conf").write_text("nameserver 127.0.0.254\n")
    if subprocesses.run("unshare", "--mount", "true").returncode:
        unavailable("needs a mount namespace: run it as root, outside of a container")
    # Disks of other cases would be held beyond their end.
    let_go = f"findmnt -rno TARGET | grep '^{folder.parent}/' | xargs -r umount -l; "
    over = "".join(f"mount --bind '{folder}/{f}' /etc/{f} && " for f in ("hosts", "resolv.conf"))
    return ["unshare", "--mount", "sh", "-c", let_go + over + 'exec "$@"', "sh"]


# Faults: each happens, shows, and is over on return.


async def killed_at_every_commit(scene: Scene) -> None:
    wanted = scene.folder / "commits"
    await scene.exporter.kill()
    for number in range(1, BOUNDARIES + 1):
        for when in ("before", "after"):
            wanted.write_text(f"{number} {when}")
            await scene.exporter.start()
            assert await scene.exporter.wait() == -signal.SIGKILL, scene.exporter.output
    wanted.write_text("0 never")
    await scene.start()
    scene.settle()


async def disk_full(scene: Scene) -> None:
    ballast = scene.ledger.parent / "ballast"
    with ballast.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(b"\0" * 4096)
            except OSError:
                break
    await scene.until_unready("the disk is full")
    await asyncio.sleep(LASTS)
    ballast.unlink()


async def read_only(scene: Scene) -> None:
    """The kernel lets nobody write any more; who looks after the machine checks and mounts anew."""
    folder = scene.ledger.parent
    device = Path(run("findmnt", "-no", "SOURCE", str(folder))).name
    Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("1")  # noqa: ASYNC240 - of the kernel
    await scene.until_unready("check the disk")
    await asyncio.sleep(LASTS)
    await scene.exporter.stop()
    run("umount", str(folder))
    image = folder.with_suffix(".image")
    # The namespace of another case may have been made meanwhile, and hold the disk for a moment.
    await until(lambda: not run("losetup", "-j", str(image)))
    check = program("e2fsck", "apt-get install e2fsprogs"), "-fy", str(image)
    assert subprocesses.run(*check).returncode in {0, 1}  # good, or repaired
    mount_image(image, folder)
    await scene.start()
    scene.settle()


async def held_by_another(scene: Scene) -> None:
    with closing(sqlite3.connect(scene.ledger, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        await scene.until_unready("is locked by another program")
        other.execute("ROLLBACK")


def deleted(pattern: str) -> Callable[[Scene], Awaitable[None]]:
    async def delete(scene: Scene) -> None:
        for file in scene.ledger.parent.glob(pattern):
            file.unlink()
        await asyncio.sleep(LASTS)
        await scene.exporter.says("missing ledger file recreated")
        assert scene.ledger.exists()

    return delete


async def stopped(scene: Scene) -> None:
    scene.exporter.send(signal.SIGSTOP)
    await asyncio.sleep(STOPPED)
    assert scene.status("State").startswith("T")
    scene.exporter.send(signal.SIGCONT)


async def clock_jumps(scene: Scene) -> None:
    clock = scene.folder / "clock"
    polled = "esms_last_successful_poll_timestamp_seconds"
    for jump in (HOUR, -HOUR, 0.0):
        (scene.folder / "new").write_text(str(jump))
        (scene.folder / "new").rename(clock)
        if jump:
            await scene.exporter.until(
                lambda found, by=jump: abs(total(found, polled) - time.time() - by) < HOUR / 2  # type: ignore[misc]
            )
            await asyncio.sleep(LASTS)


async def no_connection(scene: Scene) -> None:
    """Have connections made anew, which cannot be had."""
    await scene.simulators[ACCOUNT].stop()
    await scene.simulators[ACCOUNT].start()
    await scene.exporter.says("account paused.*reason=connection")


async def no_files_left(scene: Scene) -> None:
    pid = scene.exporter.running.pid
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    usual = resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, hard))
    await no_connection(scene)
    await asyncio.sleep(LASTS)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, usual)


async def no_names(scene: Scene) -> None:
    hosts = scene.folder / "hosts"
    known = hosts.read_text()
    hosts.write_text("")
    await asyncio.sleep(DNS_CACHE)
    await no_connection(scene)
    hosts.write_text(known)


async def no_threads(scene: Scene) -> None:
    """Whatever wants a thread meanwhile: scrapes that are compressed, a reload, files, a query."""
    switch = scene.folder / "threads"
    switch.touch()
    end = time.monotonic() + LASTS
    while time.monotonic() < end:
        await asyncio.gather(*(scene.exporter.scrape() for _ in range(8)))
        scene.config.touch()
    # Those that are there go on: that of the query too.
    began = time.time()
    last_read = "esms_source_last_success_timestamp_seconds"
    await scene.exporter.until(lambda found: total(found, last_read, source="sql:query") > began)
    switch.unlink()


# Scrapers that do what they should not.


async def connect(scene: Scene) -> socket.socket:
    address = urlsplit(scene.exporter.url)
    connection = socket.socket()
    # Before it is connected, so that the peer learns of it.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, (address.hostname, address.port))
    return connection


async def many_at_once(scene: Scene) -> None:
    before = scene.scrapes.newest
    found = await asyncio.gather(*(scene.exporter.scrape() for _ in range(SCRAPERS)))
    assert all(len(samples) >= len(before) for samples in found)


async def leaving_in_the_middle(scene: Scene) -> None:
    loop = asyncio.get_running_loop()

    async def leave() -> None:
        with await connect(scene) as connection:
            await loop.sock_sendall(connection, REQUEST * 2)
            await loop.sock_recv(connection, 512)

    await asyncio.gather(*(leave() for _ in range(SCRAPERS)))


async def never_reading(scene: Scene) -> None:
    loop = asyncio.get_running_loop()
    with ExitStack() as stack:
        for _ in range(SCRAPERS):
            connection = stack.enter_context(await connect(scene))
            await loop.sock_sendall(connection, REQUEST * PIPELINED)
        await asyncio.sleep(5)
        # Others get their answers meanwhile.
        await scene.exporter.scrape()


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
    disk: Callable[[Path], AbstractContextManager[Path]] = nullcontext
    preload: tuple[str, str | None] | None = None
    by_name: bool = False
    calls: int = 5
    endless: int = 1
    query: str | None = None


# The long ones first.
CASES = {
    "stopped-for-a-minute": Case(stopped, lasts=STOPPED),
    "killed-at-every-commit": Case(
        killed_at_every_commit, lasts=45, preload=("commits", "0 never"), calls=200
    ),
    "no-names": Case(no_names, by_name=True),
    "file-system-turned-read-only": Case(read_only, disk=breakable_disk),
    "disk-full": Case(disk_full, disk=small_disk),
    "ledger-held-by-another": Case(held_by_another),
    "ledger-deleted": Case(deleted("ledger.db")),
    "ledger-deleted-with-all": Case(deleted("ledger.db*")),
    "clock-jumps": Case(clock_jumps, preload=("clock", "0")),
    "no-files-left": Case(no_files_left),
    "no-threads": Case(
        no_threads,
        preload=("threads", None),
        endless=50,
        query="SELECT reference_id FROM calls WHERE false",
    ),
    "many-scrapers": Case(many_at_once),
    "scrapers-that-leave": Case(leaving_in_the_middle),
    "scrapers-that-never-read": Case(never_reading),
}


async def withstand(folder: Path, case: Case) -> None:
    (folder / "ledger").mkdir()
    environ: dict[str, str] = {}
    if case.preload:
        name, content = case.preload
        environ = environment(**{name: folder / name})
        if content is not None:
            (folder / name).write_text(content)
    with case.disk(folder / "ledger") as disk:
        async with Scene(
            folder,
            {ACCOUNT: Simulator()},
            ledger=disk / "ledger.db",
            host=HOST if case.by_name else "127.0.0.1",
            calls=case.calls,
            endless=case.endless,
            query=case.query,
            environ=environ,
            inside=namespace(folder) if case.by_name else (),
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


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    folder = tmp_path_factory.mktemp("machine")

    async def withstand_all() -> Outcomes:
        for name in CASES:
            (folder / name).mkdir()
        cases = {name: withstand(folder / name, case) for name, case in CASES.items()}
        return await run_together(cases, AT_ONCE)

    return asyncio.run(withstand_all())


@pytest.mark.parametrize("name", CASES)
def test_every_call_is_counted_once_in_time(outcomes: Outcomes, name: str) -> None:
    judge(outcomes, name)
