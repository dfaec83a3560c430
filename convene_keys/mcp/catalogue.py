"""What assistants are offered: a tool an operation, two resources, two prompts, and a word on each."""

from functools import cache
from typing import Any

from pydantic import BaseModel

from convene_keys.models import Scope
from convene_keys.operations.table import BY_NAME, OPERATIONS, Operation

INSTRUCTIONS = (
    "Convene Keys holds one market organization's data: markets, market dates, vendors, vendor "
    "applications and bookings of stalls. Numbers count within the organization: “booking 123” is "
    "the booking whose id is 123. Before you approve, decline, cancel or mark anything, say what "
    "you are about to do and let the person agree. Everything is written to the organization's "
    "audit log under the key's name. Passwords, members, billing, Stripe and API keys can't be "
    "reached from here: a signed-in admin changes those in the browser."
)

DASHBOARD, PENDING = "convene://dashboard", "convene://pending"
RESOURCES: tuple[dict[str, Any], ...] = (
    {
        "uri": DASHBOARD,
        "name": "dashboard",
        "title": "Dashboard",
        "description": BY_NAME["dashboard"].description,
        "mimeType": "application/json",
    },
    {
        "uri": PENDING,
        "name": "pending",
        "title": "Pending today",
        "description": "The bookings and vendor applications that wait for a decision now.",
        "mimeType": "application/json",
    },
)
# What each resource holds: member -> operation and its input.
CONTENTS: dict[str, dict[str, tuple[Operation, dict[str, Any]]]] = {
    DASHBOARD: {"dashboard": (BY_NAME["dashboard"], {})},
    PENDING: {
        name: (BY_NAME[operation], {"status": "pending", "limit": 100})
        for name, operation in (
            ("bookings", "list_bookings"),
            ("vendor_applications", "list_vendor_applications"),
        )
    },
}

PROMPTS: tuple[dict[str, Any], ...] = (
    {
        "name": "pending_today",
        "title": "What’s pending today?",
        "description": "The bookings and applications that wait for a decision.",
    },
    {
        "name": "prepare_saturday",
        "title": "Prepare Saturday’s market",
        "description": "Who comes to the next Saturday market, what is unpaid, and what is open.",
    },
)
TEXTS = {
    "pending_today": (
        "What’s pending today? Call dashboard for the counts, then list_bookings and "
        "list_vendor_applications, each with status “pending”, and follow next_cursor to the end. "
        "Group the bookings by market date, the next one first. Give each thing its number, so "
        "that I can say “approve booking 123”, with the vendor, the stall and the amount. Point "
        "out what looks urgent: a date within a week, or an application that waits longer than "
        "two weeks. Change nothing yet."
    ),
    "prepare_saturday": (
        "Prepare Saturday’s market. Find the next market date that is a Saturday with "
        "list_market_dates, status “published”, since today. Then call list_bookings for that "
        "market date. Tell me: how many stalls are taken and free; who comes, by stall, as a list "
        "to print; approved bookings that are not paid, with the vendor’s phone from get_vendor; "
        "and bookings that still wait for a decision. End with the three things to do first. "
        "Change nothing yet."
    ),
}


@cache
def tools(scope: Scope) -> list[dict[str, Any]]:
    """The tools of a key with this scope: one that only reads does not see what changes things."""
    return [_tool(o) for o in OPERATIONS if scope is Scope.READ_WRITE or o.scope is Scope.READ]


def prompt(name: str) -> dict[str, Any] | None:
    """The conversation's beginning that a prompt stands for, or None."""
    if name not in TEXTS:
        return None
    described = next(prompt for prompt in PROMPTS if prompt["name"] == name)
    message = {"role": "user", "content": {"type": "text", "text": TEXTS[name]}}
    return {"description": described["description"], "messages": [message]}


def _tool(operation: Operation) -> dict[str, Any]:
    reads = operation.scope is Scope.READ
    return {
        "name": operation.name,
        "title": operation.title,
        "description": operation.description,
        "inputSchema": schema(operation.input, "validation"),
        "outputSchema": schema(operation.output, "serialization"),
        "annotations": {
            "title": operation.title,
            "readOnlyHint": reads,
            "destructiveHint": operation.destructive,
            "idempotentHint": operation.idempotent,
            "openWorldHint": False,
        },
    }


def schema(model: type[BaseModel], mode: Any) -> dict[str, Any]:
    """A model's JSON Schema in one piece, since not every client follows references."""
    whole = model.model_json_schema(mode=mode)
    definitions = whole.pop("$defs", {})

    def inlined(part: Any) -> Any:
        if isinstance(part, list):
            return [inlined(item) for item in part]
        if not isinstance(part, dict):
            return part
        rest = {k: inlined(v) for k, v in part.items() if k != "$ref"}
        if "$ref" in part:
            return inlined(definitions[part["$ref"].rpartition("/")[2]]) | rest
        return rest

    found: dict[str, Any] = inlined(whole)
    return found
