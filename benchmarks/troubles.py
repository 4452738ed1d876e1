"""Everything that the stand-in can do to an exporter, switched on and off at random."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Mapping
from typing import Final, NamedTuple

import aiohttp

from exporter.simulator import AccountState, FaultKind

ALL: Final = 1.0
SOME: Final = 0.3


class Trouble(NamedTuple):
    """Something that goes wrong at the provider.

    Attributes:
        name: in the table.
        share: of an account's requests that it hits.
        fault: as the stand-in's control takes it; None where it is the account's state.
        state: of the account; None where it is a fault.
    """

    name: str
    share: float = SOME
    fault: Mapping[str, object] | None = None
    state: str | None = None


# What a kind of fault needs to be as bad as it can be within a soak of minutes: the exporter gives
# up on a request after 2 s, and keeps to a `Retry-After`.
_WORSE: Final[Mapping[str, Mapping[str, object]]] = {
    "latency": {"seconds": 0.5},
    "trickle": {"seconds": 1.5},
    "huge": {"size": 1 << 20},
    "gzip_bomb": {"size": 64 << 20},
    "raw": {"body": '{"CodeResult": "9999", "ErrorMessage": "made up"}'},
}
TROUBLES: Final = (
    *(
        Trouble(kind.value, SOME, {"kind": kind.value, **_WORSE.get(kind.value, {})})
        for kind in FaultKind
    ),
    Trouble("down", ALL, {"kind": "reset"}),
    Trouble("silent", ALL, {"kind": "hang"}),
    Trouble("busy", 0.02, {"kind": "status", "status": 429, "retry_after": "2"}),
    Trouble("page", ALL, {"kind": "html"}),
    *(Trouble(state.value, state=state.value) for state in AccountState if state != "ok"),
)


class Troubles:
    """Troubles at a provider, one after the other, each at one account.

    Args:
        http: asks.
        control: where the stand-in is controlled.
        accounts: who may be hit.
        chance: what to switch on, and for how long.
        longest: seconds that one lasts at most.
    """

    def __init__(
        self,
        http: aiohttp.ClientSession,
        control: str,
        accounts: list[str],
        chance: random.Random,
        longest: float,
    ) -> None:
        self._http = http
        self._control = control
        self._accounts = accounts
        self._chance = chance
        self._longest = longest
        self.seen: Counter[str] = Counter()

    async def run(self) -> None:
        """Make trouble until cancelled; then all is well again."""
        left: list[Trouble] = []
        while True:
            # Each comes once before any comes again.
            left = left or self._chance.sample(TROUBLES, len(TROUBLES))
            trouble, account = left.pop(), self._chance.choice(self._accounts)
            try:
                await self._switch(trouble, account, on=True)
                self.seen[trouble.name] += 1
                await asyncio.sleep(self._chance.uniform(self._longest / 4, self._longest))
            finally:
                await self._switch(trouble, account, on=False)
            await asyncio.sleep(self._chance.uniform(0, self._longest / 4))

    async def _switch(self, trouble: Trouble, account: str, *, on: bool) -> None:
        if trouble.state is not None:
            state = {"state": trouble.state if on else "ok"}
            await self._send("PUT", f"accounts/{account}", state)
        elif on:
            fault = {**(trouble.fault or {}), "account": account, "probability": trouble.share}
            await self._send("PUT", "faults/soak", fault)
        else:
            await self._send("DELETE", "faults/soak", None)

    async def _send(self, method: str, path: str, body: object) -> None:
        async with self._http.request(method, f"{self._control}/{path}", json=body) as answer:
            if answer.status != 200:
                raise SystemExit(f"the stand-in refused: {await answer.text()}")
