"""`/api/openapi.json`: the REST API as an OpenAPI 3.1 document, made from the operations table.

Fit for ChatGPT Actions: parameters stand in place, every object lists its properties, texts keep
to the limits (developers.openai.com/api/docs/actions/production).
"""

import hashlib
import json
from functools import cache
from typing import Any

from flask import Blueprint, Response, request

from convene_keys.http.access import Access, access, settings
from convene_keys.models import Scope
from convene_keys.operations.reference import (
    EXAMPLE_URL,
    Input,
    answer_of,
    example,
    group,
    inputs,
    problems,
    refusals,
    shapes,
)
from convene_keys.operations.table import OPERATIONS, ROOT, Operation

Json = dict[str, Any]
blueprint = Blueprint("openapi", __name__)

_TEXT = {"type": "string"}
_HEADERS: Json = {
    "X-Request-Id": ("Names this call, in the audit log too", {"type": "string", "minLength": 16}),
    "RateLimit-Policy": ("How many calls (q) in how many seconds (w) the key may make", _TEXT),
    "RateLimit": ("How many of them are left (r), and for how many seconds (t)", _TEXT),
    "WWW-Authenticate": (
        "How to send the key",
        {"enum": ["Bearer", 'Bearer error="invalid_token"']},
    ),
    "Retry-After": ("After how many seconds to try again", {"type": "integer", "minimum": 1}),
}
# The headers that every answer of a status has. Of a call without a working key there is no limit.
_OF_STATUS = {
    200: ("X-Request-Id", "RateLimit-Policy", "RateLimit"),
    401: ("X-Request-Id", "WWW-Authenticate"),
    429: ("X-Request-Id", "Retry-After"),
    503: ("X-Request-Id", "Retry-After"),
}
_FIELD_ERROR: Json = {
    "type": "object",
    "description": "One field of the input and what is wrong with it",
    "properties": {"field": _TEXT, "message": _TEXT},
    "required": ["field", "message"],
}
_PROBLEM: Json = {
    "type": "object",
    "description": "Why a call was refused (RFC 9457)",
    "properties": {
        "type": {"type": "string", "format": "uri", "description": "Where the code is explained"},
        "title": _TEXT,
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "A sentence for a person"},
        "code": {"type": "string", "description": "Stable, for programs"},
        "request_id": _TEXT,
        "errors": {
            "type": "array",
            "description": "With 422 alone: each field that is not valid",
            "items": {"$ref": "#/components/schemas/FieldError"},
        },
    },
    "required": ["type", "title", "status", "detail", "code", "request_id"],
}


@blueprint.get("/api/openapi.json")
@access(Access.OPEN)
def show() -> Response:
    """For everybody: it tells how to ask, and nothing of anybody."""
    body, etag = _written(settings().base_url)
    response = Response(body, mimetype="application/json")
    response.set_etag(etag)
    response.cache_control.public, response.cache_control.max_age = True, 300
    response.make_conditional(request)
    return response


@cache
def _written(base_url: str) -> tuple[bytes, str]:
    body = json.dumps(document(base_url), ensure_ascii=False).encode()
    return body, hashlib.sha256(body).hexdigest()[:16]


def document(base_url: str) -> Json:
    """The whole document for an installation at `base_url`."""
    paths: Json = {}
    for operation in OPERATIONS:
        paths.setdefault(ROOT + operation.path, {})[operation.method.lower()] = _entry(operation)
    written = {
        "openapi": "3.1.0",
        "info": {
            "title": "Convene Keys",
            "version": "1",
            "description": "Markets, market dates, vendors, applications and bookings of a market "
            "organizer. Everything that a key does is in the organization's audit log.",
        },
        "externalDocs": {"url": f"{EXAMPLE_URL}/docs/api"},
        "servers": [{"url": EXAMPLE_URL}],
        "security": [{"key": []}],
        "tags": [{"name": name} for name in dict.fromkeys(map(group, OPERATIONS))],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key: fm_org_ and 38 letters and digits",
                }
            },
            "headers": {
                name: {"description": words, "required": True, "schema": schema}
                for name, (words, schema) in _HEADERS.items()
            },
            "responses": {f"Problem{status}": _problem(int(status)) for status in _statuses()},
            "schemas": shapes() | {"Problem": _PROBLEM, "FieldError": _FIELD_ERROR},
        },
    }
    placed: Json = json.loads(json.dumps(written).replace(EXAMPLE_URL, base_url))
    return placed


def _statuses() -> list[int]:
    return sorted({status for operation in OPERATIONS for status in refusals(operation)})


def _entry(operation: Operation) -> Json:
    given, answer = example(operation)
    changes = operation.scope is Scope.READ_WRITE
    taken = inputs(operation)
    body = [one for one in taken if one.place == "body"]
    return {
        "operationId": operation.name,
        "tags": [group(operation)],
        "summary": operation.title,
        "description": operation.description,
        "x-openai-isConsequential": changes,
        "parameters": [_parameter(one, given) for one in taken if one.place != "body"],
        **({"requestBody": _body(body, given)} if body else {}),
        "responses": {
            "200": {
                "description": "Done" if changes else "What was asked for",
                "headers": _headers(200),
                "content": {
                    "application/json": {
                        "schema": {"$ref": f"#/components/schemas/{answer_of(operation)}"},
                        "example": answer,
                    }
                },
            },
            **{
                str(status): {"$ref": f"#/components/responses/Problem{status}"}
                for status in refusals(operation)
            },
        },
    }


def _parameter(one: Input, given: Json) -> Json:
    schema = {name: value for name, value in one.schema.items() if name != "description"}
    shown = {"example": given[one.name]} if one.name in given else {}
    return {
        "name": one.name,
        "in": one.place,
        "required": one.required,
        "description": one.description,
        "schema": schema,
        **shown,
    }


def _body(fields: list[Input], given: Json) -> Json:
    required = [one.name for one in fields if one.required]
    schema: Json = {
        "type": "object",
        "properties": {one.name: one.schema for one in fields},
        "additionalProperties": False,
    }
    if required:
        schema["required"] = required
    shown = {one.name: given[one.name] for one in fields if one.name in given}
    content = {"application/json": {"schema": schema, "example": shown}}
    return {"required": bool(required), "content": content}


def _headers(status: int) -> Json:
    names = _OF_STATUS.get(status, ("X-Request-Id",))
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _problem(status: int) -> Json:
    shown = problems()[str(status)]
    return {
        "description": shown["title"],
        "headers": _headers(status),
        "content": {
            "application/problem+json": {
                "schema": {"$ref": "#/components/schemas/Problem"},
                "example": shown,
            }
        },
    }
