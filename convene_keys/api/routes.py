"""`/api/v1/admin`: one route an operation, and one for everything a key may not ask for."""

from collections import Counter
from functools import partial
from typing import TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel
from pydantic_core import to_json

from convene_keys.errors import FieldError, Invalid, Malformed, NotFound
from convene_keys.http.answers import Answer
from convene_keys.http.key_app import KeyApp, KeyRequest, View
from convene_keys.http.request_body import json_body
from convene_keys.operations import runner, table
from convene_keys.operations.schemas import NUMBER_MAX, Json
from convene_keys.operations.table import OPERATIONS, Operation

T = TypeVar("T")
BODY_MAX = 32 * 1024  # the longest note needs 24,000 where each character is written as \uXXXX
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


def init_app(key_app: KeyApp) -> None:
    for operation in OPERATIONS:
        path = table.ROOT + operation.path.replace("{id}", "<int:id>")
        key_app.add(path, f"api.{operation.name}", _view(operation), [operation.method])
    root = f"{table.ROOT}/"
    key_app.add(root, "api.anything_else", anything_else, METHODS, defaults={"path": ""})
    key_app.add(f"{root}<path:path>", "api.anything_else", anything_else, METHODS)


def _view(operation: Operation) -> View:
    def view(request: KeyRequest, id: int | None = None) -> Answer:
        read = partial(_input, request, operation, {} if id is None else {"id": id})
        return Answer(to_json(runner.run(operation, request.caller, read, id)))

    return view


def _input(request: KeyRequest, operation: Operation, path: dict[str, int]) -> BaseModel:
    """The operation's input from the path and the query, or the path and the body."""
    try:
        if operation.method == "GET":
            return operation.from_strings(_query(request) | {k: str(v) for k, v in path.items()})
        if request.query_string:
            raise Malformed("Send the input as a JSON body, not in the address.")
        return operation.from_json(_body(request) | path)
    except Invalid:
        if path and not 1 <= path["id"] <= NUMBER_MAX:
            raise NotFound(f"There is no {operation.noun} with this number.") from None
        raise


def _query(request: KeyRequest) -> dict[str, str]:
    pairs = parse_qsl(request.query_string.decode(), keep_blank_values=True)
    given = dict(pairs)
    if len(given) < len(pairs):
        count = Counter(name for name, _ in pairs)
        twice = [name[:100] for name in given if count[name] > 1]
        raise Invalid([FieldError(name, "Give this once only.") for name in twice])
    return _without_id(given)


def _body(request: KeyRequest) -> Json:
    """The JSON object in the body; an empty body counts as an empty object."""
    body = json_body(request, BODY_MAX, {})
    if not isinstance(body, dict):
        raise Malformed("The body must be a JSON object.")
    return _without_id(body)


def _without_id(given: dict[str, T]) -> dict[str, T]:
    if "id" in given:
        raise Invalid([FieldError("id", "The number belongs in the address only.")])
    return given


def anything_else(request: KeyRequest, path: str) -> Answer:
    """What no operation answers to: off limits, another method, or nothing at all; recorded."""
    raise runner.record_refusal(request.method, f"/{path}", request.caller)
