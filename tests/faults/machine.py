"""What goes wrong on the exporter's own machine: it happens, shows, and is over on return."""

from __future__ import annotations

import asyncio
import resource
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from tests import subprocesses
from tests.e2e.processes import Series, total
from tests.faults.scene import Scene
from tests.programs import program, unavailable
from tests.waiting import until

ACCOUNT = "main"
LASTS = 4.0
STOPPED = 60.0
DNS_CACHE = 11.0
"""Seconds after which the exporter looks names up anew: 10, and one more."""

HOUR = 3600.0
HOST = "provider.invalid"


# File systems.


def run(*command: str) -> str:
    done = subprocesses.run(*command, check=True)
    return done.stdout.strip()


def result(*command: str) -> int:
    return subprocesses.run(*command).returncode


def write(path: str, content: str) -> None:
    Path(path).write_text(content)


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


# Names.


def namespace(folder: Path) -> list[str]:
    """Return a program that becomes another, for which `hosts` in a folder knows all hosts."""
    (folder / "hosts").write_text(f"127.0.0.1 {HOST}\n")
    # Nobody listens there: what `hosts` does not know is not known at once.
    (folder / "resolv.conf").write_text("nameserver 127.0.0.254\n")
    if result("unshare", "--mount", "true"):
        unavailable("needs a mount namespace: run it as root, outside of a container")
    # Disks of other cases would be held beyond their end.
    let_go = f"findmnt -rno TARGET | grep '^{folder.parent}/' | xargs -r umount -l; "
    over = "".join(f"mount --bind '{folder}/{f}' /etc/{f} && " for f in ("hosts", "resolv.conf"))
    return ["unshare", "--mount", "sh", "-c", let_go + over + 'exec "$@"', "sh"]


# Faults.


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
    write(f"/sys/fs/ext4/{device}/trigger_fs_error", "1")
    await scene.until_unready("check the disk")
    await asyncio.sleep(LASTS)
    await scene.exporter.stop()
    run("umount", str(folder))
    image = folder.with_suffix(".image")
    # The namespace of another case may have been made meanwhile, and hold the disk for a moment.
    await until(lambda: not run("losetup", "-j", str(image)))
    check = program("e2fsck", "apt-get install e2fsprogs"), "-fy", str(image)
    assert result(*check) in {0, 1}  # good, or repaired
    mount_image(image, folder)
    await scene.start()
    scene.settle()


async def held_by_another(scene: Scene) -> None:
    with closing(sqlite3.connect(scene.ledger, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        await scene.until_unready("is locked by another program")
        other.execute("ROLLBACK")


async def deleted(scene: Scene) -> None:
    scene.ledger.unlink()
    await asyncio.sleep(LASTS)
    await scene.exporter.says("missing ledger file recreated")
    assert scene.ledger.exists()


async def deleted_with_all(scene: Scene) -> None:
    for file in scene.ledger.parent.glob("ledger.db*"):
        file.unlink()
    await asyncio.sleep(LASTS)
    await scene.exporter.says("missing ledger file recreated")
    names = {file.name for file in scene.ledger.parent.glob("ledger.db*")}
    assert "ledger.db" in names


async def stopped(scene: Scene) -> None:
    scene.exporter.send(signal.SIGSTOP)
    await asyncio.sleep(STOPPED)
    assert scene.status("State").startswith("T")
    scene.exporter.send(signal.SIGCONT)


async def clock_jumps(scene: Scene) -> None:
    clock = scene.folder / "clock"
    for jump in (HOUR, -HOUR):
        write_at_once(clock, str(jump))
        await scene.exporter.until(partial(jumped, jump))
        await asyncio.sleep(LASTS)
    write_at_once(clock, "0")


def jumped(jump: float, samples: Mapping[Series, float]) -> bool:
    last = total(samples, "esms_last_successful_poll_timestamp_seconds")
    return abs(last - time.time() - jump) < HOUR / 2


def write_at_once(file: Path, content: str) -> None:
    new = file.with_suffix(".new")
    new.write_text(content)
    new.rename(file)


async def no_files_left(scene: Scene) -> None:
    pid = scene.exporter.running.pid
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    usual = resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, hard))
    # Connections are to be made anew.
    await scene.simulators[ACCOUNT].stop()
    await scene.simulators[ACCOUNT].start()
    await scene.exporter.says("account paused.*reason=connection")
    await asyncio.sleep(LASTS)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, usual)


async def no_names(scene: Scene) -> None:
    hosts = scene.folder / "hosts"
    known = hosts.read_text()
    hosts.write_text("")
    await asyncio.sleep(DNS_CACHE)
    await scene.simulators[ACCOUNT].stop()
    await scene.simulators[ACCOUNT].start()
    await scene.exporter.says("account paused.*reason=connection")
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
