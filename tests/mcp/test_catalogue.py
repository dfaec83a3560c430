"""What assistants are offered: read off the operations, with what each of them does."""

import pytest

from convene_keys.mcp import catalogue
from convene_keys.models import Scope

pytestmark = pytest.mark.on_sqlite


def test_resources_are_read_with_operations_that_only_read() -> None:
    for parts in catalogue.CONTENTS.values():
        assert all(operation.scope is Scope.READ for operation, _ in parts.values())
        assert all(operation.from_json(given) for operation, given in parts.values())
    assert {r["uri"] for r in catalogue.RESOURCES} == set(catalogue.CONTENTS)


def test_hints_fit_what_operations_do() -> None:
    hints = {tool["name"]: tool["annotations"] for tool in catalogue.tools(Scope.READ_WRITE)}
    assert {n for n, h in hints.items() if h["destructiveHint"]} == {
        "cancel_booking",
        "update_vendor_application",
    }
    assert {n for n, h in hints.items() if not h["idempotentHint"]} == {"remind_vendor_application"}
    assert all(h["openWorldHint"] is False for h in hints.values())
