from __future__ import annotations

import pytest

# What their assertions compare is to be shown as that of tests is.
pytest.register_assert_rewrite(
    *(f"tests.faults.{name}" for name in ("scene", "machine", "commits", "scrapers"))
)
