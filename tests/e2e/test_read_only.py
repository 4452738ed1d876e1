"""An exporter that may write to the folder of its ledger alone."""

from __future__ import annotations

import signal
from pathlib import Path

from exporter.simulator import Plan, Simulator
from tests import subprocesses
from tests.e2e.processes import Exporter, configure, total
from tests.programs import program, unavailable
from tests.web.certificates import Certificates

CALLS = 10_000


async def test_only_the_folder_of_the_ledger_is_written(
    tmp_path: Path, simulator: Simulator
) -> None:
    isolated = (program("unshare", "Debian's util-linux"), "--mount")
    if subprocesses.run(*isolated, "true").returncode:
        unavailable("needs namespaces: run it as root, outside of a container")
    ledger = tmp_path / "data"
    ledger.mkdir()
    Certificates(tmp_path)
    # The root and all temporary folders, but not the ledger's and /proc and /dev.
    locked = (
        f"mount --bind {ledger} {ledger} && mount -o remount,bind,ro / || exit 1\n"
        'for folder in /tmp /var/tmp /dev/shm; do mount -o remount,bind,ro "$folder" 2>&-; done\n'
        f'touch {tmp_path}/x 2>&- && exit 1\nexec "$@"'
    )
    web = tmp_path / "web.yml"
    web.write_text("tls_server_config: {cert_file: server.crt, key_file: server.key}\n")
    simulator.add_call("main", "call-0", Plan())
    (tmp_path / "calls.csv").write_text(
        "reference_id,account\n" + "".join(f"call-{number},main\n" for number in range(CALLS))
    )
    where = {"url": f"sqlite:///{ledger}/ledger.db"}
    config = configure(tmp_path, simulator, ledger=where, watch={"files": ["calls.csv"]})
    inside = (*isolated, "sh", "-c", locked, "sh")
    options = (f"--web.config.file={web}", "--log.level=debug")
    async with Exporter(config, *options, inside=inside) as exporter:
        assert (await exporter.ready()).startswith("https://")
        exporter.send(signal.SIGTERM)
        assert await exporter.wait() == 0, exporter.output
    async with Exporter(config, inside=inside) as exporter:
        await exporter.ready()
        await exporter.until(lambda found: total(found, "esms_calls_total", result="success") == 1)
