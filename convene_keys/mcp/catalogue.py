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
PROMPTS: list[Json] = [{k: v for k, v in p.items() if k != "text"} for p in _COPY["prompts"]]
TEXTS: dict[str, str] = {prompt["name"]: prompt["text"] for prompt in _COPY["prompts"]}
DASHBOARD, PENDING = "convene://dashboard", "convene://pending"
# What each resource holds: member -> operation and its input.
CONTENTS: dict[str, dict[str, tuple[Operation, Json]]] = {
    DASHBOARD: {"dashboard": (BY_NAME["dashboard"], {})},
    PENDING: {
        name: (BY_NAME[operation], {"status": "pending", "limit": 100})
        for name, operation in (
            ("bookings", "list_bookings"),
            ("vendor_applications", "list_vendor_applications"),
        )
    },
}


@cache
def tools(scope: Scope) -> list[Json]:
    """The tools of a key with this scope: one that only reads does not see what changes things."""
    return [_tool(o) for o in OPERATIONS if scope is Scope.READ_WRITE or not o.changes]


def prompt(name: str) -> Json | None:
    """The conversation's beginning that a prompt stands for, or None."""
    if name not in TEXTS:
        return None
    described = next(prompt for prompt in PROMPTS if prompt["name"] == name)
    message = {"role": "user", "content": {"type": "text", "text": TEXTS[name]}}
    return {"description": described["description"], "messages": [message]}


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
