"""Every answer that a test of the API gets is held to the OpenAPI document."""

from functools import cache
from typing import Any

import pytest
from flask import Flask
from jsonschema import Draft202012Validator
from sqlalchemy import text
from werkzeug.exceptions import HTTPException

from convene_keys.api.openapi import document
from convene_keys.db.session import db
from convene_keys.models import Base
from convene_keys.operations.table import BY_NAME
from tests.conftest import Browser


def contents() -> dict[str, list[tuple[Any, ...]]]:
    """Every row but those of the log, and of keys, whose last use is kept."""
    db.session.rollback()
    found = {
        table.name: [tuple(row) for row in db.session.execute(text(f"SELECT * FROM {table.name}"))]  # noqa: S608
        for table in Base.metadata.sorted_tables
        if table.name not in ("audit_event", "api_key", "key_use")
    }
    db.session.rollback()
    return found


@cache
def described() -> dict[str, Any]:
    return document("http://127.0.0.1:8000")


def _resolved(node: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in node:
        return node
    *_, kind, name = node["$ref"].split("/")
    found: dict[str, Any] = described()["components"][kind][name]
    return found


def faults(app: Flask, answer: Any) -> list[str]:
    """What in the answer to a call of an operation is not as the document has it."""
    method = answer.request.method
    try:
        endpoint, _ = app.url_map.bind("").match(answer.request.path, method)
    except HTTPException:  # an address that is nothing at all
        return []
    operation = BY_NAME.get(endpoint.removeprefix("api."))
    if operation is None or operation.method != method:
        return []
    path = described()["paths"][f"/api/v1/admin{operation.path}"]
    responses = path[method.lower()]["responses"]
    if str(answer.status_code) not in responses:
        return [f"{operation.name} answers {answer.status_code}, which is not described"]
    response = _resolved(responses[str(answer.status_code)])
    found = [f"no header {name}" for name in response["headers"] if name not in answer.headers]
    ((kind, content),) = response["content"].items()
    if answer.mimetype != kind:
        found.append(f"{answer.mimetype} in place of {kind}")
    schema = {**content["schema"], "components": described()["components"]}
    errors = Draft202012Validator(
        schema, format_checker=Draft202012Validator.FORMAT_CHECKER
    ).iter_errors(answer.json)
    return found + [f"{operation.name} {error.json_path}: {error.message}" for error in errors]


@pytest.fixture(autouse=True)
def _answers_are_as_described(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Browser.open

    def checked(self: Browser, *args: Any, **kwargs: Any) -> Any:
        answer = plain(self, *args, **kwargs)
        assert faults(self.application, answer) == []
        return answer

    monkeypatch.setattr(Browser, "open", checked)
