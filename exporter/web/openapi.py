"""The description of the HTTP API, made from its models: OpenAPI 3.1."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

import exporter
from exporter.web.problems import ProblemDetails
from exporter.web.schemas import (
    ID_SCHEMA,
    Accepted,
    CallDetails,
    ExporterStatus,
    Page,
    Requests,
)

_SCHEMAS: Final = "#/components/schemas/{model}"
_PROBLEMS: Final = {
    400: "The request is not as it should be; each problem is told.",
    401: "No token, or one that is not known.",
    404: "There is no such call.",
    408: "The body did not come in time.",
    409: "The call has finished.",
    413: "Too much for one request.",
    415: "The body has a `Content-Encoding` other than `gzip` and `deflate`.",
    429: "Too many requests, or no room for more calls; `Retry-After` says when to try again.",
    503: "The ledger cannot be used now; `Retry-After` says when to try again.",
}


def openapi(requests: Requests, external_path: str = "") -> dict[str, Any]:  # Any: JSON
    """Return the document, with what the models of requests name.

    Args:
        requests: the models.
        external_path: what the paths begin with for clients.
    """
    answers = (Accepted, Page, CallDetails, ExporterStatus, ProblemDetails)
    references, definitions = models_json_schema(
        [
            (requests.calls, "validation"),
            *((answer, "serialization") for answer in answers),
        ],
        ref_template=_SCHEMAS,
    )
    known = {model: reference for (model, _), reference in references.items()}

    def operation(
        name: str, summary: str, good: dict[int, Any], *problems: int, **more: Any
    ) -> dict[str, Any]:
        answers = {
            str(status): {"description": _PROBLEMS[status], "content": _content(
                "application/problem+json", known[ProblemDetails])}
            for status in (401, *problems, 429, 503)
        }  # fmt: skip
        for status in ("429", "503"):
            if status in answers:
                answers[status]["headers"] = {
                    "Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}
                }
        return {
            "operationId": name,
            "summary": summary,
            **more,
            "responses": {**{str(status): answer for status, answer in good.items()}, **answers},
        }

    def answer(description: str, model: type[BaseModel]) -> dict[str, Any]:
        return {
            "description": description,
            "content": _content("application/json", known[model]),
        }

    place = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", **kind}}
        for name, kind in (("account", {"minLength": 1}), ("reference_id", ID_SCHEMA))
    ]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "esms-exporter",
            "summary": "Watch voice calls placed through the eSMS voice API.",
            "version": exporter.__version__,
        },
        **({"servers": [{"url": external_path}]} if external_path else {}),
        "security": [{"token": []}],
        "paths": {
            "/api/v1/calls": {
                "post": operation(
                    "watchCalls",
                    "Watch calls; answered once they are in the ledger. Repeating it is harmless.",
                    {202: answer("All of them are watched.", Accepted)},
                    *(400, 408, 413, 415),
                    requestBody={
                        "required": True,
                        "content": _content("application/json", known[requests.calls]),
                    },
                ),
                "get": operation(
                    "listCalls",
                    "List calls, page by page.",
                    {200: answer("A page.", Page)},
                    400,
                    parameters=_parameters(requests.query),
                ),
            },
            "/api/v1/calls/{account}/{reference_id}": {
                "parameters": place,
                "get": operation(
                    "showCall",
                    "Show a call.",
                    {200: answer("The call.", CallDetails)},
                    *(400, 404),
                ),
                "delete": operation(
                    "deleteCall",
                    "Stop watching a call; it is not counted.",
                    {204: {"description": "It is not watched any more."}},
                    *(400, 404, 409),
                ),
            },
            "/api/v1/status": {
                "get": operation(
                    "showStatus",
                    "Show how the exporter and its accounts are doing.",
                    {200: answer("The status.", ExporterStatus)},
                )
            },
            "/api/v1/openapi.json": {
                "get": operation(
                    "describe",
                    "Describe the API.",
                    {200: {"description": "This.", "content": {"application/json": {}}}},
                )
            },
        },
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": definitions["$defs"],
        },
    }


def _content(kind: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {kind: {"schema": schema}}


def _parameters(query: type[BaseModel]) -> list[dict[str, Any]]:
    properties: dict[str, dict[str, Any]] = query.model_json_schema()["properties"]
    parameters = []
    for name, schema in properties.items():
        described = {key: value for key, value in schema.items() if key != "default"}
        description = described.pop("description")
        # A parameter that is left out is no null.
        for choice in described.pop("anyOf", ()):
            if choice != {"type": "null"}:
                described |= choice
        parameters.append(
            {"name": name, "in": "query", "description": description, "schema": described}
        )
    return parameters
