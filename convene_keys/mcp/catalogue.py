"""What assistants are offered: a tool an operation, two resources, two prompts, and a word on each."""

import json
from functools import cache
from pathlib import Path

from convene_keys.models import Scope
from convene_keys.operations.reference import inlined
from convene_keys.operations.schemas import Json
from convene_keys.operations.table import BY_NAME, OPERATIONS, Operation

_COPY: Json = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
INSTRUCTIONS: str = _COPY["instructions"]
RESOURCES: list[Json] = _COPY["resources"]
PROMPTS: dict[str, Json] = {prompt["name"]: prompt for prompt in _COPY["prompts"]}
_PENDING: Json = {"status": "pending", "limit": 100}
# What each resource holds: member -> operation and its input.
CONTENTS: dict[str, dict[str, tuple[Operation, Json]]] = {
    "convene://dashboard": {"dashboard": (BY_NAME["dashboard"], {})},
    "convene://pending": {
        "bookings": (BY_NAME["list_bookings"], _PENDING),
        "vendor_applications": (BY_NAME["list_vendor_applications"], _PENDING),
    },
}


@cache
def tools(scope: Scope) -> list[Json]:
    """The tools of a key with this scope: one that only reads does not see what changes things."""
    return [_tool(o) for o in OPERATIONS if scope is Scope.READ_WRITE or not o.changes]


def prompt(name: str) -> Json | None:
    """The conversation's beginning that a prompt stands for, or None."""
    if (found := PROMPTS.get(name)) is None:
        return None
    message = {"role": "user", "content": {"type": "text", "text": found["text"]}}
    return {"description": found["description"], "messages": [message]}


def _tool(operation: Operation) -> Json:
    return {
        "name": operation.name,
        "title": operation.title,
        "description": operation.description,
        "inputSchema": inlined(operation.input, "validation"),
        "outputSchema": inlined(operation.output, "serialization"),
        "annotations": {
            "title": operation.title,
            "readOnlyHint": not operation.changes,
            "destructiveHint": operation.destructive,
            "idempotentHint": operation.idempotent,
            "openWorldHint": False,
        },
    }
