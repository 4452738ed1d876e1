from __future__ import annotations

import ssl
from collections import Counter

import pytest
import trustme

from exporter.calls import reference_key
from exporter.canaries.results import CanaryResult, after_placing
from exporter.esms.codes import Outcome
from exporter.esms.placing import CallRequest, place, read_placed
from exporter.secrets import Secret
from exporter.simulator import Account, Fault, FaultKind, Simulator

ACCOUNT = Account("main", "key with blank", "secret&key", balance=1e9)
KEYS = Secret(ACCOUNT.api_key), Secret(ACCOUNT.secret_key)
PHONE = Secret("0912345678")
RECORDING = CallRequest(PHONE, "request-1", recording="1")
TEMPLATE = CallRequest(PHONE, "request-1", template="1", variables=("Trung", "2 & 3"))


def requests(simulator: Simulator) -> int:
    """Return how many requests to place a call have come."""
    counted: Counter[str] = Counter()
    for (_, operation, _), number in simulator.traffic.requests.items():
        counted[operation] += number
    return counted["MakeCallRecord_V2"] + counted["MakeCallTemplate_V2"]


@pytest.mark.parametrize("request_", [RECORDING, TEMPLATE])
async def test_a_call_is_placed(request_: CallRequest) -> None:
    async with Simulator(accounts=(ACCOUNT,)) as simulator:
        placed = await place(simulator.url, *KEYS, request_, 5)
        assert placed.answer.outcome is Outcome.OK
        ((account, reference_id),) = simulator.provider.calls
        assert account == "main"
        assert placed.answer.reference_id
        assert reference_key(reference_id) == reference_key(placed.answer.reference_id)
        again = await place(simulator.url, *KEYS, request_, 5)
    assert (again.answer.outcome, again.answer.code) == (Outcome.API_ERROR, "124")


FAULTS = {
    "reset": (Fault(FaultKind.RESET), CanaryResult.UNSURE),
    "hang": (Fault(FaultKind.HANG), CanaryResult.UNSURE),
    "html": (Fault(FaultKind.HTML), CanaryResult.UNSURE),
    "empty": (Fault(FaultKind.EMPTY), CanaryResult.UNSURE),
    "not_object": (Fault(FaultKind.NOT_OBJECT), CanaryResult.UNSURE),
    "truncated": (Fault(FaultKind.TRUNCATED), CanaryResult.UNSURE),
    "wrong_types": (Fault(FaultKind.WRONG_TYPES), CanaryResult.UNSURE),
    "huge": (Fault(FaultKind.HUGE, size=200_000), CanaryResult.UNSURE),
    "trickle": (Fault(FaultKind.TRICKLE, seconds=30), CanaryResult.UNSURE),
    "redirect": (Fault(FaultKind.REDIRECT), CanaryResult.UNSURE),
    "http_500": (Fault(FaultKind.STATUS, status=500), CanaryResult.UNSURE),
    "http_429": (Fault(FaultKind.STATUS, status=429, retry_after="9"), CanaryResult.UNSURE),
    "bomb": (Fault(FaultKind.GZIP_BOMB), CanaryResult.UNSURE),
    "refused": (Fault(FaultKind.RAW, body='{"CodeResult":103}'), CanaryResult.REFUSED),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_a_request_is_sent_once_whatever_the_provider_does(name: str) -> None:
    fault, result = FAULTS[name]
    async with Simulator(accounts=(ACCOUNT,)) as simulator:
        simulator.faults.set(name, fault)
        placed = await place(simulator.url, *KEYS, RECORDING, 0.5)
        assert after_placing(placed.answer, connected=placed.connected) is result
        assert requests(simulator) == 1


async def test_what_was_never_connected_was_never_sent() -> None:
    async with Simulator(accounts=(ACCOUNT,)) as simulator:
        url = simulator.url
    assert not (await place(url, *KEYS, RECORDING, 1)).connected
    # Nothing that is not routed there answers.
    assert not (await place("http://nobody.invalid/json", *KEYS, RECORDING, 1)).connected


async def test_an_untrusted_certificate_is_sent_nothing() -> None:
    server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(server_tls)
    async with Simulator(accounts=(ACCOUNT,), ssl_context=server_tls) as simulator:
        placed = await place(simulator.url, *KEYS, RECORDING, 5)
        assert placed.answer.outcome is Outcome.TLS
        assert not placed.connected
        assert requests(simulator) == 0


@pytest.mark.parametrize(
    ("body", "outcome", "reference_id"),
    [
        (b'{"CodeResult":"100","SMSID":"8eb2af6d-fb4c4814 "}', Outcome.OK, "8eb2af6d-fb4c4814"),
        (b'{"CodeResult":100,"SMSID":"a"}', Outcome.OK, "a"),
        (b'{"CodeResult":"100"}', Outcome.BAD_RESPONSE, None),
        (b'{"CodeResult":"100","SMSID":null}', Outcome.BAD_RESPONSE, None),
        (b'{"CodeResult":"100","SMSID":" "}', Outcome.BAD_RESPONSE, None),
        (b'{"CodeResult":"100","SMSID":"a b"}', Outcome.BAD_RESPONSE, None),
        (b'{"CodeResult":"104","ErrorMessage":"Template not found"}', Outcome.API_ERROR, None),
        (b"[]", Outcome.BAD_RESPONSE, None),
        (b"", Outcome.BAD_RESPONSE, None),
    ],
)
def test_reading(body: bytes, outcome: Outcome, reference_id: str | None) -> None:
    answer = read_placed(body)
    assert (answer.outcome, answer.reference_id) == (outcome, reference_id)


async def test_a_provider_that_repeats_the_request_tells_nothing() -> None:
    async with Simulator(accounts=(ACCOUNT,)) as simulator:
        for text in ("0912345678", "Phone=x", ACCOUNT.api_key, "912 345 678"):
            body = f'{{"CodeResult":"108","ErrorMessage":"see {text}"}}'
            simulator.faults.set("x", Fault(FaultKind.RAW, body=body))
            placed = await place(simulator.url, *KEYS, RECORDING, 5)
            assert placed.answer.code == "108"
            assert text not in placed.answer.message
