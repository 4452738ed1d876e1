"""A scratch folder in which the commands of the documentation are run as they stand there."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import aiohttp
import trustme

from exporter.simulator import Account, Plan, Simulator
from tests import subprocesses
from tests.docs.pages import ROOT, Block, Command
from tests.ports import free_port
from tests.programs import program, unavailable
from tests.waiting import deadline, until

# Both are what the pages tell to write: `export ESMS_API_KEY=...`.
KEY = "..."
TOKEN = "made-up-token"

_CONFIG = f"""accounts:
  - name: main
    api_key: ${{ESMS_API_KEY}}
    secret_key: ${{ESMS_SECRET_KEY}}
    callback_token: {TOKEN}
polling: {{interval: 1s}}
watch:
  labels: [campaign]
  calls:
    - reference_id: 6d8a1c2e-2f67-4c3b-9c55-0b8f0f4a7d11
      labels: {{campaign: otp}}
  api: {{tokens: [{{name: program, token: {TOKEN}}}]}}
"""

# What has become of the calls that the pages name, at the stand-in.
_CALLS = {
    "505139D7-54F8-48A9-88FA-9460A78731DD": Plan(ivr="1"),
    "8eb2af6d-fb4c-4814-b9cc-4c0e3ed32edf": Plan(call_status="NO_ANSWERED", duration=0),
    "6d8a1c2e-2f67-4c3b-9c55-0b8f0f4a7d11": Plan(queued=86_400),
}
_MESSAGES = {"d8e0f1f0702544b2acb456ca9ccfd111250": Plan(receivers=1, price=470)}

# What may lie in the project's folder and is no part of it: a user's own files above all.
_MADE = {"__pycache__", "node_modules", "dist", "build", "prometheus-data"}
_USERS = {"config.yaml", "prometheus.yml", "secrets"}

# The program that a command needs, and what to install for it; Debian's names.
_INSTALL = {
    **{name: f"Debian's {name}" for name in ("curl", "jq", "make", "openssl", "git")},
    **dict.fromkeys(("prometheus", "promtool"), "apt-get install prometheus"),
    "jsonnet": "go install github.com/google/go-jsonnet/cmd/jsonnet",
}

_AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"


@dataclass(frozen=True, slots=True)
class Lasting:
    """A kind of command that runs until it is ended.

    Attributes:
        command: what it starts with.
        up: what its output says once it is there.
        port: where the pages say that it listens.
    """

    command: re.Pattern[str]
    up: str
    port: int


EXPORTER = Lasting(
    re.compile(r"make run$|(esms-exporter|python3? -m exporter) (run|demo|--config)"),
    r"event=ready",
    10375,
)
LASTING = (
    EXPORTER,
    Lasting(re.compile(r"esms-exporter simulate"), r"listening on", 10376),
    Lasting(re.compile(r"prometheus --config"), r"ready to receive web requests", 9090),
)


class Running:
    """A process and what it has said."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._said = bytearray()
        self._reading = asyncio.create_task(self._read())

    @property
    def output(self) -> str:
        return self._said.decode(errors="replace")

    async def _read(self) -> None:
        assert self._process.stdout
        while chunk := await self._process.stdout.read(1 << 16):
            self._said += chunk

    async def says(self, pattern: str) -> bool:
        """Wait until the output matches; return whether it does before the process ends."""
        found = re.compile(pattern)
        await until(lambda: self._reading.done() or bool(found.search(self.output)))
        return bool(found.search(self.output))

    async def ended(self, *, interrupt: bool = False) -> int:
        """Return the exit code, after Ctrl-C if asked to, which reaches the whole group."""
        if interrupt:
            os.killpg(self._process.pid, signal.SIGINT)
        async with deadline():
            await asyncio.shield(self._reading)
            return await self._process.wait()

    async def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self.ended()


class Scene:
    """A copy of the project, a configuration, and a stand-in API; processes end with it.

    Whatever listens does so on a free port: those that the pages name are replaced.
    """

    def __init__(self, folder: Path, prometheus: str = "prometheus") -> None:
        self.folder = folder / "esms-exporter"
        self._prometheus = shutil.which(prometheus)
        self.ports = {lasting.port: free_port() for lasting in LASTING}
        self._state = folder / "environ.sh"
        self._bin = folder / "bin"
        self._strict = folder / "strict"
        self._simulator = Simulator(accounts=[Account("main", KEY, KEY)])
        self._running: dict[Lasting, Running] = {}
        self._life = ExitStack()

    async def __aenter__(self) -> Self:
        await self._simulator.__aenter__()
        for call, plan in {**_CALLS, **_MESSAGES}.items():
            self._simulator.add_call("main", call, plan)
        shutil.copytree(ROOT, self.folder, ignore=_not_copied)
        example = self.folder / "config.example.yaml"
        example.write_text(self._to_the_stand_in(example.read_text()))
        self.write("token", TOKEN)
        self.write("ids.csv", "reference_id\n" + "".join(f"{call}\n" for call in _CALLS))
        trustme.CA().cert_pem.write_to_path(str(self.folder / "company.pem"))
        self._make_programs()
        self._state.write_text("")
        return self

    async def __aexit__(self, *ended: object) -> None:
        for running in self._running.values():
            await running.kill()
        await self._simulator.__aexit__(*ended)
        self._life.close()

    def write(self, name: str, text: str) -> None:
        """Write a file that a page shows."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self._with_ports(self._to_the_stand_in(text)))

    def show(self, block: Block) -> None:
        """Write the file of a block, if it names one."""
        if block.file:
            self.write(block.file, block.text)

    async def run(self, command: Command) -> None:
        """Run a command; fail if it fails, or its output is not the one that is shown."""
        text = self._with_ports(command.text)
        _need(text)
        if "config.yaml" in text and not (self.folder / "config.yaml").exists():
            self.write("config.yaml", _CONFIG)
        lasting = next((kind for kind in LASTING if kind.command.match(text)), None)
        if lasting:
            await self._start(lasting, text, command.place)
            return
        asks = (
            text.startswith(("esms-exporter calls", "esms-exporter export"))
            or f"localhost:{self.ports[10375]}" in text
        )
        if asks and EXPORTER not in self._running:
            start = "esms-exporter --config.file=config.yaml"
            await self.run(Command(command.place, start, ""))
            await self._until_all_are_polled()
        # What `curl` is answered is shown by the page, or is to be no error.
        curl = {} if command.shown else {"CURL_HOME": str(self._strict)}
        running = Running(await self._spawn(text, curl))
        code = await running.ended()
        told = f"{command.place}: `$ {text}` ended with {code}:\n{running.output}"
        assert code == 0, told
        if command.shown:
            assert _matches(self._with_ports(command.shown), running.output), (
                f"{told}\nThe page shows (`...` is anything, times do not matter):\n{command.shown}"
            )

    async def end(self) -> None:
        """End what runs as Ctrl-C does; fail if that is not in good order."""
        for lasting in list(self._running):
            await self._end(lasting)

    async def _start(self, lasting: Lasting, text: str, place: str) -> None:
        await self._end(lasting)
        # In place of the shell, so that its exit code can be seen.
        running = self._running[lasting] = Running(await self._spawn(f"exec {text}", {}))
        if not await running.says(lasting.up):
            del self._running[lasting]
            raise AssertionError(f"{place}: `$ {text}` ended:\n{running.output}")

    async def _end(self, lasting: Lasting) -> None:
        if running := self._running.pop(lasting, None):
            code = await running.ended(interrupt=True)
            # A `make` that is interrupted ends by the signal, whatever its command ended with.
            assert code == 0 or "event=stopped" in running.output, running.output
            assert "Traceback" not in running.output, running.output

    async def _until_all_are_polled(self) -> None:
        """Wait for the states that pages show: those of calls that were polled."""
        new = re.compile(r'^esms_calls_watched{.*state="new"} (?!0\.0$)', re.MULTILINE)
        async with deadline(), aiohttp.ClientSession() as http:
            while True:
                async with http.get(f"http://127.0.0.1:{self.ports[10375]}/metrics") as answer:
                    if not new.search(await answer.text()):
                        return
                await asyncio.sleep(0.05)

    async def _spawn(self, text: str, more: Mapping[str, str]) -> asyncio.subprocess.Process:
        state = shlex.quote(str(self._state))
        keep = f"code=$?\nexport -p > {state}\necho \"cd '$PWD'\" >> {state}\nexit $code\n"
        script = f". {state}\n{text}\n{keep}"
        return await subprocesses.start(
            "sh",
            *("-c", script),
            cwd=self.folder,
            env={**self._environ(), **more},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )

    def _environ(self) -> dict[str, str]:
        return {
            "PATH": f"{self._bin}:{os.environ['PATH']}",
            "HOME": str(self._bin.parent),
            "TMPDIR": str(self._bin.parent),
            "LANG": "C.UTF-8",
            "TOKEN": TOKEN,
            "ESMS_EXPORTER_URL": f"http://127.0.0.1:{self.ports[10375]}",
            "ESMS_API_KEY": KEY,
            "ESMS_SECRET_KEY": KEY,
            # What is tested is the project itself, not the copy.
            "PYTHONPATH": str(ROOT),
            "PYTHONSAFEPATH": "1",
            # What `pip install` needs is there; it goes to a folder of its own.
            "PIP_NO_INDEX": "1",
            "PIP_NO_DEPS": "1",
            "PIP_NO_BUILD_ISOLATION": "0",
            "PIP_TARGET": str(self._bin.parent / "installed"),
            "PIP_ROOT_USER_ACTION": "ignore",
        }

    def _make_programs(self) -> None:
        """Make the commands that an installed exporter has, listening where nobody else does."""
        self._bin.mkdir()
        python = shlex.quote(sys.executable)
        listen = "--web.listen-address=127.0.0.1:"
        _script(
            self._bin / "esms-exporter",
            f'case "$1" in --config*|run|demo) set -- "$@" {listen}{self.ports[10375]};;\n'
            f'simulate) set -- "$@" --listen=127.0.0.1:{self.ports[10376]};;\n'
            f'esac\nexec {self._bin}/forked "$@"',
        )
        self._life.enter_context(subprocesses.program_that_forks(self._bin / "forked"))
        _script(
            self._bin / "python",
            'if [ "$1 $2" = "-m exporter" ]; then shift 2; exec esms-exporter "$@"; fi\n'
            f'exec {python} "$@"',
        )
        _script(self._bin / "pip", f'exec {python} -m pip "$@"')
        if self._prometheus:
            address = f"{listen}{self.ports[9090]}"
            _script(self._bin / "prometheus", f'exec {self._prometheus} "$@" {address}')
        (self._bin / "python3").symlink_to(self._bin / "python")
        self._strict.mkdir()
        (self._bin.parent / ".curlrc").write_text("silent\nshow-error\n")
        (self._strict / ".curlrc").write_text("silent\nshow-error\nfail-with-body\n")
        # As `make` leaves it once everything is installed.
        (self.folder / ".venv" / "bin").mkdir(parents=True)
        (self.folder / ".venv" / "bin" / "python").symlink_to(self._bin / "python")
        for name in (".dev", ".run"):
            (self.folder / ".venv" / name).touch()

    def _to_the_stand_in(self, text: str) -> str:
        """Have the accounts of a configuration polled at the stand-in, unless it names another."""
        if "127.0.0.1:10376" in text:
            return text
        text = re.sub(r"^ *(balance|base|message)_url: .*\n", "", text, flags=re.MULTILINE)
        account = re.compile(r"^( +)(api_key(?:_file)?:)", re.MULTILINE)
        hosts = "balance", "base", "message"
        places = "".join(rf"\1{host}_url: {self._simulator.url}\n" for host in hosts)
        return account.sub(rf"{places}\1\2", text)

    def _with_ports(self, text: str) -> str:
        for shown, used in self.ports.items():
            text = re.sub(rf"\b{shown}\b", str(used), text)
        return text


def _not_copied(folder: str, names: list[str]) -> set[str]:
    """Return what of a folder is no part of the project."""
    return {
        name
        for name in names
        if name[0] == "."
        or name in _MADE
        or ".db" in name
        or (name in _USERS and Path(folder) == ROOT)
        or Path(folder, name, "pyvenv.cfg").exists()
    }


def _need(text: str) -> None:
    """Skip the test where a program that a command needs is not installed."""
    for name in re.findall(r"(?:^|[|&;(] *)(?:\w+=\S* +)*([a-z][\w-]*)", text):
        if name in _INSTALL:
            program(name, _INSTALL[name])
    if _AUTHORITIES in text and not Path(_AUTHORITIES).exists():
        unavailable(f"needs {_AUTHORITIES}: Debian's ca-certificates")


def _matches(shown: str, output: str) -> bool:
    """Tell whether the output is what is shown, at another time."""
    parts = (re.escape(part) for part in _timeless(shown).split("..."))
    return re.fullmatch(".*".join(parts), _timeless(output), re.DOTALL) is not None


def _timeless(text: str) -> str:
    lines = "\n".join(line.rstrip() for line in text.strip().splitlines())
    return re.sub(r"\d{4}-\d\d-\d\d([ T])\d\d:\d\d:\d\d(?:\.\d+)?Z", r"DATE\1TIME", lines)


def _script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
