"""The Model Context Protocol on the wire: which revision a message speaks, and its answer's form.

Revisions up to 2025-11-25 begin with a handshake; from 2026-07-28 on each request stands alone and
says in `_meta` and in headers what it is. Knows neither Flask nor what the methods do.
Source: modelcontextprotocol.io, "Streamable HTTP" and "Per-request protocol fields".
"""

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, Protocol

import mcp_types
from mcp_types import methods
from pydantic import ValidationError

from convene_keys.operations.schemas import Json

HANDSHAKE = ("2025-06-18", "2025-11-25")
STATELESS = ("2026-07-28",)
VERSIONS = (*HANDSHAKE, *STATELESS)

PARSE_ERROR = mcp_types.PARSE_ERROR
INVALID_REQUEST = mcp_types.INVALID_REQUEST
METHOD_NOT_FOUND = mcp_types.METHOD_NOT_FOUND
INVALID_PARAMS = mcp_types.INVALID_PARAMS
HEADER_MISMATCH = mcp_types.HEADER_MISMATCH
UNSUPPORTED_VERSION = mcp_types.UNSUPPORTED_PROTOCOL_VERSION
REFUSED = -32010  # ours: the key, the rate limit or the database stands in the way

SERVER_INFO = mcp_types.SERVER_INFO_META_KEY
CLIENT_INFO = mcp_types.CLIENT_INFO_META_KEY
_VERSION = mcp_types.PROTOCOL_VERSION_META_KEY
_CAPABILITIES = mcp_types.CLIENT_CAPABILITIES_META_KEY
# Which parameter of a method the header Mcp-Name repeats.
_NAMED = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}

Id = int | str


class Headers(Protocol):
    def get(self, name: str, /) -> str | None: ...


class Rejected(Exception):
    """An error of the protocol, with its JSON-RPC code and a sentence for a developer."""

    def __init__(self, code: int, message: str, data: object = None) -> None:
        super().__init__(message)
        self.code, self.message, self.data = code, message, data


@dataclass(frozen=True)
class Message:
    """One request, or a notification, whose `id` is None."""

    id: Id | None
    method: str
    params: Json
    version: str = ""


class ToolAnswer(NamedTuple):
    """What a tool that worked answers: a JSON object."""

    json: str


def read(body: object) -> Message:
    """The one request or notification in a body, its version not known yet. Raises `Rejected`."""
    if isinstance(body, dict) and body.get("jsonrpc") == "2.0":
        id, method, params = body.get("id"), body.get("method"), body.get("params", {})
        known = (isinstance(id, int) and not isinstance(id, bool)) or isinstance(id, str)
        if isinstance(method, str) and isinstance(params, dict) and (known or "id" not in body):
            return Message(id, method, params)
    raise Rejected(INVALID_REQUEST, "The body must be one JSON-RPC request or notification.")


def versioned(message: Message, headers: Headers) -> Message:
    """The message with the version that it speaks. Raises `Rejected`.

    `headers` are looked up by their names in any case; one that was sent twice has both values,
    joined by a comma, and so fits nothing.
    """
    version = headers.get("MCP-Protocol-Version")
    meta = message.params.get("_meta")
    if version in HANDSHAKE or (message.method == "initialize" and version not in STATELESS):
        version = version if version in HANDSHAKE else HANDSHAKE[-1]
    elif version is None and not (isinstance(meta, dict) and _VERSION in meta):
        version = HANDSHAKE[0]  # a client from before the header
    elif message.id is not None:
        version = _stateless(message, headers)
    elif version not in STATELESS:
        raise _unsupported(version)
    return Message(message.id, message.method, message.params, version)


def check(message: Message) -> None:
    """Raises `Rejected` for a request that its version does not know, or not in this shape."""
    try:
        methods.validate_client_request(message.method, message.version, message.params)
    except KeyError:
        raise Rejected(METHOD_NOT_FOUND, "There is no such method.") from None
    except ValidationError as invalid:
        first = invalid.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))[:100]
        raise Rejected(INVALID_PARAMS, f"{place}: {first['msg']}") from None


def answer(message: Message, result: Mapping[str, object] | ToolAnswer) -> bytes:
    """A result in the form of the message's version, as JSON."""
    if isinstance(result, ToolAnswer):
        before, between, after = _around_tool_answer(message.version)
        shaped = f"{before}{encoded(result.json)}{between}{result.json}{after}"
    else:
        shaped = encoded(methods.serialize_server_result(message.method, message.version, result))
    return f'{{"jsonrpc":"2.0","id":{encoded(message.id)},"result":{shaped}}}'.encode()


@cache
def _around_tool_answer(version: str) -> tuple[str, str, str]:
    """What the result of a tool that worked has before its answer as text, between, and after."""
    text, data = "the answer as text", {"the answer": "as data"}
    content = [{"type": "text", "text": text}]
    result = {"resultType": "complete", "content": content, "structuredContent": data}
    shaped = encoded(methods.serialize_server_result("tools/call", version, result))
    before, rest = shaped.split(encoded(text))
    between, after = rest.split(encoded(data))
    return before, between, after


def encoded(value: object) -> str:
    """A message or a part of one, as it goes over the wire."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def error(id: Id | None, rejected: Rejected) -> Json:
    told: Json = {"code": rejected.code, "message": rejected.message}
    if rejected.data is not None:
        told["data"] = rejected.data
    return {"jsonrpc": "2.0", "id": id, "error": told}


def status(message: Message | None, code: int) -> int:
    """The HTTP status of an error: the handshake's revisions give none to what a method says."""
    if message is not None and message.version in HANDSHAKE:
        return 200
    return 404 if code == METHOD_NOT_FOUND else 400


def _stateless(message: Message, headers: Headers) -> str:
    """The version of a request that stands alone; its headers must repeat what its body says."""
    meta = message.params.get("_meta")
    missing = [k for k in (_VERSION, _CAPABILITIES) if not isinstance(meta, dict) or k not in meta]
    if missing or not isinstance(meta, dict):
        raise Rejected(INVALID_PARAMS, f"params._meta needs {' and '.join(missing)}.")
    said = {"MCP-Protocol-Version": meta[_VERSION], "Mcp-Method": message.method}
    name = message.params.get(_NAMED.get(message.method, ""))
    if name is not None:
        said["Mcp-Name"] = name
    for header, value in said.items():
        if _decoded(headers.get(header)) != value:
            raise Rejected(HEADER_MISMATCH, f"The header {header} must repeat what the body says.")
    version = str(meta[_VERSION])
    if version not in STATELESS:
        raise _unsupported(version)
    return version


def _unsupported(version: str | None) -> Rejected:
    return Rejected(
        UNSUPPORTED_VERSION,
        "This version of the protocol is not spoken here.",
        {"supported": list(VERSIONS), "requested": version},
    )


def _decoded(value: str | None) -> str | None:
    """A header's value, which is wrapped in base64 when it is more than plain ASCII."""
    if value is None or not (
        value.startswith("=?base64?") and value.endswith("?=") and len(value) >= 11
    ):
        return value
    wrapped = value[len("=?base64?") : -len("?=")]
    try:
        text = base64.b64decode(wrapped, validate=True)
        return text.decode() if base64.b64encode(text).decode() == wrapped else None
    except (binascii.Error, ValueError):
        return None
