"""A string that does not show itself."""

from __future__ import annotations

import base64
import hmac
import re
from typing import Any, Final, final

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema


@final
class Secret:
    """Holds a credential, and prints as `***` however it is printed.

    Not a `str`, so that it cannot slip into a format string, a JSON body or a join;
    `reveal` is the one way to the value, and is easily searched for.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the credential itself."""
        return self._value

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        # In constant time, so that comparing does not tell where two secrets differ.
        # Whatever a client shows is compared: a lone surrogate, too, which UTF-8 has no bytes for.
        return isinstance(other, Secret) and hmac.compare_digest(
            self._value.encode(errors="surrogatepass"), other._value.encode(errors="surrogatepass")
        )

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> str | tuple[Any, ...]:
        # Any: the signature of object.__reduce__. A pickle would hold the value in the clear.
        raise TypeError("a secret cannot be pickled")

    @classmethod
    def __get_pydantic_core_schema__(
        cls,
        source: Any,  # Any: pydantic passes whatever was annotated
        handler: GetCoreSchemaHandler,
    ) -> CoreSchema:
        """Take a string from a document, or a secret that was made already."""
        return core_schema.union_schema(
            [
                core_schema.is_instance_schema(cls),
                core_schema.no_info_after_validator_function(
                    cls, core_schema.str_schema(strict=True, min_length=1)
                ),
            ],
            mode="left_to_right",
            serialization=core_schema.plain_serializer_function_ser_schema(str),
            custom_error_type="secret",
            custom_error_message="Input should be a non-empty string",
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Describe it as a string that tools hide."""
        return {"type": "string", "minLength": 1, "format": "password", "writeOnly": True}


SIGNING_KEY_PREFIX: Final = "whsec_"


def decode_signing_key(secret: Secret) -> bytes:
    """Return the bytes of a key that is written as `whsec_BASE64`.

    Raises:
        ValueError: it is not, or has fewer than 24 or more than 64 bytes (Standard Webhooks).
    """
    text = secret.reveal()
    if not text.startswith(SIGNING_KEY_PREFIX):
        raise ValueError("has no prefix")
    key = base64.b64decode(text.removeprefix(SIGNING_KEY_PREFIX), validate=True)
    if not 24 <= len(key) <= 64:
        raise ValueError("is too short or too long")
    return key


# Seven digits or more, however they are grouped.
_PHONE_NUMBER: Final = re.compile(r"\+?\d(?:[ ().-]*\d){6,}")


def mask_phone_numbers(text: str) -> str:
    """Replace what may be phone numbers in a text of others."""
    return _PHONE_NUMBER.sub("***", text)
