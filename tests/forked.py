"""The process that exporters are forked from: it has imported everything.

That costs a second of CPU, which is most of what many tests cost.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
MAX_MESSAGE: Final = 1 << 17


def _serve() -> None:
    """Fork for each message; returns in the exporter that is to run."""
    with socket.socket(fileno=os.dup(0)) as control:
        while True:
            message, files, *_ = socket.recv_fds(control, MAX_MESSAGE, 3)
            if not message:
                os._exit(0)
            if (between := os.fork()) == 0:
                break
            os.waitpid(between, 0)
            for file in files:
                os.close(file)
        between = os.getpid()
        if os.fork():
            os._exit(0)
        while os.getppid() == between:
            time.sleep(0.001)
        # By now it is a child of the tests, which adopt orphans.
        os.setsid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        control.send(str(os.getpid()).encode())
    arguments, environ, folder = json.loads(message)
    for number, (file, name) in enumerate(zip(files, ("stdin", "stdout", "stderr"), strict=True)):
        os.dup2(file, number)
        os.close(file)
        # What Python knows of the streams that were there: whether they are terminals, and more.
        stream = open(number, "w" if number else "r", 1 if number == 2 else -1, closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environ)
    time.tzset()
    sys.argv[1:] = arguments
    if "PYTHONPATH" in environ:
        sys.path.insert(0, environ["PYTHONPATH"])
        sys.modules.pop("sitecustomize", None)
        with suppress(ImportError):
            importlib.import_module("sitecustomize")  # as Python does at its start


if __name__ == "__main__":
    import click
    import psycopg  # noqa: F401
    import sqlalchemy.dialects.sqlite  # noqa: F401

    from exporter.cli import commands, main

    for name in commands.list_commands(click.Context(commands)):
        commands.get_command(click.Context(commands), name)
    _serve()
    main()
