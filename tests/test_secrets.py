from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from exporter.secrets import Secret

VALUE = "0123456789ABCDEF"


class Model(BaseModel):
    key: Secret


def test_it_does_not_show_itself() -> None:
    secret = Secret(VALUE)
    model = Model(key=secret)
    shown = [
        *(str(secret), repr(secret), f"{secret}", f"{secret!r:>40}", "%s %r" % (secret, [secret])),  # noqa: UP031
        *(str(model), repr(model), model.model_dump_json(), str(model.model_dump(mode="json"))),
        json.dumps({"key": secret}, default=str),
    ]  # fmt: skip
    assert all("***" in text and VALUE not in text for text in shown)
    assert secret.reveal() == VALUE


def test_it_goes_nowhere_by_accident() -> None:
    secret: Any = Secret(VALUE)
    parts = ["a", secret]
    for slip in (
        lambda: "key=" + secret,
        lambda: "&".join(parts),
        lambda: json.dumps(secret),
        lambda: pickle.dumps(secret),
        lambda: copy.deepcopy(secret),
        lambda: vars(secret),
        lambda: list(secret),
    ):
        with pytest.raises(TypeError) as caught:
            slip()
        assert VALUE not in str(caught.value)


def test_it_compares_by_its_value() -> None:
    assert Secret(VALUE) == Secret(VALUE)
    assert Secret(VALUE) != Secret("other")
    assert Secret(VALUE) != VALUE
    assert len({Secret(VALUE), Secret(VALUE)}) == 1


@given(st.text(st.characters()), st.text(st.characters()))
@example("\udcff", "\udcff")
@example("\udcff", "\ud800")
@example("\ud83d\ude00", "\U0001f600")
def test_it_compares_with_any_text(one: str, other: str) -> None:
    assert (Secret(one) == Secret(other)) is (one == other)


def test_it_is_read_from_a_document() -> None:
    assert Model.model_validate({"key": VALUE}).key == Secret(VALUE)
    schema = Model.model_json_schema()["properties"]["key"]
    assert (schema["type"], schema["format"], schema["writeOnly"]) == ("string", "password", True)


@pytest.mark.parametrize("value", ["", 5, None, ["0123456789ABCDEF"]])
def test_what_is_no_secret(value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        Model.model_validate({"key": value})
    assert caught.value.errors()[0]["msg"] == "Input should be a non-empty string"
