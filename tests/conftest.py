from __future__ import annotations

from tests.programs import program

__all__ = ["program"]
