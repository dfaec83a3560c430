"""`/api/v1/admin`: one route an operation, and one for everything a key may not ask for."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TypeVar
from urllib.parse import parse_qsl

from flask import Blueprint, Response, request
from pydantic import BaseModel

from convene_keys.errors import FieldError, Invalid, Malformed, NotFound
from convene_keys.http.access import Access, access, origin, presented_key, settings
from convene_keys.http.request_body import json_body
from convene_keys.operations import runner, table
from convene_keys.operations.schemas import NUMBER_MAX, Json
from convene_keys.operations.table import OPERATIONS, Operation

T = TypeVar("T")
BODY_MAX = 32 * 1024  # the longest note needs 24,000 where each character is written as \uXXXX
HEADERS = [("Content-Type", "application/json"), ("Cache-Control", "no-store")]
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]

blueprint = Blueprint("api", __name__, url_prefix=table.ROOT)


def _view(operation: Operation) -> Callable[..., Response]:
    @access(Access.KEY)
    def view(id: int | None = None) -> Response:
        read = partial(_input, operation, {} if id is None else {"id": id})
        answer = runner.run(
            operation, presented_key() or "", read, origin(), settings().key_peppers, id
        )
        return Response(answer.model_dump_json(), headers=HEADERS)

    return view


def _input(operation: Operation, path: dict[str, int]) -> BaseModel:
    """The operation's input from the path and the query, or the path and the body."""
    try:
        if operation.method == "GET":
            return operation.from_strings(_query() | {k: str(v) for k, v in path.items()})
        if request.args:
            raise Malformed("Send the input as a JSON body, not in the address.")
        return operation.from_json(_body() | path)
    except Invalid:
        if path and not 1 <= path["id"] <= NUMBER_MAX:
            raise NotFound(f"There is no {operation.noun} with this number.") from None
        raise


def _query() -> dict[str, str]:
    pairs = parse_qsl(request.query_string.decode(), keep_blank_values=True)
    given = dict(pairs)
    if len(given) < len(pairs):
        count = Counter(name for name, _ in pairs)
        twice = [name[:100] for name in given if count[name] > 1]
        raise Invalid([FieldError(name, "Give this once only.") for name in twice])
    return _without_id(given)


def _body() -> Json:
    """The JSON object in the body; an empty body counts as an empty object."""
    body = json_body(BODY_MAX, {})
    if not isinstance(body, dict):
        raise Malformed("The body must be a JSON object.")
    return _without_id(body)


def _without_id(given: dict[str, T]) -> dict[str, T]:
    if "id" in given:
        raise Invalid([FieldError("id", "The number belongs in the address only.")])
    return given


@blueprint.route("/", defaults={"path": ""}, methods=METHODS, provide_automatic_options=False)
@blueprint.route("/<path:path>", methods=METHODS, provide_automatic_options=False)
@access(Access.KEY)
def anything_else(path: str) -> Response:
    """What no operation answers to: off limits, another method, or nothing at all; recorded."""
    token = presented_key() or ""
    raise runner.record_refusal(request.method, f"/{path}", token, origin(), settings().key_peppers)


for _operation in OPERATIONS:
    blueprint.add_url_rule(
        _operation.path.replace("{id}", "<int:id>"),
        endpoint=_operation.name,
        view_func=_view(_operation),
        methods=[_operation.method],
        provide_automatic_options=False,
    )
