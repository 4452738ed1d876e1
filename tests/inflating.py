"""Small bodies that unpack to large ones, and what aiohttp unpacks of them by itself."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp


def compressed(size: int) -> bytes:
    """Return a small gzip body that unpacks to `size` zero bytes."""
    packer = zlib.compressobj(9, wbits=31)
    piece = bytes(1 << 20)
    parts = [packer.compress(piece) for _ in range(size // len(piece))]
    return b"".join((*parts, packer.flush()))


class Inflated:
    """Counts the bytes that aiohttp unpacks by itself."""

    def __init__(self) -> None:
        self.count = 0

    def __getattr__(self, name: str) -> Any:  # Any: zlib's own
        return getattr(zlib, name)

    def decompressobj(self, *args: Any, **kwargs: Any) -> Any:  # Any: as above
        inflated, inner = self, zlib.decompressobj(*args, **kwargs)

        class Counting:
            def __getattr__(self, name: str) -> Any:  # Any: as above
                return getattr(inner, name)

            def decompress(self, *args: Any) -> bytes:
                data = inner.decompress(*args)
                inflated.count += len(data)
                return data

        return Counting()


@contextmanager
def counting_inflated() -> Iterator[Inflated]:
    """Count in this block."""
    inflated = Inflated()
    aiohttp.set_zlib_backend(inflated)
    try:
        yield inflated
    finally:
        aiohttp.set_zlib_backend(zlib)
