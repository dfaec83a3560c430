"""`POST /mcp`: what comes through to the protocol, and how what does not is refused."""

from typing import Any

import pytest
from flask import Flask

from convene_keys import create_app
from convene_keys.db.session import db
from convene_keys.models import ApiKey, Organization
from tests.conftest import Browser, challenge, new_browser
from tests.databases import environ
from tests.mcp.conftest import Caller, events

pytestmark = pytest.mark.on_sqlite


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
