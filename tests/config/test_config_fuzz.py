from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.config import Config, load_config
from exporter.errors import ConfigError

SECRET = "hunter2-Zq9"  # made up
ENVIRON = {"K": SECRET, "N": "5"}
WORDS = [
    *("accounts", "name", "api_key", "secret_key", "api_key_file", "rate_limit", "base_url"),
    *("polling", "interval", "max_interval", "watch", "labels", "calls", "reference_id", "account"),
    *("balance", "balance_url", "balance_warning"),
    *("ledger", "url", "keep_finished", "main", "team", "sqlite:///x", "15s", "1", "null", "true"),
    *("${K}", "'${K}'", '"${K}x"', "${N}", "${", "$$", "${X:-${K}}", "&a", "*a", "<<", "!x", "|"),
    *(": ", ":\n", ":\n  ", ":\n    ", "\n", "\n  ", "\n    ", "  - ", "- ", ", "),
    *("{", "}", "[", "]"),
    *("'", '"', "#", "\t", "\\", "\0", "\ufeff", "---\n", "%", "@", "? "),
]
VALUES = st.recursive(
    st.sampled_from(
        ["a", '"${K}"', '"${K} ${N}"', "5", "null", '"x y"', '"${K', "15s", "''", "no"]
    ),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
        | st.dictionaries(
            st.sampled_from(
                ["reference_id", "account", "labels", "team", "name", "api_key", "url"]
            ),
            inner,
            max_size=4,
        ).map(
            lambda items: "{" + ", ".join(f"{key}: {value}" for key, value in items.items()) + "}"
        )
    ),
    max_leaves=6,
)
SHAPED = st.tuples(VALUES, VALUES, VALUES, VALUES, VALUES).map(
    lambda values: (
        "accounts:\n  - name: {}\n    api_key: {}\n    secret_key: k\n"
        "    base_url: {}\nwatch:\n  labels: [team]\n  calls: [a, {}]\nledger: {}\n".format(*values)
    )
)
TEXTS = st.lists(st.sampled_from(WORDS), max_size=30).map("".join)


@given(st.binary(max_size=200) | TEXTS.map(str.encode) | SHAPED.map(str.encode))
@settings(max_examples=320, deadline=None)
def test_any_content_gives_a_configuration_or_its_problems(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.yaml")
        path.write_bytes(data)
        try:
            result: object = load_config(path, ENVIRON)
            assert isinstance(result, Config)
            shown = repr((result.accounts[0].api_key, result.accounts[0].secret_key))
        except ConfigError as error:
            shown = f"{error} {error!r} {error.problems!r}"
    assert SECRET not in shown
