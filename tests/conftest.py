from __future__ import annotations

from hypothesis import settings

# How fast an example runs is for benchmarks: the machine may be busy.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")
