"""What each method of the protocol does for a key."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from pydantic_core import to_json

from convene_keys.errors import Problem
from convene_keys.mcp import catalogue, protocol
from convene_keys.mcp.protocol import Message, Rejected, ToolAnswer
from convene_keys.models import Scope
from convene_keys.operations import runner
from convene_keys.operations.runner import Caller
from convene_keys.operations.schemas import Json
from convene_keys.operations.table import BY_NAME, Operation
from convene_keys.text import printable

VERSION = "0.1.0"
LISTS_LAST = 300_000  # milliseconds that a client may keep a list of what there is
CAPABILITIES: Json = {"tools": {}, "resources": {}, "prompts": {}}
# Of the whole request, not of what was asked for: these have a status of their own (RFC 9110).
_OF_THE_REQUEST = {401, 429, 503}
# What to do next, where the problem itself does not say it.
_NEXT = {
    "scope_required": "Ask an organizer for a key that may read and change, or for a person to do "
    "it on the bookings and applications pages.",
    "not_found": "Look the number up with the tool that lists them.",
    "invalid": "Correct these arguments and call the tool again.",
    "conflict": "Look at its state first, with the tool that gets it.",
}
Result = Mapping[str, object]


def perform(caller: Caller, message: Message) -> Result | ToolAnswer:
    """The result of a request. Raises `Rejected`, or a `Problem` of the request as a whole."""
    if message.method not in _METHODS:  # of the protocol, but not offered here
        admit(caller)
        raise Rejected(protocol.METHOD_NOT_FOUND, "There is no such method.")
    return _METHODS[message.method](caller, message)


def admit(caller: Caller) -> Scope:
    """What the key may do; lets nobody in whose key does not work. Raises a `Problem`."""
    return runner.check_key(caller)


def _initialize(caller: Caller, message: Message) -> Result:
    _connect(caller, message.params["clientInfo"])
    wanted = message.params["protocolVersion"]
    return {
        "protocolVersion": wanted if wanted in protocol.HANDSHAKE else protocol.HANDSHAKE[-1],
        "capabilities": CAPABILITIES,
        "serverInfo": _server_info(caller),
        "instructions": catalogue.INSTRUCTIONS,
    }


def _discover(caller: Caller, message: Message) -> Result:
    _connect(caller, message.params["_meta"].get(protocol.CLIENT_INFO, {}))
    return {
        **_complete(keep=LISTS_LAST),
        "supportedVersions": list(protocol.VERSIONS),
        "capabilities": CAPABILITIES,
        "instructions": catalogue.INSTRUCTIONS,
        "_meta": {protocol.SERVER_INFO: _server_info(caller)},
    }


def _connect(caller: Caller, client: Json) -> None:
    said = " ".join(str(client.get(part, ""))[:60] for part in ("name", "version")).strip()
    runner.connect(caller, printable(said))


def _server_info(caller: Caller) -> Result:
    return {
        "name": "convene-keys",
        "title": "Convene Keys",
        "version": VERSION,
        "websiteUrl": caller.site.url,
    }


def _ping(caller: Caller, _: Message) -> Result:
    admit(caller)
    return {}


def _list_tools(caller: Caller, _: Message) -> Result:
    return {**_complete(keep=LISTS_LAST), "tools": catalogue.tools(admit(caller))}


def _listing(member: str, things: Sequence[Result]) -> Callable[[Caller, Message], Result]:
    def listing(caller: Caller, _: Message) -> Result:
        admit(caller)
        return {**_complete(keep=LISTS_LAST), member: things}

    return listing


def _call_tool(caller: Caller, message: Message) -> Result | ToolAnswer:
    name, arguments = message.params["name"], message.params.get("arguments") or {}
    operation = BY_NAME.get(name)
    if operation is None:
        raise _unknown(caller, "tool", name)
    number = arguments.get("id")
    known = isinstance(number, int) and not isinstance(number, bool)
    try:
        answer = _run(caller, operation, arguments, number if known else None)
    except Problem as problem:
        if problem.status in _OF_THE_REQUEST:
            raise
        return {"resultType": "complete", "content": [_text(_said(problem))], "isError": True}
    return ToolAnswer(answer)


def _read_resource(caller: Caller, message: Message) -> Result:
    uri = message.params["uri"]
    if uri not in catalogue.CONTENTS:
        raise _unknown(caller, "resource", uri)
    parts = catalogue.CONTENTS[uri].items()
    held = [f'"{name}":{_run(caller, *wanted)}' for name, wanted in parts]
    text = f"{{{','.join(held)}}}"
    content = {"uri": uri, "mimeType": "application/json", "text": text}
    return {**_complete(keep=0), "contents": [content]}


def _get_prompt(caller: Caller, message: Message) -> Result:
    admit(caller)
    found = catalogue.prompt(message.params["name"])
    if found is None:
        raise Rejected(protocol.INVALID_PARAMS, "There is no such prompt.")
    return {"resultType": "complete", **found}


def _run(caller: Caller, operation: Operation, given: Json, number: int | None = None) -> str:
    """The operation's answer as JSON."""
    read = partial(operation.from_json, given)
    return to_json(runner.run(operation, caller, read, number)).decode()


def _unknown(caller: Caller, kind: str, name: str) -> Rejected:
    """Recorded, as is every address that does not exist."""
    problem = runner.record_refusal(kind, name, caller)
    if problem.status in _OF_THE_REQUEST:
        raise problem
    data = {"uri": name} if kind == "resource" else None
    return Rejected(protocol.INVALID_PARAMS, f"There is no such {kind}.", data)


def _said(problem: Problem) -> str:
    """A problem for an assistant: what is wrong, what to do next, and the code to look up."""
    parts = (problem.title + ".", problem.detail, _NEXT.get(problem.code, ""))
    return " ".join([*filter(None, parts), f"(code: {problem.code})"])


def _text(text: str) -> Result:
    return {"type": "text", "text": text}


def _complete(keep: int) -> Json:
    """What the stateless revision wants of a result; the others drop it."""
    return {"resultType": "complete", "ttlMs": keep, "cacheScope": "private"}


_METHODS: dict[str, Callable[[Caller, Message], Result | ToolAnswer]] = {
    "initialize": _initialize,
    "server/discover": _discover,
    "ping": _ping,
    "tools/list": _list_tools,
    "tools/call": _call_tool,
    "resources/list": _listing("resources", catalogue.RESOURCES),
    "resources/templates/list": _listing("resourceTemplates", ()),
    "resources/read": _read_resource,
    "prompts/list": _listing("prompts", [*catalogue.PROMPTS.values()]),
    "prompts/get": _get_prompt,
}
