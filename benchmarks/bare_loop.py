"""What the exporter is compared with: the same requests by a bare aiohttp loop, and nothing else.

Tuned as well as can be: uvloop, fixed workers on warm connections, one prepared URL for each
request, no time-out, no redirects, the body parsed by the same parser. No schedule, no verdict, no
ledger, no metrics. Prints CPU seconds and wall seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable, Iterator
from functools import partial

import aiohttp
import uvloop
from pydantic_core import from_json
from yarl import URL


def _is_answer(body: bytes) -> bool:
    document = from_json(body)
    return bool(document.get("CodeResponse") or document.get("CodeResult"))


def _holds(text: bytes, body: bytes) -> bool:
    return text in body


async def _worker(
    session: aiohttp.ClientSession, urls: Iterator[URL], good: Callable[[bytes], bool]
) -> None:
    for url in urls:
        response = await session.get(url, allow_redirects=False)
        body = await response.read()
        assert good(body), body


async def _run(base: str, requests: int, concurrency: int, good: Callable[[bytes], bool]) -> None:
    # One large block that is freed has glibc keep blocks of that size: over TLS, each receive would
    # map 256 KiB and unmap them again. In the exporter, the import of its libraries does as much.
    bytearray(1 << 20)
    whole = URL(base, encoded=True)
    build = partial(
        URL.build,
        scheme=whole.scheme,
        authority=whole.raw_authority,
        path=whole.raw_path,
        encoded=True,
    )
    query = whole.raw_query_string
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=concurrency),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
    ) as session:

        def urls(count: int, start: int) -> Iterator[URL]:
            for number in range(start, start + count):
                yield build(query_string=f"{query}{number % (count // 4 or 1):036d}")

        async def all_of(generator: Iterator[URL]) -> None:
            await asyncio.gather(*(_worker(session, generator, good) for _ in range(concurrency)))

        await all_of(urls(1_000, 10**9))
        cpu, wall = time.process_time(), time.perf_counter()
        await all_of(urls(requests, 0))
        print(time.process_time() - cpu, time.perf_counter() - wall)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", help="URL up to the id")
    parser.add_argument("--requests", type=int, default=40_000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--contains", help="take any body with this text for an answer")
    options = parser.parse_args()
    text = options.contains
    good = partial(_holds, text.encode()) if text else _is_answer
    uvloop.run(_run(options.base, options.requests, options.concurrency, good))


if __name__ == "__main__":
    main()
