"""Problem details for HTTP APIs, RFC 9457."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Final

from aiohttp import web
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import to_json

LEDGER_RETRY: Final = 5
STARTING_RETRY: Final = 1
"""Seconds after which a client may try again what the ledger, or the start, keeps it from."""

SHOWN: Final = 100
"""How many items' problems are told one by one."""

_MESSAGES: Final = {
    "missing": "missing required key",
    "extra_forbidden": "unknown key",
    "model_type": "expected an object",
    "dict_type": "expected an object",
    "list_type": "expected a list",
    "string_type": "expected text",
    "too_long": "expected at most {max_length} items",
}


class ItemProblem(BaseModel):
    """One thing that is wrong with a request."""

    pointer: str
    """A JSON pointer to it; for a parameter, its name after a slash."""

    detail: str
    """What is wrong and what was expected."""


class ProblemDetails(BaseModel):
    """What went wrong (RFC 9457); the type is `about:blank`."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    title: str
    """The status in words."""

    status: int
    """The HTTP status."""

    detail: str
    """What happened, and what can be done about it."""

    errors: list[ItemProblem] | None = None
    """The problems of the request, the first hundred of them."""


class ProblemError(Exception):
    """Ends a request with a problem.

    Args:
        status: the HTTP status.
        detail: what happened.
        errors: what is wrong with parts of the request.
        headers: more headers.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        errors: Sequence[ItemProblem] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        title = HTTPStatus(status).phrase
        self._details = ProblemDetails(
            title=title, status=status, detail=detail, errors=list(errors) if errors else None
        )
        self._headers = dict(headers or {})

    def response(self) -> web.Response:
        """Return the answer to the request."""
        return web.Response(
            status=self._details.status,
            body=to_json(self._details, exclude_none=True) + b"\n",
            content_type="application/problem+json",
            headers=self._headers,
        )


def retry_later(status: int, detail: str, seconds: int) -> ProblemError:
    """Return the problem of something that may work later."""
    return ProblemError(status, detail, headers={"Retry-After": str(seconds)})


def problems_of(error: ValidationError, place: Sequence[str | int] = ()) -> list[ItemProblem]:
    """Return what is wrong with a part of a request.

    Args:
        error: what its model says.
        place: the keys and indices that lead to the part.
    """
    problems = []
    for detail in error.errors(include_url=False, include_input=False):
        message = _MESSAGES.get(detail["type"], detail["msg"])
        # A key that is wrong has pydantic's own mark behind it.
        parts = (*place, *(part for part in detail["loc"] if part != "[key]"))
        text = message.format_map(detail.get("ctx", {}))
        problems.append(ItemProblem(pointer=_pointer(parts), detail=text))
    return problems


def invalid(
    problems: Sequence[ItemProblem], status: int = 400, *, more: bool = False
) -> ProblemError:
    """Return the problem of a request that is not as it should be.

    Args:
        problems: what is wrong with it.
        status: the HTTP status.
        more: it was not looked at to its end.
    """
    count = len(problems)
    told = f"{'at least ' if more else ''}{count} {'problem' if count == 1 else 'problems'}"
    return ProblemError(status, f"{told} in the request; nothing is taken in", problems[:SHOWN])


def _pointer(parts: Iterable[str | int]) -> str:
    """Render keys and indices as a JSON pointer (RFC 6901); a key is what the client sent."""
    return "".join(f"/{str(part)[:64].replace('~', '~0').replace('/', '~1')}" for part in parts)
