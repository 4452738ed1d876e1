"""What the exporter is compared with: the same requests by a bare aiohttp loop, and nothing else.

Tuned as well as can be: uvloop, fixed workers on warm connections, one prepared URL for each
request, no time-out, no redirects, the body parsed by the same parser. No schedule, no verdict, no
ledger, no metrics. Prints CPU seconds and wall seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Iterator

import aiohttp
import uvloop
from pydantic_core import from_json
from yarl import URL


async def _worker(session: aiohttp.ClientSession, urls: Iterator[URL]) -> None:
    for url in urls:
        response = await session.get(url, allow_redirects=False)
        document = from_json(await response.read())
        assert document.get("CodeResponse") or document.get("CodeResult")


async def _run(base: str, requests: int, concurrency: int) -> None:
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=concurrency),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
    ) as session:

        def urls(count: int, start: int) -> Iterator[URL]:
            for number in range(start, start + count):
                yield URL(f"{base}{number % (count // 4 or 1):036d}", encoded=True)

        async def all_of(generator: Iterator[URL]) -> None:
            await asyncio.gather(*(_worker(session, generator) for _ in range(concurrency)))

        await all_of(urls(1_000, 10**9))
        cpu, wall = time.process_time(), time.perf_counter()
        await all_of(urls(requests, 0))
        print(time.process_time() - cpu, time.perf_counter() - wall)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", help="URL up to the id")
    parser.add_argument("--requests", type=int, default=40_000)
    parser.add_argument("--concurrency", type=int, default=64)
    options = parser.parse_args()
    uvloop.run(_run(options.base, options.requests, options.concurrency))


if __name__ == "__main__":
    main()
