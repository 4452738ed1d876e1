"""Real database servers for tests, on loopback and in folders of their own."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from tests import subprocesses
from tests.ports import free_port
from tests.programs import program
from tests.waiting import DEADLINE

_NUMBERS = itertools.count()

PASSWORD = "made-up-db-password"


@contextlib.contextmanager
def _folder(user: str | None) -> Iterator[Path]:
    """Yield a folder that belongs to the user that the server runs as."""
    path = Path(tempfile.mkdtemp(prefix="esms-exporter-test-"))
    try:
        if user:
            shutil.chown(path, user)
        yield path
    finally:
        shutil.rmtree(path)


class Service:
    """A program that serves, and can be stopped and started again, whoever is connected.

    Args:
        command: starts it.
        answers: fails, with an `OSError` or a `DBAPIError`, as long as it does not answer.
        user: whom it runs as.
        end: the signal that stops it without waiting for those who are connected.
    """

    def __init__(
        self,
        command: Sequence[str],
        answers: Callable[[], object],
        user: str | None = None,
        end: int = signal.SIGTERM,
    ) -> None:
        self._command, self._answers, self._user, self._end = command, answers, user, end
        self._life = contextlib.ExitStack()
        self._process: subprocesses.Child | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocesses.popen(*self._command, user=self._user, **quiet)
        self._process = self._life.enter_context(process)
        self.wait()

    def wait(self) -> None:
        """Return once it answers."""
        assert self._process
        end = time.monotonic() + DEADLINE
        while True:
            try:
                self._answers()
            except (OSError, DBAPIError):
                assert self._process.poll() is None, self._command
                assert time.monotonic() < end
                time.sleep(0.05)
            else:
                return

    @property
    def pid(self) -> int:
        """Of the process that all others of the server are children of."""
        assert self._process
        return self._process.pid

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def stop(self, end: int | None = None) -> None:
        """Stop it, by that signal."""
        with self._life:
            if self._process:
                self._process.send_signal(self._end if end is None else end)
                self._process.wait(DEADLINE)
                self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Server(Service):
    """A server of databases, and where it is."""

    def __init__(
        self, command: Sequence[str], user: str | None, url: str, end: int = signal.SIGTERM
    ) -> None:
        super().__init__(command, lambda: self.execute("SELECT 1"), user, end)
        self.url = url

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """Yield the address of a new database of PostgreSQL."""
        name = f"test_{next(_NUMBERS)}"
        self.execute(f"CREATE DATABASE {name}", autocommit=True)
        try:
            yield make_url(self.url).set(database=name).render_as_string(hide_password=False)
        finally:
            self.execute(f"DROP DATABASE {name} WITH (FORCE)", autocommit=True)

    def execute(self, *statements: str, url: str = "", autocommit: bool = False) -> None:
        engine = create_engine(url or self.url, poolclass=NullPool)
        if autocommit:
            engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        with engine.begin() as connection:
            for statement in statements:
                connection.execute(text(statement))


@contextlib.contextmanager
def postgresql(*options: str) -> Iterator[Server]:
    # Debian keeps them beside the path, by version.
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    place = f"{found[0]}/" if found else ""
    initdb, postgres = (
        program(place + name, "Debian's postgresql") for name in ("initdb", "postgres")
    )
    # It refuses to run as root.
    user = "postgres" if os.geteuid() == 0 else None
    with _folder(user) as folder:
        password = folder / "password"
        password.write_text(PASSWORD)
        if user:
            shutil.chown(password, user)
        subprocesses.run(
            *(initdb, "-D", f"{folder}/data", "-U", "postgres", "-A", "scram-sha-256"),
            *(f"--pwfile={password}", "--no-sync"),
            user=user,
            check=True,
        )
        port = free_port()
        command = [postgres, "-D", f"{folder}/data", "-p", str(port), "-h", "127.0.0.1"]
        command += ["-c", f"unix_socket_directories={folder}", "-c", "fsync=off", *options]
        url = f"postgresql+psycopg://postgres:{PASSWORD}@127.0.0.1:{port}/postgres"
        # At SIGTERM it would wait for whoever is connected.
        with Server(command, user, url, signal.SIGINT) as server:
            yield server


@contextlib.contextmanager
def pgbouncer(behind: Server, connections: int) -> Iterator[Server]:
    """Hand every transaction to one of few connections to a server of PostgreSQL."""
    place = program("pgbouncer", "Debian's pgbouncer")
    # It refuses to run as root, too.
    user = "postgres" if os.geteuid() == 0 else None
    to, port = make_url(behind.url), free_port()
    with _folder(user) as folder:
        (folder / "users").write_text(f'"{to.username}" "{to.password}"\n')
        (folder / "settings").write_text(
            f"""
            [databases]
            * = host={to.host} port={to.port}
            [pgbouncer]
            listen_addr = 127.0.0.1
            listen_port = {port}
            unix_socket_dir =
            auth_type = scram-sha-256
            auth_file = {folder}/users
            pool_mode = transaction
            default_pool_size = {connections}
            server_login_retry = 1
            """
        )
        url = to.set(port=port).render_as_string(hide_password=False)
        with Server([place, "-q", f"{folder}/settings"], user, url, signal.SIGKILL) as server:
            yield server


@contextlib.contextmanager
def mariadb() -> Iterator[Server]:
    install = "Debian's mariadb-server"
    server = program("mariadbd", install)
    user = "mysql" if os.geteuid() == 0 else None
    with _folder(user) as folder:
        data = [f"--datadir={folder}/data", *([f"--user={user}"] if user else [])]
        # Neither a name server nor a bound on memory that is locked is to have a say in it.
        data += ["--skip-name-resolve", "--innodb-use-native-aio=0"]
        # A server that starts removes the temporary tables of others in the same directory.
        data += [f"--tmpdir={folder}"]
        installed = subprocesses.run(
            *(program("mariadb-install-db", install), "--no-defaults", *data, "--skip-test-db")
        )
        assert installed.returncode == 0, installed.stdout + installed.stderr
        (folder / "init.sql").write_text(
            "CREATE DATABASE IF NOT EXISTS app;\n"
            f"CREATE USER IF NOT EXISTS 'app'@'%' IDENTIFIED BY '{PASSWORD}';\n"
            "GRANT ALL ON app.* TO 'app'@'%';\n"
        )
        port = free_port()
        command = [server, "--no-defaults", *data, f"--port={port}", "--bind-address=127.0.0.1"]
        command += [f"--socket={folder}/socket", f"--pid-file={folder}/pid"]
        command += [f"--init-file={folder}/init.sql"]
        url = f"mariadb+pymysql://app:{PASSWORD}@127.0.0.1:{port}/app"
        with Server(command, None, url) as found:
            yield found
