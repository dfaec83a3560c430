"""`POST /mcp`: one JSON-RPC message in, one JSON answer out; nothing is kept in between.

Beside it the desktop extension, for assistants that start a program instead.
"""

from flask import Blueprint, Response, request

from convene_keys.errors import Forbidden, Malformed, MethodNotAllowed, Problem
from convene_keys.http.access import Access, access, settings
from convene_keys.http.answers import JSON, NO_STORE, Answer
from convene_keys.http.key_app import KeyRequest
from convene_keys.http.request_body import json_body
from convene_keys.mcp import methods, protocol
from convene_keys.mcp.bundle import NAME, bundle
from convene_keys.mcp.protocol import Id, Message, Rejected
from convene_keys.operations.schemas import Json

PATH = "/mcp"
BODY_MAX = 64 * 1024
MESSAGE_ID = "convene_keys.message_id"  # in a request's environment, once its body was read
OTHER_METHODS = ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"]

blueprint = Blueprint("mcp", __name__)


@blueprint.route(PATH, methods=OTHER_METHODS, provide_automatic_options=False)
@access(Access.OPEN)
def other_methods() -> Response:
    """No stream is kept open, and there is no session to end."""
    raise MethodNotAllowed("Send each message with POST.", allowed=["POST"])


def exchange(request: KeyRequest) -> Answer:
    caller = request.caller
    # A page of another site may not call from a browser, whatever name it gave this machine.
    if request.headers.get("Origin") not in (None, caller.site.url):
        raise Forbidden("This can't be called from another site's page.", code="other_origin")
    message = None
    try:
        message = _message(request)
        request.environ[MESSAGE_ID] = message.id
        message = protocol.versioned(message, request.headers)
        if message.id is not None:
            protocol.check(message)
    except Rejected as rejected:
        methods.admit(caller)  # a stranger learns nothing but that a key is needed
        return _failed(message, rejected)
    if message.id is None:
        methods.admit(caller)
        return Answer(b"", 202, (NO_STORE,))
    try:
        return Answer(protocol.answer(message, methods.perform(caller, message)))
    except Rejected as rejected:
        return _failed(message, rejected)


@blueprint.get(f"/connect/{NAME}")
@access(Access.OPEN)
def extension() -> Response:
    """For everybody: it has the site's address in it, and no key."""
    # Not application/zip, which a Mac's browser unpacks unasked.
    response = Response(bundle(settings().base_url), mimetype="application/octet-stream")
    response.headers["Content-Disposition"] = f'attachment; filename="{NAME}"'
    response.cache_control.public, response.cache_control.max_age = True, 300
    response.add_etag()
    response.make_conditional(request)
    return response


def refuse(request: KeyRequest, problem: Problem) -> Answer:
    """The answer to what was refused as a whole, with the problem's own status and code."""
    message_id = request.environ.get(MESSAGE_ID)
    return refusal(problem, request.caller.origin.request_id, message_id)


def refusal(problem: Problem, request_id: str | None, message_id: Id | None = None) -> Answer:
    data = {"code": problem.code, "status": problem.status, "request_id": request_id}
    told = protocol.error(message_id, Rejected(protocol.REFUSED, problem.detail, data))
    return _json(told, problem.status, *problem.headers.items())


def _message(request: KeyRequest) -> Message:
    try:
        return protocol.read(json_body(request, BODY_MAX))
    except Malformed as malformed:
        raise Rejected(protocol.PARSE_ERROR, malformed.detail) from None


def _failed(message: Message | None, rejected: Rejected) -> Answer:
    status = protocol.status(message, rejected.code)
    return _json(protocol.error(message.id if message else None, rejected), status)


def _json(body: Json, status: int = 200, *headers: tuple[str, str]) -> Answer:
    return Answer(protocol.encoded(body).encode(), status, (*headers, *JSON))
