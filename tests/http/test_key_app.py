"""The application that keys call: what is in reach of them there, and what goes on to Flask."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask, has_app_context, has_request_context
from werkzeug.test import Client

from convene_keys.keys import authentication
from convene_keys.models import Organization
from tests import factories

FORWARDED = {"X-Forwarded-Method": "GET", "X-Forwarded-Uri": "/"}
TOOL = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "tools/call",
    "params": {"name": "decline_booking", "arguments": {"id": 1, "reason": "Full"}},
}
CALLS: dict[str, dict[str, Any]] = {
    "read": {"path": "/api/v1/admin/bookings"},
    "events": {"path": "/api/v1/admin/audit_events"},
    "change": {"path": "/api/v1/admin/bookings/1/approve", "method": "POST"},
    "nothing": {"path": "/api/v1/admin/nothing"},
    "tool": {"path": "/mcp", "method": "POST", "json": TOOL},
    "proxy": {"path": "/auth/verify", "headers": FORWARDED},
    "revoke": {"path": "/api/v1/admin/me/revoke", "method": "POST"},
}


def in_a_thread(act: Callable[[], Any]) -> Any:
    """Where no test has opened a context of Flask's."""
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(act()))
    thread.start()
    thread.join()
    return answers[0]


@pytest.mark.parametrize("name", CALLS)
def test_no_context_of_flasks_is_open_in_a_keys_call(
    app: Flask, organization: Organization, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """So a key can't reach a session, a signed-in member or a form, whatever its call does."""
    creator = factories.member(organization)
    _, secret = factories.api_key(organization, creator=creator, scope="read_write")
    seen, authenticate = [], authentication.authenticate

    def watched(*given: Any) -> Any:
        seen.append((has_app_context(), has_request_context()))
        return authenticate(*given)

    monkeypatch.setattr(authentication, "authenticate", watched)
    call = CALLS[name]
    headers = {"Authorization": f"Bearer {secret}"} | call.get("headers", {})
    answer = in_a_thread(lambda: Client(app).open(**call | {"headers": headers}))
    assert answer.status_code == {"nothing": 404, "proxy": 204}.get(name, 200), answer.text
    assert seen == [(False, False)]


@pytest.mark.on_sqlite
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_answer_has_its_length_and_head_has_no_body(
    app: Flask, organization: Organization, method: str
) -> None:
    _, secret = factories.api_key(organization)
    headers = {"X-API-Key": secret}
    answer = Client(app).open("/api/v1/admin/me", method=method, headers=headers)
    assert answer.status == "200 OK"
    assert int(answer.headers["Content-Length"]) > 100
    length = 0 if method == "HEAD" else int(answer.headers["Content-Length"])
    assert len(answer.data) == length


@pytest.mark.on_sqlite
def test_method_that_an_address_does_not_take_is_recorded_for_a_key(
    app: Flask, organization: Organization
) -> None:
    _, secret = factories.api_key(organization)
    for path in ("/mcp", "/auth/verify", "/api/v1/admin/me"):
        answer = Client(app).open(path, method="TRACE", headers={"X-API-Key": secret})
        assert answer.status_code in (404, 405), path
        assert answer.headers["RateLimit"].startswith('"key";r='), path
        assert Client(app).open(path, method="TRACE").status_code == 405, path
