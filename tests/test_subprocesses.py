from __future__ import annotations

import os
import sys

from tests import subprocesses
from tests.ports import free_port
from tests.waiting import until


def run(script: str) -> str:
    program = f"import os, signal\nfrom tests.subprocesses import *\n{script}"
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocesses.run(sys.executable, "-c", program, env=environ).stdout


async def test_a_process_dies_with_the_one_that_started_it() -> None:
    killed = "print(child.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    pid = int(run(f"with popen('sleep', '1000') as child: {killed}"))
    await until(lambda: pid not in subprocesses.descendants())


def test_what_others_leave_behind_is_found_and_killed() -> None:
    left = run(
        "adopt_orphans()\n_ = run('sh', '-c', 'sleep 1000 >&- 2>&- &')\n" * 2
        + "print(kill_descendants(0), kill_descendants(60))"
    )
    assert left.count("sleep 1000") == 2
    assert "test_what_others_leave_behind_is_found_and_killed" in left
    assert left.endswith(" []\n")


def test_a_port_is_given_once() -> None:
    ports = [free_port() for _ in range(20)]
    other = run("from tests.ports import free_port\nprint(*(free_port() for _ in range(20)))")
    assert len({*ports, *map(int, other.split())}) == 40
