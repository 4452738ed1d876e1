"""What the page on webhooks shows is what comes, and its receiver takes that and nothing else."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from exporter.ledger.types import FinishedCall
from exporter.notify.events import CloudEvent, cloud_event, signature_headers
from exporter.secrets import Secret, decode_signing_key
from tests.docs import pages

PAGE = "docs/webhook.md"
KEY = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

Verified = Callable[[str, Mapping[str, str], bytes], bool]


def block(language: str) -> str:
    (found,) = (block for block in pages.blocks(PAGE) if block.language == language)
    return found.text


def test_the_event_is_the_one_that_is_shown() -> None:
    shown = json.loads(block("json"))
    times = {
        name: datetime.fromisoformat(shown["data"][name]).timestamp()
        for name in ("first_watched", "finished_at")
    }
    assert json.loads(cloud_event(FinishedCall(**{**shown["data"], **times})).body) == shown


def test_the_receiver_takes_what_is_signed_and_nothing_else() -> None:
    space: dict[str, Any] = {}  # Any: what the page defines
    exec(block("python"), space)
    verified: Verified = space["verified"]
    body = b'{"data": 1}'
    key, event, now = decode_signing_key(Secret(KEY)), CloudEvent("id-1", body), time.time()
    good = signature_headers(key, event, now)
    assert verified(KEY, good, body)
    both = {**good, "webhook-signature": f"v1,AAAA {good['webhook-signature']}"}
    assert verified(KEY, both, body)
    assert not verified(KEY, good, body + b" ")
    assert not verified(KEY, {**good, "webhook-id": "id-2"}, body)
    assert not verified(KEY.replace("M", "N"), good, body)
    assert not verified(KEY, signature_headers(key, event, now - 400), body)
