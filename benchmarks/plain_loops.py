"""The same requests as everybody writes them, with aiohttp or requests.

Prints CPU seconds and wall seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time

import aiohttp


async def with_aiohttp(base: str, requests: int, concurrency: int) -> tuple[float, float]:
    endpoint, _, query = base.partition("?")
    known = dict(pair.split("=") for pair in query.split("&"))
    enough = asyncio.Semaphore(concurrency)

    async def ask(session: aiohttp.ClientSession, number: int) -> None:
        async with (
            enough,
            session.get(endpoint, params={**known, "ReferenceId": f"{number:036d}"}) as response,
        ):
            document = await response.json()
            assert document.get("CodeResponse") or document.get("CodeResult")

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(ask(session, number) for number in range(10**9, 10**9 + 1_000)))
        cpu, wall = time.process_time(), time.perf_counter()
        await asyncio.gather(*(ask(session, number) for number in range(requests)))
        return time.process_time() - cpu, time.perf_counter() - wall


def with_requests(base: str, requests: int) -> tuple[float, float]:
    """One at a time, which costs the least."""
    import requests as library  # noqa: PLC0415 - may not be installed

    endpoint, _, query = base.partition("?")
    known = dict(pair.split("=") for pair in query.split("&"))
    # By itself, the library trusts authorities of its own.
    trusted = os.environ.get("SSL_CERT_FILE")
    with library.Session() as session:

        def ask(number: int) -> None:
            params = {**known, "ReferenceId": f"{number:036d}"}
            response = session.get(endpoint, params=params, timeout=10, verify=trusted or True)
            document = response.json()
            assert document.get("CodeResponse") or document.get("CodeResult")

        ask(10**9)
        cpu, wall = time.process_time(), time.perf_counter()
        for number in range(requests):
            ask(number)
        return time.process_time() - cpu, time.perf_counter() - wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", choices=("aiohttp", "requests"))
    parser.add_argument("base", help="URL up to the id")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--concurrency", type=int, default=64)
    options = parser.parse_args()
    if options.library == "aiohttp":
        run = with_aiohttp(options.base, options.requests, options.concurrency)
        print(*asyncio.run(run))
    else:
        print(*with_requests(options.base, options.requests))


if __name__ == "__main__":
    main()
