"""The same operations, inputs and outputs wherever they are offered: all read off one table.

A way to offer them is a function in `WAYS` that says what it offers, as it looks from outside.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from html import unescape
from typing import Any

import pytest
from flask import Flask

from convene_keys.operations.table import OPERATIONS, Operation
from tests import factories
from tests.conftest import new_browser

ROOT = "/api/v1/admin"
# What is approved can't be declined: each of these decides about another booking than the first.
NUMBERS = {"decline_booking": "2", "cancel_booking": "3"}


@dataclass(frozen=True)
class Offer:
    """An operation from outside: its inputs, each with whether it is required, and its output."""

    inputs: dict[str, bool]
    output: frozenset[str]  # the members of an answer


def table(app: Flask) -> dict[str, Offer]:
    return {
        operation.name: Offer(
            {name: field.is_required() for name, field in operation.input.model_fields.items()},
            frozenset(operation.output.model_fields),
        )
        for operation in OPERATIONS
    }


def rest(app: Flask) -> dict[str, Offer]:
    """Found out by asking: with every name there is, with none, and for something that is there."""
    organization = factories.organization()
    factories.market_data(organization)
    _, secret = factories.api_key(organization, creator=factories.member(organization))
    client = new_browser(app)
    names = {name for operation in OPERATIONS for name in operation.input.model_fields}

    def ask(operation: Operation, given: dict[str, Any]) -> Any:
        sent = {"query_string": given} if operation.method == "GET" else {"json": given}
        path = ROOT + operation.path.replace("{id}", NUMBERS.get(operation.name, "1"))
        return client.open(
            path, method=operation.method, headers={"X-API-Key": secret}, **sent
        ).json

    def faults(answer: Any) -> dict[str, str]:
        return {fault["field"]: fault["message"] for fault in answer.get("errors", [])}

    offers = {}
    for operation in OPERATIONS:
        # The number stands in the path only.
        extra = faults(ask(operation, dict.fromkeys(names - {"id"}, "")))
        taken = {n for n in names - {"id"} if extra.get(n) != "Extra inputs are not permitted"}
        answer = ask(operation, {})
        missing = faults(answer)
        inputs = {name: missing.get(name) == "Field required" for name in taken}
        if "{id}" in operation.path:
            inputs["id"] = True
        if missing:
            answer = ask(operation, {"status": "approved"})
        offers[operation.name] = Offer(inputs, frozenset(answer))
    return offers


def openapi(app: Flask) -> dict[str, Offer]:
    document = new_browser(app).get("/api/openapi.json").json
    offers = {}
    for methods in document["paths"].values():
        for entry in methods.values():
            inputs = {given["name"]: given["required"] for given in entry["parameters"]}
            if "requestBody" in entry:
                body = entry["requestBody"]["content"]["application/json"]["schema"]
                inputs |= {name: name in body.get("required", ()) for name in body["properties"]}
            answer = entry["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
            schema = document["components"]["schemas"][answer.rpartition("/")[2]]
            assert set(schema["required"]) == set(schema["properties"])
            offers[entry["operationId"]] = Offer(inputs, frozenset(schema["properties"]))
    return offers


def reference_page(app: Flask) -> dict[str, Offer]:
    text = new_browser(app).get("/docs/api").text
    shapes = {}
    for part in text.split('<h3 id="shape-')[1:]:
        fields = re.findall(r"<dt><code>(\w+)</code>", part.split("</section>")[0])
        shapes[part.partition('"')[0]] = frozenset(fields)
    offers = {}
    for part in re.findall(
        r'<section class="panel pad split calls"(.*?)</section>', text, re.DOTALL
    ):
        found = re.search(r'id="(\w+)"\s+data-output="(\w+)"', part)
        assert found
        name, output = found.groups()
        inputs = {
            field: "required" in said
            for field, said in re.findall(
                r"<dt><code>(\w+)</code></dt>\s*<dd>.*?<span class=\"sub\">in the \w+, (\w+)", part
            )
        }
        answer = json.loads(unescape(re.findall(r"<pre>(.*?)</pre>", part, re.DOTALL)[-1]))
        if output.endswith("List"):
            shape = frozenset(answer)
            assert frozenset(answer["data"][0]) == shapes[output.removesuffix("List")]
        else:
            shape = shapes[output]
            assert frozenset(answer) == shape
        offers[name] = Offer(inputs, shape)
    return offers


def mcp(app: Flask) -> dict[str, Offer]:
    _, secret = factories.api_key(factories.organization())
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    answer = new_browser(app).post("/mcp", json=message, headers={"X-API-Key": secret}).json
    offers = {}
    for tool in answer["result"]["tools"]:
        given, answered = tool["inputSchema"], tool["outputSchema"]
        inputs = {name: name in given.get("required", ()) for name in given["properties"]}
        assert set(answered["required"]) == set(answered["properties"])
        offers[tool["name"]] = Offer(inputs, frozenset(answered["properties"]))
    return offers


WAYS = [rest, openapi, reference_page, mcp]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_it_offers_what_the_table_has(app: Flask, way: Callable[[Flask], dict[str, Offer]]) -> None:
    offered, wanted = way(app), table(app)
    assert offered.keys() == wanted.keys()
    for name, offer in wanted.items():
        assert offered[name] == offer, name


def test_rest_has_a_route_for_each_operation_and_no_other(app: Flask) -> None:
    routes = {
        (method, str(rule).replace("<int:id>", "{id}"))
        for rule in app.url_map.iter_rules()
        for method in rule.methods or ()
        if rule.endpoint.startswith("api.") and rule.endpoint != "api.anything_else"
    } - {("HEAD", ROOT + operation.path) for operation in OPERATIONS}
    assert routes == {(operation.method, ROOT + operation.path) for operation in OPERATIONS}
