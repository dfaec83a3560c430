"""What describes the operations to the outside: inputs, refusals and real examples.

Read off the operations table; the OpenAPI document and the page of the reference are made from it.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic.json_schema import models_json_schema

from convene_keys.operations.table import OPERATIONS, Operation

# The address of which the examples tell; whoever shows them puts the real one in its place.
EXAMPLE_URL = "https://keys.example.org"

Schema = dict[str, Any]


@dataclass(frozen=True)
class Input:
    """One input of an operation: where it goes, and its JSON schema without references."""

    name: str
    place: Literal["path", "query", "body"]
    required: bool
    schema: Schema

    @property
    def description(self) -> str:
        return str(self.schema["description"])


@dataclass(frozen=True)
class Code:
    """A stable code of a problem document, its HTTP status, and what it means."""

    status: int
    code: str
    words: str


CODES = (
    Code(400, "malformed", "The address or the body can’t be read: no JSON, or no JSON object."),
    Code(400, "invalid_cursor", "The cursor is of no page. Begin without one."),
    Code(
        400,
        "key_outside_header",
        "A key was sent in the address or a form, where it may be kept. Revoke it, make a new one. "
        "From /auth/verify it comes with 403.",
    ),
    Code(400, "signature_missing", "A report of leaks came without a signature or its key’s name."),
    Code(400, "signature_key_unknown", "No current public key of a leak reporter has this name."),
    Code(400, "signature_invalid", "The signature is not the reporter’s over this very body."),
    Code(401, "key_missing", "There was no key. Send it as Authorization: Bearer KEY."),
    Code(401, "key_unknown", "It is no key, or none of this site."),
    Code(401, "key_revoked", "The key was revoked. It can’t be undone: ask for a new one."),
    Code(401, "key_expired", "The key’s time is over. Ask for a new one."),
    Code(403, "scope_required", "The key may only read. Ask for one that may change things."),
    Code(403, "off_limits", "No key may do this: it is about members, billing or other keys."),
    Code(
        403,
        "creator_inactive",
        "Who made the key has left or may not make keys any more. Ask for a new one.",
    ),
    Code(403, "organization_draft", "An admin has to set the organization live first."),
    Code(
        403, "forwarded_invalid", "Only at /auth/verify: the proxy doesn’t say what is asked for."
    ),
    Code(403, "other_origin", "Only at /mcp: a browser sent it from another site’s page."),
    Code(404, "not_found", "There is no such thing in this organization, or no such address."),
    Code(405, "method_not_allowed", "The address takes other methods: those in the Allow header."),
    Code(409, "conflict", "Not possible in the state that the thing is in now."),
    Code(409, "reminded_recently", "The vendor was reminded in the last 24 hours."),
    Code(413, "too_large", "The body is larger than 32 KiB, or at /mcp than 64 KiB."),
    Code(415, "unsupported_media_type", "Send JSON, with Content-Type: application/json."),
    Code(422, "invalid", "Some of the input is not valid: errors names each field, and why."),
    Code(429, "rate_limited", "Too many calls. Wait for as many seconds as Retry-After says."),
    Code(500, "internal", "Our fault. Nothing was changed. Tell us the request_id."),
    Code(503, "unavailable", "Away for a moment. Try again after Retry-After seconds."),
)


def group(operation: Operation) -> str:
    """The noun that the operation is about: `Market dates`."""
    noun = operation.path.split("/")[1]
    return "This key" if noun == "me" else noun.replace("_", " ").capitalize()


@cache
def inputs(operation: Operation) -> tuple[Input, ...]:
    """What the operation takes, in the order of its model."""
    model = operation.input.model_json_schema()
    found = []
    for name, schema in model["properties"].items():
        if f"{{{name}}}" in operation.path:
            place: Literal["path", "query", "body"] = "path"
        else:
            place = "query" if operation.method == "GET" else "body"
        required = name in model.get("required", ())
        found.append(Input(name, place, required, _plain(schema, model, nullable=place == "body")))
    return tuple(found)


def _plain(schema: Schema, model: Schema, *, nullable: bool) -> Schema:
    """The schema of one field with nothing to look up; an address can't say null."""
    choices = schema.get("anyOf", [])
    if choices and not nullable:
        (choice,) = [choice for choice in choices if choice != {"type": "null"}]
        schema = choice | {name: schema[name] for name in ("description", "default")}
    if "$ref" in schema:
        target = model["$defs"][schema["$ref"].rpartition("/")[2]]
        schema = {"type": target["type"], "enum": target["enum"], **schema}
    left_out = {"$ref", "title"} | ({"default"} if schema.get("default", "") is None else set())
    return {name: value for name, value in schema.items() if name not in left_out}


def refusals(operation: Operation) -> tuple[int, ...]:
    """The statuses with which the operation may refuse a call."""
    found = {400, 401, 403, 422, 429, 503}
    if "{id}" in operation.path or any(given.name == "key" for given in inputs(operation)):
        found.add(404)
    if operation.method != "GET":
        found |= {413, 415}
    if operation.method == "POST":  # a decision that the state of the thing may rule out
        found.add(409)
    return tuple(sorted(found))


@cache
def shapes() -> dict[str, Schema]:
    """The JSON schema of each model that answers are made of, by its name on the outside."""
    models = {operation.output: None for operation in OPERATIONS}
    _, found = models_json_schema(
        [(model, "serialization") for model in models],
        ref_template="#/components/schemas/{model}",
    )
    text = json.dumps(found["$defs"])
    for name in found["$defs"]:
        text = text.replace(f'{name}"', f'{name.removesuffix("Out")}"')
    described: dict[str, Schema] = json.loads(text)
    for schema in described.values():
        schema.pop("title")
        for field in schema.get("properties", {}).values():
            field.pop("title", None)
            if field.get("type") == "object":  # clients built on function calls want to be told
                field.setdefault("properties", {})
    return described


def answer_of(operation: Operation) -> str:
    """The name of the shape with which the operation answers."""
    return operation.output.__name__.removesuffix("Out")


@cache
def _examples() -> dict[str, dict[str, Any]]:
    """Made by `make reference` from calls of the real API on the sample data."""
    path = Path(__file__).with_suffix(".json")
    found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def example(operation: Operation) -> tuple[dict[str, Any], Any]:
    """An input of the operation, and what it really answers to it on the sample data."""
    found = _examples()["operations"][operation.name]
    return found["input"], found["answer"]


def problems() -> dict[str, Any]:
    """A real problem document for each status that is a refusal."""
    return _examples()["problems"]
