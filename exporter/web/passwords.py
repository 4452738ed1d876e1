"""Checking passwords against bcrypt hashes, which is meant to be slow, without paying each time."""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Mapping
from hashlib import blake2b
from typing import Final

import bcrypt

from exporter.secrets import Secret
from exporter.threads import SerialThread

CACHED: Final = 100
"""Verdicts that are remembered, of each kind."""

MAX_WAITING: Final = 64
"""Checks that may wait for their turn; one takes some 70 ms at a cost of 10."""

# What bcrypt looks at: older versions of its library, and that of Go, cut the rest off.
_SIGNIFICANT: Final = 72


class TooManyChecksError(Exception):
    """So many passwords wait to be checked that this one is not."""


class _Verdicts(OrderedDict[bytes, None]):
    """The latest passwords with one verdict."""

    def add(self, key: bytes) -> None:
        self[key] = None
        if len(self) > CACHED:
            self.popitem(last=False)

    def knows(self, key: bytes) -> bool:
        if found := key in self:
            self.move_to_end(key)
        return found


class Passwords:
    """Tells whether a password is that of a user.

    One is checked at a time, in a thread. Verdicts are remembered under keyed hashes, good ones
    apart from bad ones, so that no guessing drives good ones out. A name that is not known is
    checked against the hash of a user, so that it takes as long as one that is.
    """

    def __init__(self) -> None:
        # One that the end of the process does not wait for, and that is there before it is needed.
        self._worker = SerialThread("passwords")
        self._worker.submit(int)
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._secret = os.urandom(32)
        self._good, self._bad = _Verdicts(), _Verdicts()

    async def good(self, users: Mapping[str, Secret], name: str, password: bytes) -> bool:
        """Tell whether `password` is that of the user `name`.

        Args:
            users: bcrypt hashes by name; at least one.
            name: who it is said to be.
            password: in UTF-8.

        Raises:
            TooManyChecksError: the answer would take too long.
        """
        known = name in users
        hashed = users[name] if known else self._stand_in(users, name)
        key = self._key(name.encode("utf-8", "replace"), hashed.reveal().encode(), password)
        if (verdict := self._remembered(key)) is not None:
            return verdict
        if self._waiting >= MAX_WAITING:
            raise TooManyChecksError
        self._waiting += 1
        try:
            async with self._turn:
                if (verdict := self._remembered(key)) is not None:
                    return verdict  # it came several times at once
                significant, known_hash = password[:_SIGNIFICANT], hashed.reveal().encode()
                same = await self._worker.submit(lambda: bcrypt.checkpw(significant, known_hash))
        finally:
            self._waiting -= 1
        verdict = known and same
        (self._good if verdict else self._bad).add(key)
        return verdict

    def close(self) -> None:
        """End the thread, once it has checked what it is at."""
        self._worker.close()

    def _remembered(self, key: bytes) -> bool | None:
        if self._good.knows(key):
            return True
        return False if self._bad.knows(key) else None

    def _stand_in(self, users: Mapping[str, Secret], name: str) -> Secret:
        """Return a hash for a name that is not known: always the same, of a cost that occurs."""
        number = int.from_bytes(self._key(name.encode("utf-8", "replace"))[:8])
        return list(users.values())[number % len(users)]

    def _key(self, *parts: bytes) -> bytes:
        digest = blake2b(key=self._secret)
        for part in parts:
            # With its length, so that no two sequences of parts look the same.
            digest.update(len(part).to_bytes(8) + part)
        return digest.digest()
