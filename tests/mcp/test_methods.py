"""What each method answers, for whose key, and what is recorded of it."""

import json

import pytest

from convene_keys.db.session import db
from convene_keys.mcp.protocol import HANDSHAKE, STATELESS, VERSIONS
from convene_keys.models import ApiKey, Member, Organization
from tests import factories
from tests.conftest import Browser, Clock
from tests.mcp.conftest import CLIENT, Caller, events

pytestmark = pytest.mark.on_sqlite


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


def test_resource_that_is_not_there_is_named(caller: Caller) -> None:
    for version in VERSIONS:
        status = 400 if version in STATELESS else 200
        error = caller.call("resources/read", status, version, uri="convene://nothing")["error"]
        assert (error["code"], error["data"]) == (-32602, {"uri": "convene://nothing"})


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
