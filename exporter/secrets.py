"""Credentials that are never printed, signing keys, and masking of phone numbers."""

from __future__ import annotations

import base64
import hmac
import re
from typing import Any, Final, final

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema


@final
class Secret:
    """A credential that prints as `***`.

    It is not a `str`, so that it cannot get into a format string, a JSON body or a join by
    accident. Only `reveal` returns the value.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the credential in plain text."""
        return self._value

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        # In constant time, so that timing does not reveal where two secrets differ.
        # Clients may send lone surrogates, which UTF-8 cannot encode.
        return isinstance(other, Secret) and hmac.compare_digest(
            self._value.encode(errors="surrogatepass"), other._value.encode(errors="surrogatepass")
        )

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> str | tuple[Any, ...]:
        # Any: as `object.__reduce__` declares it. A pickle would contain the plain value.
        raise TypeError("a secret cannot be pickled")

    @classmethod
    def __get_pydantic_core_schema__(
        cls,
        source: Any,  # Any: as pydantic declares it
        handler: GetCoreSchemaHandler,
    ) -> CoreSchema:
        """Accept a string or a `Secret`."""

        def validate(value: object) -> Secret:
            if isinstance(value, str) and value:
                return cls(value)
            if isinstance(value, cls):
                return value
            raise PydanticCustomError("secret", "Input should be a non-empty string")

        as_text = core_schema.plain_serializer_function_ser_schema(str)
        return core_schema.no_info_plain_validator_function(validate, serialization=as_text)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Describe the value as a password."""
        return {"type": "string", "minLength": 1, "format": "password", "writeOnly": True}


SIGNING_KEY_PREFIX: Final = "whsec_"


def decode_signing_key(secret: Secret) -> bytes:
    """Return the bytes of a key in the format `whsec_BASE64`.

    Raises:
        ValueError: another format, or not 24 to 64 bytes (Standard Webhooks).
    """
    text = secret.reveal()
    if not text.startswith(SIGNING_KEY_PREFIX):
        raise ValueError("has no prefix")
    key = base64.b64decode(text.removeprefix(SIGNING_KEY_PREFIX), validate=True)
    if not 24 <= len(key) <= 64:
        raise ValueError("is too short or too long")
    return key


# Seven digits or more, in any grouping.
_PHONE_NUMBER: Final = re.compile(r"\+?\d(?:[ ().-]*\d){6,}")


def mask_phone_numbers(text: str) -> str:
    """Replace possible phone numbers in external text by `***`."""
    return _PHONE_NUMBER.sub("***", text)
