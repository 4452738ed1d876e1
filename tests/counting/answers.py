"""Everything that the provider may say of calls and messages, and ways in which it says nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass

from hypothesis import strategies as st

from exporter.esms.answers import Answer, read_answer, read_message_answer, read_refusal
from exporter.esms.codes import Outcome
from exporter.ids import Kind

_NAMED = {"same": "{}", "blank": " {} ", "none": None, "other": "{}-of-another"}

# What the provider says most of the time stands first, and more than once.
_OF_CALL = st.fixed_dictionaries(
    {
        "SendStatus": st.sampled_from([5, 5, 5, "5", 5.0, 1, 2, 4, 7, 9, "x", None]),
        "SentResult": st.sampled_from([1, 0, "1", 2, "?", None]),
        "CallStatus": st.sampled_from(["ANSWERED", "NO ANSWER", "busy", "", "new one", None]),
        "CallDuration": st.sampled_from([13, "13.5", 0, 601, -1, 1e308, "NaN", "?", "", None]),
        "Ivr": st.sampled_from(["", "1", "#2", "x", None]),
    }
)
# Receivers and price of a message, which an answer for a call may have as well.
_OF_MESSAGE = st.sampled_from(
    [
        {"SendSuccess": 1, "SendFailed": 0, "TotalReceiver": 1, "TotalPrice": 470},
        {"SendSuccess": "100", "SendFailed": "69", "TotalReceiver": "169", "TotalPrice": "0.5"},
        {"SendSuccess": 0, "SendFailed": 2.0, "TotalPrice": "0.0000"},
        {"SendSuccess": -1, "SendFailed": 1e9, "TotalReceiver": 3, "TotalPrice": 1e300},
        {},
    ]
)
_FIELDS = st.builds(lambda fields, more: {**fields, **more}, _OF_CALL, _OF_MESSAGE)


@dataclass(frozen=True)
class Reply:
    """What comes back for a request: the text of a body, a status, or a failure."""

    body: str | int | Answer
    named: str | None = None

    def read(self, name: str, kind: Kind) -> Answer:
        """Read it as the answer to a request for a call or message of that name."""
        if isinstance(self.body, int):
            return read_refusal(self.body, "30", 0.0)
        if isinstance(self.body, str):
            body = self.body
            if self.named is not None:
                told = self.named.format(name.swapcase())
                named = json.dumps({"ReferenceId": told, "SMSID": told})
                body = f"{body[:-1]}, {named[1:]}"
            read = read_answer if kind is Kind.CALL else read_message_answer
            return read(body.encode())
        return self.body


def _told(fields: dict[str, object], named: str) -> Reply:
    return Reply(json.dumps({"CodeResponse": "100", **fields}), _NAMED[named])


TOLD = st.builds(
    _told, _FIELDS, st.sampled_from(["same", "same", "same", "blank", "none", "other"])
)
FINAL = st.builds(
    lambda fields: _told({**fields, "SendStatus": 5}, "same"),
    _FIELDS,
)
REFUSED = st.sampled_from(["105", "854", "101", "140", "160", "104", "9999"]).map(
    lambda code: Reply(json.dumps({"CodeResult": code, "ErrorMessage": "made up"}))
)
BROKEN = st.sampled_from(
    [
        *map(Reply, ("", "[]", "<html>", "{", '{"CodeResponse": null}')),
        *map(Reply, (429, 503, 500, 404)),
        *(
            Reply(Answer(outcome))
            for outcome in (Outcome.CONNECTION, Outcome.TIMEOUT, Outcome.BAD_RESPONSE)
        ),
    ]
)
# Half of them end a call: what has finished is what there is to count.
REPLIES = st.one_of(FINAL, FINAL, FINAL, TOLD, REFUSED, BROKEN)

CALLBACKS = st.builds(
    lambda fields, price: {
        name: str(value) for name, value in {**fields, **price}.items() if value is not None
    },
    _FIELDS,
    st.sampled_from(["350.0000", "0.5", "0", "-1", "1e300", "", None]).map(
        lambda price: dict.fromkeys(("Price", "TotalPrice"), price)
    ),
)
"""The parameters of a callback, but for the id."""
