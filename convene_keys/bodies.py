"""The JSON that a machine sends in a request's body, read within its limits."""

import json
from typing import Any

from flask import request
from werkzeug.exceptions import RequestEntityTooLarge

from convene_keys.errors import Malformed, TooLarge, UnsupportedMediaType


def json_body(most: int, empty: Any = None) -> Any:
    """The value in the body, of `most` bytes; `empty` when there is none.

    Raises `TooLarge`, `UnsupportedMediaType`, or `Malformed` for what is not well-formed JSON
    (RFC 8259) or names a member of an object twice.
    """
    raw = raw_json(most)
    if not raw:
        return empty
    try:
        return json.loads(raw, parse_constant=_refuse_constant, object_pairs_hook=_members)
    except (ValueError, RecursionError):
        raise Malformed("The body is not well-formed JSON.") from None


def raw_json(most: int) -> bytes:
    """The body as it came, said to be JSON, of `most` bytes; nothing when there is none.

    Raises `TooLarge` or `UnsupportedMediaType`.
    """
    # A body that comes in chunks is cut off at the most, not refused: one byte more tells.
    request.max_content_length = most + 1
    try:
        if request.form:  # read by the guard already, so the body would look empty
            raise _not_json()
        raw = request.get_data(cache=False)
        if len(raw) > most:
            raise RequestEntityTooLarge
    except RequestEntityTooLarge:
        raise TooLarge(f"A body may have {most:,} bytes at the most.") from None
    if raw and request.mimetype != "application/json":
        raise _not_json()
    return raw


def _not_json() -> UnsupportedMediaType:
    return UnsupportedMediaType("Send JSON, with Content-Type: application/json.")


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a member is there twice")  # which one counts is anybody's guess
    return members


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
