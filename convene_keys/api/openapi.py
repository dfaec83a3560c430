"""`/api/openapi.json`: the REST API as an OpenAPI 3.1 document, made from the operations table.

Fit for ChatGPT Actions: parameters stand in place, every object lists its properties, texts keep
to the limits (developers.openai.com/api/docs/actions/production).
"""

import hashlib
import json
from functools import cache
from pathlib import Path

from flask import Blueprint, Response, request

from convene_keys.http.access import Access, access, settings
from convene_keys.operations.reference import (
    EXAMPLE_URL,
    Description,
    InputField,
    describe,
    problems,
    shapes,
)
from convene_keys.operations.schemas import Json
from convene_keys.operations.table import OPERATIONS, ROOT

# The document without operations: whatever is the same for all of them.
FRAME = Path(__file__).with_suffix(".json")
# The headers that every answer of a status has. Of a call without a working key there is no limit.
_OF_STATUS = {
    200: ("X-Request-Id", "RateLimit-Policy", "RateLimit"),
    401: ("X-Request-Id", "WWW-Authenticate"),
    429: ("X-Request-Id", "Retry-After"),
    503: ("X-Request-Id", "Retry-After"),
}

blueprint = Blueprint("openapi", __name__)


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
    written: Json = json.loads(FRAME.read_text(encoding="utf-8"))
    described = [describe(operation) for operation in OPERATIONS]
    written["tags"] = [{"name": name} for name in dict.fromkeys(one.group for one in described)]
    for one in described:
        path = written["paths"].setdefault(ROOT + one.operation.path, {})
        path[one.operation.method.lower()] = _entry(one)
    parts = written["components"]
    statuses = sorted({status for one in described for status in one.refusals})
    parts["responses"] = {f"Problem{status}": _problem(status) for status in statuses}
    parts["schemas"] = shapes() | parts["schemas"]
    placed: Json = json.loads(json.dumps(written).replace(EXAMPLE_URL, base_url))
    return placed


def _entry(one: Description) -> Json:
    operation = one.operation
    body = [field for field in one.inputs if field.place == "body"]
    return {
        "operationId": operation.name,
        "tags": [one.group],
        "summary": operation.title,
        "description": operation.description,
        "x-openai-isConsequential": operation.changes,
        "parameters": [_parameter(f, one.given) for f in one.inputs if f.place != "body"],
        **({"requestBody": _body(body, one.given)} if body else {}),
        "responses": {
            "200": {
                "description": "Done" if operation.changes else "What was asked for",
                "headers": _headers(200),
                "content": {
                    "application/json": {
                        "schema": {"$ref": f"#/components/schemas/{one.output}"},
                        "example": one.answer,
                    }
                },
            },
            **{
                str(status): {"$ref": f"#/components/responses/Problem{status}"}
                for status in one.refusals
            },
        },
    }


def _parameter(field: InputField, given: Json) -> Json:
    schema = {name: value for name, value in field.schema.items() if name != "description"}
    shown = {"example": given[field.name]} if field.name in given else {}
    return {
        "name": field.name,
        "in": field.place,
        "required": field.required,
        "description": field.description,
        "schema": schema,
        **shown,
    }


def _body(fields: list[InputField], given: Json) -> Json:
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
