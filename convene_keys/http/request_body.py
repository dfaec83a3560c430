"""The JSON that a machine sends in a request's body, read within its limits."""

import json
from collections.abc import Iterable
from contextlib import suppress
from wsgiref.types import StartResponse, WSGIEnvironment

from flask import Flask
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.wrappers import Request

from convene_keys.errors import Malformed, TooLarge, UnsupportedMediaType
from convene_keys.operations.table import VERIFY

FORM_MAX = 64 * 1024  # bytes of any body that no view asks more or less of
PARTS_MAX = 3_000  # a note of 2,000 commas is one value, and still goes through
MEMBERS_MAX = 500  # of one object: each that nobody knows is named in the answer
DROPPED_MAX = 8 * 1024 * 1024


def init_app(app: Flask) -> None:
    """Read what an answer left unread of a body, up to 8 MiB, before it is sent.

    A server that answers and closes while the rest of a body comes in resets the connection, and
    the answer may be lost with it (RFC 9112 §9.6).
    """
    inner = app.wsgi_app

    def reading_all(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        answer = inner(environ, start)
        # What a proxy asks has the headers of a body that stayed with the proxy; and of some
        # servers' input nobody knows where the body ends.
        if environ.get("wsgi.input_terminated") and environ["PATH_INFO"] != VERIFY:
            left = DROPPED_MAX
            with suppress(Exception):  # who hung up or sent no good chunks gets no answer anyway
                while left > 0 and (part := environ["wsgi.input"].read(min(left, 65_536))):
                    left -= len(part)
        return answer

    app.wsgi_app = reading_all  # type: ignore[assignment]


def json_body(request: Request, most: int, empty: object = None) -> object:
    """The value in the body, of `most` bytes; `empty` when there is none.

    Raises `TooLarge`, `UnsupportedMediaType`, or `Malformed` for what is not well-formed JSON
    (RFC 8259), names a member of an object twice or holds more than anybody needs.
    """
    raw = raw_json(request, most)
    if not raw:
        return empty
    if sum(map(raw.count, (b",", b"[", b"{"))) > PARTS_MAX:
        raise Malformed(f"The body may hold {PARTS_MAX:,} values at the most.")
    try:
        return json.loads(raw, parse_constant=_refuse_constant, object_pairs_hook=_members)
    except (ValueError, RecursionError):
        raise Malformed("The body is not well-formed JSON.") from None


def raw_json(request: Request, most: int) -> bytes:
    """The body as it came, said to be JSON, of `most` bytes; nothing when there is none.

    Raises `TooLarge` or `UnsupportedMediaType`.
    """
    # A body that comes in chunks is cut off at the most, not refused: one byte more tells.
    request.max_content_length = most + 1
    try:
        raw = request.get_data()  # which the guard has read already if it is a form
        if len(raw) > most:
            raise RequestEntityTooLarge
    except RequestEntityTooLarge:
        raise TooLarge(f"A body may have {most:,} bytes at the most.") from None
    if raw and request.mimetype != "application/json":
        raise UnsupportedMediaType("Send JSON, with Content-Type: application/json.")
    return raw


def _members(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(pairs) > MEMBERS_MAX:
        raise ValueError("more members than anything here has")
    if len(members) < len(pairs):
        raise ValueError("a member is there twice")  # which one counts is anybody's guess
    return members


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
