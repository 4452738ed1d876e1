from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import trustme

from exporter.config import Config, load_config
from exporter.errors import ConfigError
from tests.config.loading import FindProblems, Load


@pytest.fixture(scope="session", autouse=True)
def few_authorities(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Trust one authority: reading the system's takes fifty times as long as a configuration."""
    path = tmp_path_factory.mktemp("authorities") / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(path))
        yield


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(text: str | bytes, environ: Mapping[str, str] | None = None) -> Config:
        path = tmp_path / "config.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_config(path, environ or {})

    return load


@pytest.fixture
def problems(load: Load, tmp_path: Path) -> FindProblems:
    """Give the problems of a text as `line: key: message`, without the name of the file."""

    def problems(text: str | bytes, environ: Mapping[str, str] | None = None) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            load(text, environ)
        assert caught.value.problems
        assert all(
            problem.file == str(tmp_path / "config.yaml") for problem in caught.value.problems
        )
        prefix = f"{tmp_path}/config.yaml:"
        return [str(problem).removeprefix(prefix).strip() for problem in caught.value.problems]

    return problems
