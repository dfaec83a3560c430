"""Messages on the wire: envelopes, revisions, and headers that repeat the body (contract §6)."""

import json
from typing import Any

import mcp_types
import pytest
from mcp_types import methods

from convene_keys.mcp import protocol
from convene_keys.mcp.protocol import STATELESS, VERSIONS, Message
from convene_keys.models import Organization
from convene_keys.operations.table import OPERATIONS
from tests.mcp.conftest import CLIENT, META, Caller, events

pytestmark = pytest.mark.on_sqlite


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("tools/list", {}),
        ("tools/call", {"name": "dashboard"}),
        ("tools/call", {"name": "get_booking", "arguments": {"id": 404}}),
        ("resources/list", {}),
        ("resources/templates/list", {}),
        ("resources/read", {"uri": "convene://pending"}),
        ("prompts/list", {}),
        ("prompts/get", {"name": "prepare_saturday"}),
    ],
)
def test_results_fit_their_revision(
    caller: Caller, version: str, method: str, params: dict[str, Any]
) -> None:
    result = caller.call(method, version=version, **params)["result"]
    methods.validate_server_result(method, version, result)
    assert ("resultType" in result) is (version in STATELESS)
    assert methods.serialize_server_result(method, version, result) == result


def test_client_that_sends_no_version_is_served(caller: Caller) -> None:
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    assert len(caller.raw(200, body)["result"]["tools"]) == len(OPERATIONS)
    assert caller.raw(200, {**body, "method": "ping"})["result"] == {}


def test_notifications_are_taken_and_not_answered(caller: Caller) -> None:
    body = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    for version in (*VERSIONS, None):
        headers = {"MCP_Protocol_Version": version} if version else {}
        assert caller.raw(202, body, **headers) is None
    error = caller.raw(400, body, MCP_Protocol_Version="1999-01-01")["error"]
    assert error["data"]["supported"] == list(VERSIONS)


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"",
        b"\xff\xfe",
        b"[" * 30_000,
        b'{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}',
        b'{"jsonrpc":"2.0","id":NaN,"method":"ping"}',
        b'{"jsonrpc":"2.0","id":' + b"1" * 5_000 + b',"method":"ping"}',
        [],
        None,
        "ping",
        [{"jsonrpc": "2.0", "id": 1, "method": "ping"}],
        {"jsonrpc": "1.0", "id": 1, "method": "ping"},
        {"id": 1, "method": "ping"},
        {"jsonrpc": "2.0", "id": 1},
        {"jsonrpc": "2.0", "id": 1, "method": 5},
        {"jsonrpc": "2.0", "id": None, "method": "ping"},
        {"jsonrpc": "2.0", "id": True, "method": "ping"},
        {"jsonrpc": "2.0", "id": 1.5, "method": "ping"},
        {"jsonrpc": "2.0", "id": {}, "method": "ping"},
        {"jsonrpc": "2.0", "id": 1, "method": "ping", "params": []},
        {"jsonrpc": "2.0", "id": 1, "result": {}},
    ],
    ids=lambda body: str(body)[:40],
)
def test_what_is_no_message(caller: Caller, organization: Organization, body: Any) -> None:
    answer = caller.raw(400, body)
    malformed = isinstance(body, bytes) and body
    assert answer["error"]["code"] == (-32700 if malformed else -32600)
    assert answer["id"] is None
    assert events(organization) == []


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("logging/setLevel", {"level": "debug"}),
        ("resources/subscribe", {"uri": "convene://dashboard"}),
        ("completion/complete", {"ref": {"type": "ref/prompt", "name": "a"}, "argument": {"name": "a", "value": "b"}}),
        ("server/discover", {}),
        ("nothing/here", {}),
        ("tools/call/", {}),
    ],
)  # fmt: skip
def test_methods_that_are_not_offered(caller: Caller, method: str, params: dict[str, Any]) -> None:
    assert caller.call(method, **params)["error"]["code"] == -32601
    if method != "server/discover":
        stateless = caller.call(method, 404, "2026-07-28", **params)
        assert stateless["error"]["code"] == -32601


def test_stateless_revision_knows_no_handshake(caller: Caller) -> None:
    asked = {"protocolVersion": "2026-07-28", "capabilities": {}, "clientInfo": CLIENT}
    assert caller.call("initialize", 404, "2026-07-28", **asked)["error"]["code"] == -32601


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("tools/call", {}),
        ("tools/call", {"name": 5}),
        ("tools/call", {"name": "whoami", "arguments": []}),
        ("resources/read", {}),
        ("prompts/get", {"name": {}}),
        ("tools/list", {"cursor": 5}),
    ],
)
def test_parameters_of_the_wrong_shape(caller: Caller, method: str, params: dict[str, Any]) -> None:
    error = caller.call(method, **params)["error"]
    assert error["code"] == -32602
    assert "Input should be" in error["message"] or "Field required" in error["message"]


# The stateless revision's headers ----------------------------------------------------------------


def _stateless(name: str = "whoami", **meta: Any) -> dict[str, Any]:
    params = {"name": name, "_meta": META | meta}
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}


GOOD = {
    "MCP_Protocol_Version": "2026-07-28",
    "Mcp_Method": "tools/call",
    "Mcp_Name": "whoami",
}


def test_headers_that_repeat_the_body(caller: Caller) -> None:
    assert "result" in caller.raw(200, _stateless(), **GOOD)
    wrapped = GOOD | {"Mcp_Name": "=?base64?d2hvYW1p?="}
    assert "result" in caller.raw(200, _stateless(), **wrapped)


@pytest.mark.parametrize(
    "changed",
    [
        {"MCP_Protocol_Version": "2026-07-29"},
        {"MCP_Protocol_Version": "2026-07-28,2026-07-28"},
        {"Mcp_Method": "tools/list"},
        {"Mcp_Method": "tools/call,tools/call"},
        {"Mcp_Name": "cancel_booking"},
        {"Mcp_Name": "WHOAMI"},
        {"Mcp_Name": "=?base64?d2hvYW1q?="},
        {"Mcp_Name": "=?base64?d2hvYW1pé?="},
        {"Mcp_Name": "=?base64?/w==?="},
        {"Mcp_Method": None},
        {"Mcp_Name": None},
        {"MCP_Protocol_Version": None},
    ],
    ids=str,
)
def test_headers_that_say_something_else(
    caller: Caller, organization: Organization, changed: dict[str, str | None]
) -> None:
    """Or else what stands in front of the product would see another call than the product."""
    headers = {name: value for name, value in (GOOD | changed).items() if value is not None}
    assert caller.raw(400, _stateless(), **headers)["error"]["code"] == -32020
    assert events(organization) == []


def test_version_that_is_not_spoken(caller: Caller) -> None:
    for version in ("2027-01-01", "2024-11-05"):
        body = _stateless(**{mcp_types.PROTOCOL_VERSION_META_KEY: version})
        error = caller.raw(400, body, **GOOD | {"MCP_Protocol_Version": version})["error"]
        assert error["code"] == -32022
        assert error["data"] == {"supported": list(VERSIONS), "requested": version}


@pytest.mark.parametrize("missing", META)
def test_what_each_request_must_say_of_itself(caller: Caller, missing: str) -> None:
    body = _stateless()
    del body["params"]["_meta"][missing]
    error = caller.raw(400, body, **GOOD)["error"]
    assert error["code"] == -32602
    assert missing in error["message"]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_tools_answer_has_the_form_of_its_version(version: str) -> None:
    """As the library would give it, which is asked only once."""
    text = '{"the answer":"as data","notes":["the answer as text",null,"\\"quoted\\" Åsa"],"n":1}'
    answer = protocol.answer(Message("a\"'", "tools/call", {}, version), protocol.ToolAnswer(text))
    result = {
        "resultType": "complete",
        "content": [{"type": "text", "text": text}],
        "structuredContent": json.loads(text),
    }
    assert json.loads(answer) == {
        "jsonrpc": "2.0",
        "id": "a\"'",
        "result": methods.serialize_server_result("tools/call", version, result),
    }
