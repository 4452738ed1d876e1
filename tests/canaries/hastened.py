"""Runs the exporter with canary calls that are due every few seconds.

    python hastened.py EVERY_SECONDS CONFIG_FILE

The configuration's own bound stays: `every: 10m` is what comes round sooner.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import uvloop

from exporter.app import App
from exporter.canaries.canaries import Canaries
from exporter.config import Config, load_config
from exporter.daemon import Daemon
from exporter.logs import configure_logging
from exporter.web.server import WebOptions
from exporter.web.sockets import ListenAddress


def hastened(every: float, path: Path) -> Config:
    config = load_config(path)
    canaries = tuple(canary.model_copy(update={"every": every}) for canary in config.canaries)
    return config.model_copy(update={"canaries": canaries})


async def main(every: float, path: Path) -> None:
    canaries = partial(Canaries, interval=0.1, wait_for_slot=2.0, margin=1.0)
    app = App(partial(hastened, every, path), canaries=canaries)
    await Daemon(app, WebOptions([ListenAddress("127.0.0.1", 0)])).run()


if __name__ == "__main__":
    configure_logging("info", "logfmt")
    uvloop.run(main(float(sys.argv[1]), Path(sys.argv[2])))
