"""The REST API from the outside: shapes, statuses, and what every answer carries (contract §6)."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import select, text

from convene_keys import clock, create_app
from convene_keys.db.session import db
from convene_keys.keys import tokens
from convene_keys.models import ApiKey, AuditEvent, Base, Booking, Member, Organization
from convene_keys.operations.table import OPERATIONS
from tests import factories
from tests.api.conftest import contents
from tests.conftest import Browser, Clock, challenge, new_browser
from tests.databases import environ

ROOT = "/api/v1/admin"
NOON = "2026-11-24T12:00:00Z"


class Caller:
    """A client with a key. Gives the answer, after a look at what every answer must carry."""

    def __init__(self, client: Browser, secret: str | None) -> None:
        self._client = client
        self._headers = {"Authorization": f"Bearer {secret}"} if secret is not None else {}

    def __call__(self, method: str, path: str, status: int = 200, **more: Any) -> Any:
        headers = {**self._headers, **more.pop("headers", {})}
        answer = self._client.open(ROOT + path, method=method, headers=headers, **more)
        assert answer.status_code == status, answer.text
        assert re.fullmatch(r"[0-9a-v]{16}", answer.headers["X-Request-Id"])
        assert answer.headers["Cache-Control"] == "no-store"
        assert "Set-Cookie" not in answer.headers
        if status < 400:
            assert answer.mimetype == "application/json"
        elif method != "HEAD":
            is_problem(answer)
        return answer


def is_problem(answer: Any) -> None:
    """The answer is a whole problem document (RFC 9457)."""
    problem = answer.json
    assert answer.mimetype == "application/problem+json"
    members = ["type", "title", "status", "detail", "code", "request_id"]
    assert list(problem) == members + (["errors"] if answer.status_code == 422 else [])
    assert problem["status"] == answer.status_code
    assert problem["request_id"] == answer.headers["X-Request-Id"]
    assert problem["type"] == f"http://127.0.0.1:8000/docs/api#{problem['code']}"
    assert problem["title"]
    assert problem["detail"]
    for error in problem.get("errors", []):
        assert list(error) == ["field", "message"]
        assert error["message"]
    needs_key = answer.headers.get("WWW-Authenticate")
    assert needs_key == (challenge(problem["code"]) if answer.status_code == 401 else None)


@pytest.fixture
def call(client: Browser, key: tuple[ApiKey, str]) -> Caller:
    return Caller(client, key[1])


def _events() -> list[AuditEvent]:
    db.session.rollback()
    return list(db.session.scalars(select(AuditEvent).order_by(AuditEvent.id)))


BOOKING = {
    "id": 1,
    "status": "pending",
    "paid": False,
    "market_date_id": 1,
    "date": "2026-12-04",
    "market_id": 1,
    "market_name": "Old Harbour",
    "vendor_id": 1,
    "vendor_name": "Green Acre Farm",
    "stall": "",
    "amount": 4500,
    "currency": "EUR",
    "reason": "",
    "created_at": NOON,
    "decided_at": None,
}
APPLICATION = {
    "id": 1,
    "status": "pending",
    "market_id": 1,
    "market_name": "Old Harbour",
    "vendor_id": 1,
    "vendor_name": "Green Acre Farm",
    "message": "",
    "note": "",
    "submitted_at": NOON,
    "decided_at": None,
    "reminded_at": None,
}
DATE = {
    "id": 1,
    "market_id": 1,
    "market_name": "Old Harbour",
    "date": "2026-12-04",
    "opens": "08:00",
    "closes": "13:00",
    "stalls": 20,
    "status": "published",
}
MARKET = {"id": 1, "name": "Old Harbour", "location": "Quay 3", "description": ""}
VENDOR = {
    "id": 1,
    "name": "Green Acre Farm",
    "category": "Produce",
    "contact_name": "Noor",
    "email": "noor@example.org",
    "phone": "",
    "created_at": NOON,
}


def test_reads_answer_the_contracts_shapes(
    call: Caller, key: tuple[ApiKey, str], organization: Organization
) -> None:
    owner = {"id": organization.id, "name": "Riverside Market", "slug": organization.slug}
    assert call("GET", "/me").json == {
        "organization": owner,
        "key": {
            "id": key[0].id,
            "name": "Claude on laptop",
            "hint": tokens.hint(key[1]),
            "tool": "claude",
            "scope": "read_write",
            "created_at": NOON,
            "expires_at": None,
        },
    }
    assert call("GET", "/dashboard").json == {
        "organization": owner,
        "pending_applications": 2,
        "pending_bookings": 3,
        "pending_orders": 0,
        "upcoming_market_dates": 1,
        "next_market_date": "2026-12-04",
        "total_vendors": 1,
    }
    for path, one in (
        ("/markets", MARKET),
        ("/market_dates", DATE),
        ("/vendors", VENDOR),
        ("/vendor_applications", APPLICATION),
        ("/bookings", BOOKING),
    ):
        assert call("GET", f"{path}/1").json == one
        listed = call("GET", path).json
        assert list(listed) == ["data", "next_cursor"]
        assert listed["data"][-1] == one
        assert listed["next_cursor"] is None


def test_own_events_have_the_contracts_columns(
    call: Caller, key: tuple[ApiKey, str], organization: Organization
) -> None:
    first = call("GET", "/bookings/2", headers={"User-Agent": "Claude/1"})
    (event,) = call("GET", "/audit_events").json["data"]
    assert event == {
        "id": _events()[0].id,
        "at": NOON,
        "organization_id": organization.id,
        "actor": "key",
        "key_id": key[0].id,
        "key_name": "Claude on laptop",
        "member_id": None,
        "member_name": None,
        "action": "booking.viewed",
        "target_type": "booking",
        "target_id": "2",
        "target_name": "booking 2",
        "outcome": "ok",
        "ip": "127.0.0.1",
        "user_agent": "Claude/1",
        "request_id": first.headers["X-Request-Id"],
        "detail": {},
    }


def test_filters_narrow(call: Caller) -> None:
    call("POST", "/bookings/1/approve")
    for path, expected in (
        ("/bookings?status=approved", [1]),
        ("/bookings?status=pending&vendor_id=1", [3, 2]),
        ("/bookings?market_date_id=1&limit=1", [3]),
        ("/bookings?date=2026-12-04", [3, 2, 1]),
        ("/bookings?date=2026-12-05", []),
        ("/market_dates?market_id=1&status=published&since=2026-12-04&until=2026-12-04", [1]),
        ("/market_dates?until=2026-12-03", []),
        ("/vendors?q=ACRE", [1]),
        ("/vendors?q=%25", []),
        ("/vendor_applications?q=green&market_id=1&status=pending", [2, 1]),
        ("/vendor_applications?market_id=2", []),
    ):
        assert [row["id"] for row in call("GET", path).json["data"]] == expected, path
    (event,) = call("GET", "/audit_events?action=booking.approved").json["data"]
    assert event["target_id"] == "1"
    assert call("GET", "/audit_events?since=2026-11-24T12:00:00.001Z").json["data"] == []


def test_lists_page_through_their_cursors(call: Caller) -> None:
    for path, name, expected in (
        ("/bookings?limit=2", "cursor", [3, 2, 1]),
        ("/vendor_applications?limit=1", "cursor", [2, 1]),
    ):
        found, cursor = [], ""
        while cursor is not None:
            page = call("GET", path + (f"&{name}={cursor}" if cursor else "")).json
            found += [row["id"] for row in page["data"]]
            assert len(found) <= len(expected), "a page came twice"
            cursor = page["next_cursor"]
        assert found == expected
    first = call("GET", "/audit_events?limit=2").json
    second = call("GET", f"/audit_events?limit=100&before={first['next_cursor']}").json
    ids = [event["id"] for event in first["data"] + second["data"]]
    assert ids == sorted(ids, reverse=True)
    assert len(set(ids)) == 4
    assert second["next_cursor"] is None


def test_bookings_are_decided(call: Caller, fake_clock: Clock) -> None:
    fake_clock.advance(hours=1)
    later = "2026-11-24T13:00:00Z"
    approved = BOOKING | {"status": "approved", "decided_at": later}
    assert call("POST", "/bookings/1/approve").json == approved
    fake_clock.advance(hours=1)
    assert call("POST", "/bookings/1/approve").json == approved, "again changes nothing"
    assert call("POST", "/bookings/1/mark_paid").json == approved | {"paid": True}
    assert call("POST", "/bookings/1/mark_paid").json == approved | {"paid": True}
    declined = call("POST", "/bookings/2/decline", json={"reason": "  full  "}).json
    assert (declined["status"], declined["reason"]) == ("declined", "full")
    cancelled = call("POST", "/bookings/3/cancel", json={}).json
    assert (cancelled["status"], cancelled["reason"]) == ("cancelled", "")
    for path in ("/3/approve", "/3/decline", "/3/mark_paid", "/2/cancel", "/2/mark_paid"):
        problem = call("POST", f"/bookings{path}", 409).json
        assert problem["code"] == "conflict"
    assert [event.detail.get("changed") for event in _events()[:3]] == [True, False, True]
    assert {event.outcome for event in _events()[-5:]} == {"failed"}


def test_applications_are_decided_and_reminded(call: Caller, fake_clock: Clock) -> None:
    path = "/vendor_applications/1"
    given = {"status": "waitlisted", "note": "ask\nagain שלום"}
    changed = call("PATCH", path, json=given).json
    assert changed == APPLICATION | given | {"decided_at": NOON}
    fake_clock.advance(hours=1)
    assert call("PATCH", path, json={"status": "waitlisted"}).json == changed
    reminded = call("POST", f"{path}/remind").json
    assert reminded == changed | {"reminded_at": "2026-11-24T13:00:00Z"}
    assert call("POST", f"{path}/remind", 409).json["code"] == "reminded_recently"
    call("PATCH", path, json={"status": "declined", "note": None})
    assert call("GET", path).json["note"] == given["note"], "null leaves the note"
    fake_clock.advance(days=2)
    assert call("POST", f"{path}/remind", 409).json["code"] == "conflict"


def test_head_answers_as_get_without_a_body(call: Caller) -> None:
    for path in ("/me", "/bookings", "/bookings/1"):
        answer = call("HEAD", path)
        assert answer.data == b""
        assert int(answer.headers["Content-Length"]) > 10
    call("HEAD", "/bookings/99", 404)
    assert len(_events()) == 4


# Keys ----------------------------------------------------------------------------------------


def test_key_is_taken_from_either_header(client: Browser, key: tuple[ApiKey, str]) -> None:
    secret = key[1]
    for headers in (
        {"Authorization": f"Bearer {secret}"},
        {"Authorization": f"bearer  {secret} "},
        {"X-API-Key": secret},
        {"Authorization": "Basic Og==", "X-API-Key": secret},
    ):
        assert client.get(f"{ROOT}/me", headers=headers).status_code == 200, headers


def test_request_without_a_key_is_asked_for_one(client: Browser, app: Flask) -> None:
    for headers in (
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"X-API-Key": ""},
    ):
        for method, path in (("GET", "/me"), ("POST", "/bookings/1/approve"), ("GET", "/billing")):
            answer = Caller(client, None)(method, path, 401, headers=headers)
            assert answer.json["code"] == "key_missing"
    assert Caller(client, None)("OPTIONS", "/me", 401).json["code"] == "key_missing"
    assert _events() == []


def test_unknown_key_is_refused(client: Browser, organization: Organization) -> None:
    for secret in ("x", tokens.mint(), "fm_org_" + "0" * 38, "é", "a" * 10_000):
        for method, path in (("GET", "/me"), ("GET", "/billing"), ("DELETE", "/nothing")):
            assert Caller(client, secret)(method, path, 401).json["code"] == "key_unknown"
    assert _events() == []


def test_dead_keys_are_refused_and_recorded(
    client: Browser, organization: Organization, maya: Member, fake_clock: Clock
) -> None:
    now = clock.now()
    _, revoked = factories.api_key(organization, "R", creator=maya, revoked_at=now, released_at=now)
    _, expired = factories.api_key(organization, "E", creator=maya, expires_at=now)
    for method, path in (("GET", "/me"), ("POST", "/bookings/1/approve"), ("GET", "/billing")):
        assert Caller(client, revoked)(method, path, 401).json["code"] == "key_revoked"
        assert Caller(client, expired)(method, path, 401).json["code"] == "key_expired"
    seen = [(event.action, event.key_name, event.detail.get("code")) for event in _events()]
    assert seen == [
        ("key.refused", "R", "key_revoked"),
        ("key.expired", None, None),
        ("key.refused", "E", "key_expired"),
    ]
    assert db.session.get_one(Booking, (organization.id, 1)).status == "pending"


def test_member_who_is_signed_in_still_needs_a_key(client: Browser, maya: Member) -> None:
    client.sign_in(maya)
    answer = client.get(f"{ROOT}/me")
    assert answer.status_code == 401
    assert answer.json["code"] == "key_missing"


# Walls ---------------------------------------------------------------------------------------


def test_read_key_may_not_change(client: Browser, organization: Organization, maya: Member) -> None:
    caller = Caller(client, factories.api_key(organization, "R", creator=maya, scope="read")[1])
    writes = [operation for operation in OPERATIONS if operation.method != "GET"]
    for operation in writes:
        path = operation.path.replace("{id}", "1")
        problem = caller(operation.method, path, 403, json={"status": "approved"}).json
        assert problem["code"] == "scope_required"
    assert [(event.outcome, event.target_id) for event in _events()] == [("denied", "1")] * len(
        writes
    )
    caller("GET", "/bookings")


OFF_LIMITS = ("account", "password", "billing", "stripe", "members", "api_keys")


@pytest.mark.parametrize("name", OFF_LIMITS)
def test_off_limits_to_every_key_by_every_method(call: Caller, name: str) -> None:
    tried = 0
    for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE", "X", "OPTIONS"):
        for path in (f"/{name}", f"/{name}/", f"/{name}/7", f"/{name}/7/deep/er?x=1"):
            answer = call(method, path, 403)
            assert method == "HEAD" or answer.json["code"] == "off_limits"
            tried += 1
    events = _events()
    assert len(events) == tried
    assert {(event.action, event.outcome, event.key_name) for event in events} == {
        ("request.off_limits", "denied", "Claude on laptop")
    }
    assert events[-1].target_name == f"OPTIONS /{name}/7/deep/er"


def test_creator_who_is_inactive_stops_the_key(call: Caller, maya: Member) -> None:
    now = clock.now()
    for role, disabled_at in (("admin", now), ("viewer", None), ("viewer", now)):
        maya.role, maya.disabled_at = role, disabled_at
        db.session.commit()
        for method, path in (("GET", "/me"), ("POST", "/bookings/1/approve"), ("GET", "/nothing")):
            assert call(method, path, 403).json["code"] == "creator_inactive"
    maya.role, maya.disabled_at = "manager", None
    db.session.commit()
    call("GET", "/me")
    assert [event.outcome for event in _events()] == ["denied"] * 9 + ["ok"]


def test_draft_organization_stops_its_keys(call: Caller, organization: Organization) -> None:
    organization.status = "draft"
    db.session.commit()
    for method, path in (("GET", "/me"), ("POST", "/bookings/1/approve"), ("GET", "/nothing")):
        assert call(method, path, 403).json["code"] == "organization_draft"
    assert {event.outcome for event in _events()} == {"denied"}


def test_another_organizations_rows_are_not_there(
    client: Browser, app: Flask, fake_clock: Clock
) -> None:
    """Their numbers answer exactly like numbers that do not exist."""
    theirs, mine = factories.organization("Elsewhere"), factories.organization()
    factories.market_data(theirs)
    caller = Caller(client, factories.api_key(mine, creator=factories.member(mine))[1])
    for operation in OPERATIONS:
        if "{id}" not in operation.path:
            continue
        answers = []
        for number in ("1", "999", "0", str(2**31), "9" * 30):
            path = operation.path.replace("{id}", number)
            body = {"status": "approved"} if operation.method == "PATCH" else {}
            json = {} if operation.method == "GET" else {"json": body}
            problem = caller(operation.method, path, 404, **json).json
            answers.append((problem["code"], problem["title"]))
        assert set(answers) == {("not_found", "Not found")}
    for path in ("/bookings", "/vendors", "/markets", "/market_dates", "/vendor_applications"):
        assert caller("GET", path).json == {"data": [], "next_cursor": None}
        assert caller("GET", f"{path}?cursor=1", 400).json["code"] == "invalid_cursor"
    assert caller("GET", "/dashboard").json["pending_bookings"] == 0
    assert {booking.status for booking in db.session.scalars(select(Booking))} == {"pending"}


def test_methods_that_an_address_does_not_have(call: Caller) -> None:
    for method, path, allowed in (
        ("POST", "/me", "GET"),
        ("DELETE", "/bookings/1", "GET"),
        ("OPTIONS", "/bookings", "GET"),
        ("PUT", "/vendor_applications/1", "GET, PATCH"),
        ("GET", "/bookings/1/approve", "POST"),
        ("HEAD", "/bookings/1/approve", "POST"),
        ("TRACE", "/me", "GET"),
    ):
        assert call(method, path, 405).headers["Allow"] == allowed
    assert {event.action for event in _events()} == {"request.unknown"}


def test_addresses_that_are_not_there(call: Caller) -> None:
    for path in ("/nothing", "/bookings/x", "/bookings/-1", "/bookings/1/eat", "/bookings/1/", "/"):
        assert call("GET", path, 404).json["code"] == "not_found"
    assert len(_events()) == 6


# Pages ---------------------------------------------------------------------------------------

PAGES = (
    "/admin/api_keys",
    "/admin/api_keys/new",
    "/admin/api_keys/1/revoke",
    "/admin/audit_log.csv",
    "/admin/settings/billing",
    "/admin/nothing",
    "/admin",
    "/login",
    "/setup",
)


def test_key_opens_no_page(client: Browser, key: tuple[ApiKey, str], maya: Member) -> None:
    client.sign_in(maya)  # even in a browser that is signed in
    before = contents()
    for path in PAGES:
        for method in ("GET", "POST"):
            for headers in ({"X-API-Key": key[1]}, {"Authorization": f"Bearer {key[1]}"}):
                answer = client.open(path, method=method, headers=headers)
                assert answer.status_code == 403, (method, path)
    events = _events()
    assert len(events) == len(PAGES) * 4
    assert {(event.action, event.outcome, event.key_name) for event in events} == {
        ("request.off_limits", "denied", "Claude on laptop")
    }
    assert contents() == before


def test_revoked_key_is_refused_on_pages_too(
    client: Browser, organization: Organization, fake_clock: Clock
) -> None:
    now = clock.now()
    _, secret = factories.api_key(organization, revoked_at=now, released_at=now)
    assert client.get("/admin/api_keys", headers={"X-API-Key": secret}).status_code == 401
    assert [event.action for event in _events()] == ["key.refused"]


def test_key_is_not_minded_where_everyone_may_look(
    client: Browser, key: tuple[ApiKey, str]
) -> None:
    headers = {"X-API-Key": key[1]}
    assert client.get("/healthz", headers=headers).text == "ok"
    assert client.get("/readyz", headers=headers).text == "ok"
    assert client.get("/elsewhere", headers=headers).status_code == 404


def test_key_outside_its_header_is_refused_unread(
    client: Browser,
    key: tuple[ApiKey, str],
    maya: Member,
    caplog: pytest.LogCaptureFixture,
) -> None:
    secret = key[1]
    encoded = secret.replace(secret[8], f"%{ord(secret[8]):02X}").replace("_", "%5F")
    form = {"headers": {"Content-Type": "application/x-www-form-urlencoded"}, "method": "POST"}
    auth = {"headers": {"X-API-Key": secret}}
    client.sign_in(maya)
    caplog.set_level(0)
    for path, more in (
        (f"{ROOT}/me?api_key={secret}", {}),
        (f"{ROOT}/me?api_key={secret}", auth),
        (f"{ROOT}/me?x=1&{secret}=1", auth),
        (f"{ROOT}/me?api_key={encoded}", auth),
        (f"{ROOT}/{secret}", auth),
        (f"/admin/api_keys?q={secret}", {}),
        (f"/login?next=/{secret}", {}),
        (f"/nothing?{secret}", {}),
        (f"/healthz?key={secret}", {}),
        (f"{ROOT}/bookings/1/approve", {**form, "data": f"api_key={secret}"}),
        (f"{ROOT}/bookings/1/approve", {**form, "data": f"a=1&a={secret}"}),
        (f"{ROOT}/bookings/1/approve", {**form, "data": f"{secret}="}),
        (f"{ROOT}/bookings/1/approve", {**form, "data": f"a={encoded}"}),
        ("/admin/api_keys", {"method": "POST", "data": {"name": f"my {secret}"}}),
        ("/login", {"method": "POST", "data": {"email": secret, "password": secret}}),
    ):
        answer = client.open(path, **more)
        assert answer.status_code == 400, path
        assert secret not in answer.text
        if path.startswith("/api/"):
            is_problem(answer)
            assert answer.json["code"] == "key_outside_header"
    multipart = client.post(
        "/admin/api_keys",
        data={"name": secret, "csrf_token": "x"},
        content_type="multipart/form-data",
    )
    assert multipart.status_code == 400
    logged = caplog.text + repr([record.__dict__ for record in caplog.records])
    assert secret not in logged
    db.session.rollback()
    for table in Base.metadata.sorted_tables:
        rows = db.session.execute(text(f"SELECT * FROM {table.name}")).all()  # noqa: S608
        assert secret not in repr(rows)
    assert _events() == []


def test_key_inside_a_user_agent_is_kept_as_its_hint(
    call: Caller, key: tuple[ApiKey, str], organization: Organization
) -> None:
    call("GET", "/me", headers={"User-Agent": f"curl {key[1]}"})
    row = db.session.get_one(ApiKey, key[0].id)
    db.session.refresh(row)
    assert row.last_used_user_agent == f"curl {tokens.hint(key[1])}…"
    assert _events()[0].user_agent == f"curl {tokens.hint(key[1])}…"
    assert row.last_used_at == datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("address", "kept"),
    [
        ("198.51.100.7", "198.51.100.7"),
        ("::ffff:198.51.100.7", "198.51.100.7"),
        ("2001:DB8::1", "2001:db8::1"),
        ("fe80::1%" + "x" * 100, "fe80::1"),
        ("not an address", None),
        ("", None),
    ],
)
def test_address_is_kept_in_one_form(call: Caller, address: str, kept: str | None) -> None:
    call("GET", "/me", environ_base={"REMOTE_ADDR": address})
    assert _events()[0].ip == kept


@pytest.mark.parametrize(("hops", "kept"), [("0", "127.0.0.1"), ("1", "203.0.113.9")])
def test_forwarded_address_counts_as_far_as_proxies_are_trusted(
    database_url: str, hops: str, kept: str
) -> None:
    app = create_app(environ(database_url, TRUSTED_PROXIES=hops))
    with app.app_context():
        _, secret = factories.api_key(factories.organization())
        headers = {"X-API-Key": secret, "X-Forwarded-For": "198.51.100.7, 203.0.113.9"}
        assert new_browser(app).get(f"{ROOT}/me", headers=headers).status_code == 200
        assert _events()[0].ip == kept
        db.session.remove()
        db.engine.dispose()


def test_times_follow_rfc_3339_whatever_the_time_zone(
    call: Caller, organization: Organization, fake_clock: Clock
) -> None:
    organization.timezone = "Asia/Tokyo"
    db.session.commit()
    fake_clock.advance(milliseconds=7)
    assert call("POST", "/bookings/1/approve").json["decided_at"] == "2026-11-24T12:00:00.007000Z"
    fake_clock.advance(hours=4)  # the 25th in Tokyo
    assert call("GET", "/dashboard").json["upcoming_market_dates"] == 1
    organization.timezone = "UTC"
    fake_clock.moment += timedelta(days=11)
    db.session.commit()
    assert call("GET", "/dashboard").json["next_market_date"] is None
