"""The OpenAPI document: valid, whole, and fit for those who read it."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from openapi_spec_validator import OpenAPIV31SpecValidator, validate

from convene_keys import create_app
from convene_keys.api.openapi import document
from convene_keys.models import Scope
from convene_keys.operations.table import BY_NAME, OPERATIONS
from tests import factories
from tests.api.conftest import faults
from tests.conftest import Browser, new_browser
from tests.databases import environ

pytestmark = pytest.mark.on_sqlite

ADDRESS = "/api/openapi.json"
HERE = "http://127.0.0.1:8000"


def entries(described: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Path, method and entry of each operation."""
    for path, methods in described["paths"].items():
        for method, entry in methods.items():
            yield path, method, entry


def objects(node: Any) -> Iterator[dict[str, Any]]:
    """Every JSON object in the document but those that are examples."""
    if isinstance(node, dict):
        yield node
        for name, inner in node.items():
            if name != "example":
                yield from objects(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from objects(inner)


def test_it_is_valid_openapi_3_1() -> None:
    described = document(HERE)
    assert described["openapi"] == "3.1.0"
    validate(described, cls=OpenAPIV31SpecValidator)


def test_everybody_may_read_it_and_keep_it_for_a_while(client: Browser) -> None:
    organization = factories.organization()
    _, secret = factories.api_key(organization)
    for headers in ({}, {"Authorization": f"Bearer {secret}"}):
        answer = client.get(ADDRESS, headers=headers)
        assert answer.status_code == 200
        assert answer.mimetype == "application/json"
        assert answer.json == document(HERE)
        assert answer.headers["Cache-Control"] == "public, max-age=300"
        assert "Set-Cookie" not in answer.headers
        again = client.get(ADDRESS, headers={**headers, "If-None-Match": answer.headers["ETag"]})
        assert (again.status_code, again.data) == (304, b"")


def test_its_addresses_are_those_of_the_installation(app: Flask, sqlite_url: str) -> None:
    there = create_app(environ(sqlite_url, BASE_URL="https://keys.riverside.example"))
    answer = new_browser(there).get(ADDRESS, headers={"Host": "elsewhere.example"})
    assert answer.json["servers"] == [{"url": "https://keys.riverside.example"}]
    assert "https://keys.riverside.example/docs/api#not_found" in answer.text
    for other in ("elsewhere.example", "keys.example.org", "127.0.0.1:8000"):
        assert other not in answer.text
    assert answer.headers["ETag"] != new_browser(app).get(ADDRESS).headers["ETag"]


def test_each_operation_is_there_under_its_name() -> None:
    found = {
        entry["operationId"]: (method.upper(), path)
        for path, method, entry in entries(document(HERE))
    }
    assert found == {o.name: (o.method, f"/api/v1/admin{o.path}") for o in OPERATIONS}
    assert len(found) <= 30  # more than that ChatGPT does not take


def test_what_changes_something_asks_first() -> None:
    for _, _, entry in entries(document(HERE)):
        changes = BY_NAME[entry["operationId"]].scope is Scope.READ_WRITE
        assert entry["x-openai-isConsequential"] is changes


def test_every_operation_needs_the_one_key() -> None:
    described = document(HERE)
    schemes = described["components"]["securitySchemes"]
    assert [(s["type"], s["scheme"]) for s in schemes.values()] == [("http", "bearer")]
    assert described["security"] == [{name: []} for name in schemes]
    assert not any("security" in entry for _, _, entry in entries(described))


def test_texts_are_as_short_as_chatgpt_wants_them() -> None:
    for _, _, entry in entries(document(HERE)):
        assert 0 < len(entry["summary"]) <= 300
        assert 0 < len(entry["description"]) <= 300
        properties: dict[str, Any] = {}
        if "requestBody" in entry:
            properties = entry["requestBody"]["content"]["application/json"]["schema"]["properties"]
        for given in (*entry["parameters"], *properties.values()):
            assert 0 < len(given["description"]) <= 700


def test_it_has_only_what_chatgpt_understands() -> None:
    described = document(HERE)
    for _, _, entry in entries(described):
        # A reference in place of a parameter is skipped, and the operation with it.
        assert all(isinstance(given.get("name"), str) for given in entry["parameters"])
        assert {given["in"] for given in entry["parameters"]} <= {"path", "query"}  # no headers
        for given in entry["parameters"]:
            assert given["schema"]["type"] in ("string", "integer")
    for found in objects(described):
        if found.get("type") == "object":
            assert "properties" in found
        assert not {"allOf", "oneOf", "not", "patternProperties"} & found.keys()
    assert all(
        node["$ref"].startswith("#/components/") for node in objects(described) if "$ref" in node
    )


def test_examples_are_examples_of_what_they_stand_for(app: Flask) -> None:
    from jsonschema import Draft202012Validator

    described = document(HERE)
    shown = 0
    for node in objects(described):
        if "example" in node and "schema" in node:
            schema = {**node["schema"], "components": described["components"]}
            Draft202012Validator(
                schema, format_checker=Draft202012Validator.FORMAT_CHECKER
            ).validate(node["example"])
            shown += 1
    assert shown > 3 * len(OPERATIONS) // 2


def test_no_developers_words_get_into_it() -> None:
    text = json.dumps(document(HERE))
    for word in ("Members carry", 'Out"', "$defs", "No input"):
        assert word not in text


def test_an_answer_that_is_not_as_described_is_noticed(client: Browser, app: Flask) -> None:
    organization = factories.organization()
    _, secret = factories.api_key(organization)
    answer = client.get("/api/v1/admin/me", headers={"X-API-Key": secret})
    assert faults(app, answer) == []
    whole = answer.json
    for wrong in (
        {**whole, "key": None},
        {"organization": whole["organization"]},
        {**whole, "key": {**whole["key"], "created_at": "yesterday"}},
        {**whole, "key": {**whole["key"], "scope": "write"}},
    ):
        answer.set_data(json.dumps(wrong))
        assert len(faults(app, answer)) == 1, wrong
    answer.set_data(json.dumps(whole))
    del answer.headers["RateLimit"]
    assert faults(app, answer) == ["no header RateLimit"]
    answer.status_code = 418
    assert faults(app, answer) == ["whoami answers 418, which is not described"]


@pytest.mark.parametrize("code", [400, 401, 403, 404, 409, 413, 415, 422, 429, 503])
def test_refusals_are_described_where_they_can_occur(code: int) -> None:
    named = {
        entry["operationId"]
        for _, _, entry in entries(document(HERE))
        if str(code) in entry["responses"]
    }
    everything = {o.name for o in OPERATIONS}
    writes = {o.name for o in OPERATIONS if o.method != "GET"}
    numbered = {o.name for o in OPERATIONS if "{id}" in o.path}
    expected = {
        404: numbered | {"list_my_events"},
        409: writes - {"update_vendor_application"},
        413: writes,
        415: writes,
    }.get(code, everything)
    assert named == expected
