"""`POST /mcp` on the wire: envelopes, eras, headers, limits, and what is told to whom (contract §6)."""

import json
from typing import Any

import mcp_types
import pytest
from flask import Flask
from mcp_types import methods
from sqlalchemy import select

from convene_keys import create_app
from convene_keys.db.session import db
from convene_keys.mcp import catalogue
from convene_keys.mcp.protocol import HANDSHAKE, STATELESS, VERSIONS
from convene_keys.models import ApiKey, AuditEvent, Member, Organization, Scope
from convene_keys.operations.table import OPERATIONS
from tests import factories
from tests.conftest import Browser, Clock, challenge, new_browser
from tests.databases import environ

pytestmark = pytest.mark.pages

META = {
    mcp_types.PROTOCOL_VERSION_META_KEY: "2026-07-28",
    mcp_types.CLIENT_CAPABILITIES_META_KEY: {},
}
CLIENT = {"name": "curl", "version": "8"}


class Caller:
    """Sends messages with a key; looks at what every answer must carry."""

    def __init__(self, client: Browser, secret: str | None) -> None:
        self._client = client
        self.headers = {"Authorization": f"Bearer {secret}"} if secret else {}

    def post(self, status: int, **request: Any) -> Any:
        headers = self.headers | request.pop("headers", {})
        answer = self._client.post("/mcp", headers=headers, **request)
        assert answer.status_code == status, answer.text
        assert "Set-Cookie" not in answer.headers
        if answer.data:
            assert answer.mimetype == "application/json"
            assert answer.headers["Cache-Control"] == "no-store"
        return answer

    def call(
        self, method: str, status: int = 200, version: str = "2025-11-25", **params: Any
    ) -> Any:
        """The answer's JSON to a request in a version's own form."""
        headers = {"MCP-Protocol-Version": version}
        if version in STATELESS:
            params["_meta"] = META | params.get("_meta", {})
            headers["Mcp-Method"] = method
            name = params.get("name", params.get("uri"))
            if name is not None:
                headers["Mcp-Name"] = name
        body = {"jsonrpc": "2.0", "id": 7, "method": method, "params": params}
        answer = self.post(status, json=body, headers=headers)
        assert answer.json["jsonrpc"] == "2.0"
        assert answer.json["id"] == 7
        return answer.json

    def raw(self, status: int, body: Any, **headers: str) -> Any:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        data = body if isinstance(body, bytes) else json.dumps(body)
        request = {"data": data, "content_type": "application/json", "headers": named}
        answer = self.post(status, **request)
        return answer.json if answer.data else None


@pytest.fixture
def caller(client: Browser, key: tuple[ApiKey, str]) -> Caller:
    return Caller(client, key[1])


def events(organization: Organization) -> list[AuditEvent]:
    found = select(AuditEvent).where(AuditEvent.organization_id == organization.id)
    return list(db.session.scalars(found.order_by(AuditEvent.id)))


# Each result fits its revision -------------------------------------------------------------------


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


@pytest.mark.parametrize("wanted", [*HANDSHAKE, "2024-11-05", "2026-07-28", "1999-01-01"])
def test_handshake_agrees_on_a_revision(caller: Caller, wanted: str) -> None:
    params = {"protocolVersion": wanted, "capabilities": {}, "clientInfo": CLIENT}
    body = {"jsonrpc": "2.0", "id": "a", "method": "initialize", "params": params}
    result = caller.raw(200, body)["result"]
    assert result["protocolVersion"] == (wanted if wanted in HANDSHAKE else "2025-11-25")
    assert result["serverInfo"]["title"] == "Convene Keys"
    assert set(result["capabilities"]) == {"tools", "resources", "prompts"}


def test_discovery_tells_every_revision(caller: Caller, organization: Organization) -> None:
    result = caller.call("server/discover", version="2026-07-28")["result"]
    assert result["supportedVersions"] == ["2025-06-18", "2025-11-25", "2026-07-28"]
    assert [e.action for e in events(organization)] == ["key.connected"]


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


# Envelopes ---------------------------------------------------------------------------------------


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


def test_body_has_a_limit(caller: Caller) -> None:
    body = {"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {"_meta": {"a": "x" * 65_536}}}
    answer = caller.raw(413, body)
    assert answer["error"]["data"]["code"] == "too_large"
    body["params"]["_meta"]["a"] = "x" * 65_000
    caller.raw(200, body)


def test_only_json_is_taken(caller: Caller) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = caller.post(415, data='{"jsonrpc":"2.0","id":1}', content_type=kind)
        assert answer.json["error"]["data"]["code"] == "unsupported_media_type"


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_other_methods(client: Browser, caller: Caller, method: str) -> None:
    for headers in ({}, caller.headers):
        answer = client.open("/mcp", method=method, headers=headers)
        assert answer.status_code == 405
        assert answer.headers["Allow"] == "POST"


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


def test_resource_that_is_not_there_is_named(caller: Caller) -> None:
    for version in VERSIONS:
        status = 400 if version in STATELESS else 200
        error = caller.call("resources/read", status, version, uri="convene://nothing")["error"]
        assert (error["code"], error["data"]) == (-32602, {"uri": "convene://nothing"})


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


# Who may call ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["tools/list", "tools/call", "nothing/here"])
def test_without_a_working_key_nothing_is_told(client: Browser, key: Any, method: str) -> None:
    body = {"jsonrpc": "2.0", "id": 7, "method": method, "params": {"name": "whoami"}}
    for secret, code in ((None, "key_missing"), ("fm_org_" + "0" * 38, "key_unknown")):
        stranger = Caller(client, secret)
        answer = stranger.post(401, json=body)
        assert answer.headers["WWW-Authenticate"] == challenge(code)
        assert answer.json["id"] == 7
        assert answer.json["error"]["code"] == -32010
        assert answer.json["error"]["data"]["code"] == code
        assert answer.json["error"]["data"]["request_id"] == answer.headers["X-Request-Id"]
        assert stranger.raw(401, b"{")["id"] is None


def test_revoked_key_is_recorded_under_its_name(
    client: Browser, organization: Organization, fake_clock: Clock
) -> None:
    _, secret = factories.api_key(
        organization, "Old laptop", revoked_at=fake_clock.moment, released_at=fake_clock.moment
    )
    for method in ("initialize", "tools/list", "ping"):
        params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": CLIENT}
        Caller(client, secret).call(method, 401, **params if method == "initialize" else {})
        fake_clock.advance(minutes=2)
    assert [(e.action, e.key_name) for e in events(organization)] == [
        ("key.refused", "Old laptop")
    ] * 3


def test_walls_before_a_tool_and_before_a_list(
    caller: Caller, organization: Organization, maya: Member
) -> None:
    maya.disabled_at = maya.created_at
    db.session.commit()
    result = caller.call("tools/call", name="whoami")["result"]
    assert result["isError"]
    assert "(code: creator_inactive)" in result["content"][0]["text"]
    for method in ("tools/list", "resources/list", "prompts/list"):
        error = caller.call(method, 403)["error"]
        assert error["data"]["code"] == "creator_inactive"
    error = caller.call("resources/read", 403, uri="convene://pending")["error"]
    assert error["data"]["code"] == "creator_inactive"


def test_other_origins_are_refused(caller: Caller, app: Flask, organization: Organization) -> None:
    own = app.config["SETTINGS"].base_url
    body = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    assert caller.raw(200, body, Origin=own)["result"] == {}
    for origin in (
        "http://evil.example",
        "null",
        "",
        own + "/",
        own.upper(),
        own + ".evil.example",
    ):
        answer = caller.raw(403, body, Origin=origin)
        assert answer["error"]["data"]["code"] == "other_origin"
    assert events(organization) == []


def test_key_in_an_address_is_refused(client: Browser, key: tuple[ApiKey, str]) -> None:
    answer = client.post(f"/mcp?key={key[1]}", json={})
    assert answer.status_code == 400
    assert answer.json["error"]["data"]["code"] == "key_outside_header"
    assert key[1] not in answer.text


def test_calls_count_against_the_keys_limit(database_url: str, key: tuple[ApiKey, str]) -> None:
    other = create_app(environ(database_url, KEY_RATE_LIMIT="2/minute"))
    with other.app_context():
        caller = Caller(new_browser(other), key[1])
        caller.call("ping")
        caller.call("tools/call", name="whoami")
        body = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "whoami"}}
        answer = caller.post(429, json=body)
        db.engine.dispose()
    assert int(answer.headers["Retry-After"]) > 0
    assert answer.json["error"]["data"]["code"] == "rate_limited"


# What is recorded --------------------------------------------------------------------------------


def test_lists_are_not_recorded_but_count_as_use(
    caller: Caller, organization: Organization, key: tuple[ApiKey, str]
) -> None:
    for method in ("ping", "tools/list", "resources/list", "prompts/list"):
        caller.call(method)
    caller.call("prompts/get", name="pending_today")
    assert events(organization) == []
    db.session.refresh(key[0])
    assert key[0].last_used_at is not None


def test_call_is_recorded_as_its_rest_twin(
    client: Browser, caller: Caller, organization: Organization
) -> None:
    caller.call("tools/call", name="decline_booking", arguments={"id": 1, "reason": "No space"})
    client.post(
        "/api/v1/admin/bookings/2/decline", json={"reason": "No space"}, headers=caller.headers
    )
    by_tool, by_rest = events(organization)
    alike = ("actor", "key_id", "key_name", "action", "outcome", "ip", "user_agent", "detail")
    assert [getattr(by_tool, a) for a in alike] == [getattr(by_rest, a) for a in alike]
    assert by_tool.target_name == "booking 1"


def test_secrets_in_what_is_sent_are_not_kept(
    caller: Caller, organization: Organization, key: tuple[ApiKey, str]
) -> None:
    secret = key[1]
    client = {"name": f"a {secret}", "version": "\x1b[31m\n" + "9" * 200}
    caller.call("initialize", protocolVersion="2025-11-25", capabilities={}, clientInfo=client)
    caller.call("tools/call", name=f"run {secret}")
    caller.call("tools/call", name="decline_booking", arguments={"id": 1, "reason": secret})
    caller.call("resources/read", uri=f"convene://{secret}")
    found = events(organization)
    assert len(found) == 4
    for event in found:
        kept = json.dumps([event.detail, event.target_name, event.user_agent])
        assert secret not in kept
        assert len(kept) < 400
    assert found[0].detail["client"].isprintable()


def test_reaching_for_what_no_key_may_touch(caller: Caller, organization: Organization) -> None:
    assert caller.call("tools/call", name="billing")["error"]["code"] == -32602
    (event,) = events(organization)
    assert (event.action, event.outcome) == ("request.off_limits", "denied")


def test_failure_of_ours_is_told_without_its_cause(
    caller: Caller, organization: Organization, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("secret cause")

    monkeypatch.setattr("convene_keys.markets.queries.dashboard", fail)
    answer = caller.call("tools/call", 500, name="dashboard")
    assert "secret cause" not in json.dumps(answer)
    assert answer["error"]["data"]["code"] == "internal"
    assert [(e.action, e.outcome) for e in events(organization)] == [("dashboard.viewed", "failed")]


# What is offered ---------------------------------------------------------------------------------


def test_resources_are_read_with_operations_that_only_read() -> None:
    for parts in catalogue.CONTENTS.values():
        assert all(operation.scope is Scope.READ for operation, _ in parts.values())
        assert all(operation.from_json(given) for operation, given in parts.values())
    assert {r["uri"] for r in catalogue.RESOURCES} == set(catalogue.CONTENTS)


def test_hints_fit_what_operations_do() -> None:
    hints = {tool["name"]: tool["annotations"] for tool in catalogue.tools(Scope.READ_WRITE)}
    assert {n for n, h in hints.items() if h["destructiveHint"]} == {
        "cancel_booking",
        "update_vendor_application",
    }
    assert {n for n, h in hints.items() if not h["idempotentHint"]} == {"remind_vendor_application"}
    assert all(h["openWorldHint"] is False for h in hints.values())
