"""Bad input: each gets a clear 4xx, changes nothing but the audit log, and never ends in a 5xx."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from convene_keys import create_app
from convene_keys.db.session import db
from convene_keys.keys import tokens
from convene_keys.models import AuditEvent, Organization, VendorApplication
from convene_keys.operations.table import OPERATIONS
from tests import factories
from tests.api.conftest import contents
from tests.conftest import Browser, new_browser
from tests.databases import environ

ROOT = "/api/v1/admin"
JSON = "application/json"
WRITES = [operation for operation in OPERATIONS if operation.method != "GET"]
NOTE = "update_vendor_application"


@pytest.fixture
def headers(organization: Organization) -> dict[str, str]:
    _, secret = factories.api_key(organization, creator=factories.member(organization))
    return {"Authorization": f"Bearer {secret}"}


def _count() -> int:
    db.session.rollback()
    return db.session.scalar(select(func.count()).select_from(AuditEvent)) or 0


# The body of a write, its content type, and the status that it gets.
BODIES: list[tuple[bytes, str, int]] = [
    (b"{", JSON, 400),
    (b'{"status": "approved"', JSON, 400),
    (b"\xff\xfe{}", JSON, 400),
    (b'{"status": "\xff"}', JSON, 400),
    (b"null", JSON, 400),
    (b"[]", JSON, 400),
    (b'[{"status": "approved"}]', JSON, 400),
    (b'"approved"', JSON, 400),
    (b"NaN", JSON, 400),
    (b'{"status": NaN}', JSON, 400),
    (b'{"status": Infinity}', JSON, 400),
    (b'{"status": -Infinity}', JSON, 400),
    (b'{"status": "approved", "status": "approved"}', JSON, 400),
    (b'{"x": {"a": 1, "a": 2}}', JSON, 400),
    (b"[" * 5_000, JSON, 400),
    (b'{"x":' * 3_000, JSON, 400),
    (b'{"x":' + b"[" * 400 + b"]" * 400 + b"}", JSON, 422),
    (b'{"x": ' + b"1" * 5_000 + b"}", JSON, 400),
    (b'{"x": "\\ud800"}', JSON, 400),
    (b'{"\\udfff": 1}', JSON, 400),
    (b'{"x": 1}', JSON, 422),
    (b'{"id": 2}', JSON, 422),
    (b'{"Status": "approved"}', JSON, 422),
    (b'{"__class__": {}, "constructor": 1}', JSON, 422),
    (b'{"x": 1e999}', JSON, 422),
    (b'{"x": 123456789012345678901234567890}', JSON, 422),
    (json.dumps({"x" * 10_000: 1}).encode(), JSON, 422),
    (b'{"x": "' + b"y" * 40_000 + b'"}', JSON, 413),
    (b" " * 32_769, JSON, 413),
    (b"{}" + b" " * 1_000_000, JSON, 413),
    (b'{"status": "approved"}', "", 415),
    (b'{"status": "approved"}', "text/plain", 415),
    (b'{"status": "approved"}', "text/json", 415),
    (b"<status>approved</status>", "application/xml", 415),
    (b"status=approved", "application/x-www-form-urlencoded", 415),
    (b"garbage", "application/x-www-form-urlencoded", 415),
    (b'--b\r\nContent-Disposition: form-data; name="status"\r\n\r\napproved\r\n--b--\r\n',
     "multipart/form-data; boundary=b", 415),
    (b'--b\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\nx\r\n--b--\r\n',
     "multipart/form-data; boundary=b", 415),
    (b"no boundary", "multipart/form-data", 415),
    (b"&" * 100_000, "application/x-www-form-urlencoded", 413),
]  # fmt: skip


@pytest.mark.parametrize("operation", WRITES, ids=lambda operation: operation.name)
def test_bad_body_is_refused_and_changes_nothing(
    client: Browser, headers: dict[str, str], operation: Any
) -> None:
    path = ROOT + operation.path.replace("{id}", "1")
    before = contents()
    for body, kind, status in BODIES:
        answer = client.open(
            path, method=operation.method, data=body, content_type=kind, headers=headers
        )
        assert answer.status_code == status, (body[:60], kind, answer.text)
        assert answer.mimetype == "application/problem+json"
        assert answer.json["detail"]
        assert len(answer.data) < 2_000
        if status == 422:
            assert answer.json["errors"]
    assert contents() == before
    codes = {event.detail["code"] for event in db.session.scalars(select(AuditEvent))}
    assert codes == {"malformed", "too_large", "unsupported_media_type", "invalid"}


def _fields(operation: str) -> dict[str, Any]:
    return {"status": "approved"} if operation == NOTE else {}


BAD_FIELDS: list[tuple[str, str, Any]] = [
    *((NOTE, "status", value) for value in
      (None, 1, True, [], {}, ["approved"], "", "APPROVED", "pending", "approved\0", "x" * 10_000)),
    *((NOTE, "note", value) for value in (1, [], {}, "x" * 2_001, "x" + " " * 2_000, "a\0b", "a\u202eb", "\u2066a")),
    *((name, "reason", value) for name in ("decline_booking", "cancel_booking") for value in
      (None, 1, False, ["x"], "x" * 301, "x" + " " * 300, "x" * 10_000, "a\0b", "a\nb", "a\u202eb", "a\u200eb")),
    *((operation.name, "reason", "x") for operation in WRITES
      if operation.name not in ("decline_booking", "cancel_booking")),
]  # fmt: skip


def test_bad_field_is_named_and_changes_nothing(client: Browser, headers: dict[str, str]) -> None:
    before, events = contents(), _count()
    by_name = {operation.name: operation for operation in WRITES}
    for name, field, value in BAD_FIELDS:
        operation = by_name[name]
        path = ROOT + operation.path.replace("{id}", "1")
        body = {**_fields(name), field: value}
        answer = client.open(path, method=operation.method, json=body, headers=headers)
        assert answer.status_code == 422, (name, field, value, answer.text)
        assert [error["field"] for error in answer.json["errors"]] == [field]
    assert contents() == before
    assert _count() == events + len(BAD_FIELDS), "each is recorded"
    missing = client.patch(f"{ROOT}/vendor_applications/1", json={}, headers=headers)
    assert [error["field"] for error in missing.json["errors"]] == ["status"]


def test_text_of_every_script_is_taken(
    client: Browser, headers: dict[str, str], organization: Organization
) -> None:
    for note in ("مرحبا بكم في السوق", "שלום עולם", "👩‍🌾 ok", "क्\u200dष", "two\nlines", ""):
        answer = client.patch(
            f"{ROOT}/vendor_applications/1",
            json={"status": "approved", "note": note},
            headers=headers,
        )
        assert answer.status_code == 200, answer.text
        assert answer.json["note"] == note
        db.session.rollback()
        assert db.session.get_one(VendorApplication, (organization.id, 1)).note == note


def test_longest_note_is_taken_as_any_json_writes_it(
    client: Browser, headers: dict[str, str]
) -> None:
    note = "\N{GRINNING FACE}" * 2_000
    for ascii_only in (True, False):
        body = json.dumps({"status": "approved", "note": note}, ensure_ascii=ascii_only)
        answer = client.patch(
            f"{ROOT}/vendor_applications/1", data=body, content_type=JSON, headers=headers
        )
        assert answer.status_code == 200, answer.text
        assert answer.json["note"] == note


BAD_QUERIES = (
    (
        "/bookings",
        "limit=0 limit=101 limit=-1 limit= limit=x limit=1.5 limit=9999999999999999999999",
    ),
    ("/bookings", "limit=%00 limit=1&limit=1 limit=1&limit=2 x=1 Limit=1 id=1 %FF=1"),
    ("/bookings", "status=eaten status= status=Pending status=paid status=%00"),
    ("/bookings", "vendor_id=0 vendor_id=-1 vendor_id=x vendor_id=2147483648 vendor_id=1e3"),
    ("/bookings", "market_date_id= date=2026-02-30 date=2026-13-01 date=0 date=1700000000 date="),
    ("/bookings", "date=24.11.2026 date=2026-11-24T00:00:00Z date=tomorrow date=%00"),
    ("/market_dates", "since=2025-02-29 since=0000-01-01 since=99999-01-01 until=x market_id=x"),
    (
        "/vendors",
        f"q= q=%20 q=%00 q=a%00b q=%E2%80%AE q=%0A q={'x' * 101} q=x{'%20' * 100} q={'x' * 10_000}",
    ),
    ("/vendor_applications", "status=cancelled market_id=%FF q=1&q=2"),
    ("/audit_events", "action=x action= since=x since=2026-02-30T00:00:00Z since=12 key=x key=0"),
    ("/audit_events", "since=0001-01-01T00:00:00%2B10:00 since=9999-12-31T23:59:59-10:00"),
    ("/markets", "cursor=1&cursor=1 q=x"),
    ("/me", "x=1 limit=1"),
    ("/dashboard", "organization_id=2"),
    ("/bookings/1", "id=2 x=1"),
)


def test_bad_query_is_named_and_refused(client: Browser, headers: dict[str, str]) -> None:
    for path, queries in BAD_QUERIES:
        for query in queries.split(" "):
            answer = client.get(f"{ROOT}{path}?{query}", headers=headers)
            assert answer.status_code == 422, (path, query[:60], answer.text)
            assert answer.json["errors"]
            assert len(answer.data) < 3_000  # it names all actions


def test_unknown_cursor_is_refused(client: Browser, headers: dict[str, str]) -> None:
    lists = ("/markets", "/market_dates", "/vendors", "/vendor_applications", "/bookings")
    cursors = ("", "0", "99", "x", "-1", "%00", "1%20", "%EF%BC%91", "9" * 18, "9" * 19, "1.0")
    for path in (*(f"{path}?cursor" for path in lists), "/audit_events?before"):
        for cursor in cursors:
            answer = client.get(f"{ROOT}{path}={cursor}", headers=headers)
            assert answer.status_code == 400, (path, cursor, answer.text)
            assert answer.json["code"] == "invalid_cursor"
        long = client.get(f"{ROOT}{path}={'9' * 5_000}", headers=headers)
        assert long.status_code == 422


def test_input_of_a_write_does_not_go_into_the_address(
    client: Browser, headers: dict[str, str]
) -> None:
    before = contents()
    for operation in WRITES:
        path = ROOT + operation.path.replace("{id}", "1")
        answer = client.open(f"{path}?status=approved", method=operation.method, headers=headers)
        assert answer.status_code == 400
    assert contents() == before


def test_odd_paths_are_not_found(client: Browser, headers: dict[str, str]) -> None:
    for path in ("/bookings/%00", "/%00", "/bookings/1%00", "/%E2%80%AE", "/%FF", "/" + "x" * 10_000,
                 "/bookings/1/approve/x", "/bookings/١x", "/..%2f..%2fetc", "/bookings/" + "9" * 4_000):  # fmt: skip
        answer = client.get(ROOT + path, headers=headers)
        assert answer.status_code == 404, (path[:60], answer.text)
        assert answer.json["code"] == "not_found"


def test_empty_body_is_an_empty_object(client: Browser, headers: dict[str, str]) -> None:
    for kind in (None, JSON, "text/plain", "application/x-www-form-urlencoded"):
        answer = client.post(f"{ROOT}/bookings/1/approve", content_type=kind, headers=headers)
        assert answer.status_code == 200, kind
    charset = client.post(
        f"{ROOT}/bookings/2/decline",
        data=b"\xef\xbb\xbf{}",
        content_type="application/json; charset=utf-8",
        headers=headers,
    )
    assert charset.status_code == 200


# No 5xx, whatever comes ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def caller(sqlite_template: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A call of a key of one database that all examples share; gives the answer."""
    path = tmp_path_factory.mktemp("fuzz") / "fuzz.db"
    path.write_bytes(sqlite_template.read_bytes())
    yield from _caller(f"sqlite:///{path}")


@pytest.fixture(scope="module")
def postgres_caller(postgres: Any) -> Iterator[Any]:
    name = postgres.create()
    yield from _caller(postgres.url(name))
    postgres.drop(name)


def _caller(url: str) -> Iterator[Any]:
    app = create_app(environ(url, KEY_RATE_LIMIT="1000000/minute"))
    app.config["PROPAGATE_EXCEPTIONS"] = False
    with app.app_context():
        organization = factories.organization()
        factories.market_data(organization)
        _, secret = factories.api_key(organization, creator=factories.member(organization))
        browser = new_browser(app)

        def call(method: str, path: str, **more: Any) -> Any:
            return browser.open(path, method=method, headers={"X-API-Key": secret}, **more)

        yield call
        db.session.remove()
        db.engine.dispose()


FUZZ = settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
methods = st.sampled_from(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
words = st.sampled_from(
    ["bookings", "vendor_applications", "vendors", "markets", "market_dates", "audit_events", "me"]
    + ["approve", "remind", "mark_paid", "billing", "1", "2", "0", "99999999999", "..", ""]
)
segments = st.one_of(words, words, st.text(max_size=8))
names = st.sampled_from(["limit", "cursor", "q", "status", "date", "since", "before", "key", "id"])
values = st.one_of(
    st.sampled_from(["1", "approved", "2026-11-24", "%", "\0", "99999999999999999999"]),
    st.text(max_size=12),
)
quoted = st.dictionaries(st.one_of(names, st.text(max_size=5)), values, max_size=4)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
objects = st.dictionaries(
    st.sampled_from(["status", "note", "reason", "id", "x"]),
    st.sampled_from(["approved", "declined", ""]) | anything,
    max_size=4,
)


def _is_clear(answer: Any) -> None:
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400 and answer.request.method != "HEAD":
        assert answer.json["status"] == answer.status_code


@pytest.mark.parametrize("which", ["caller", "postgres_caller"])
def test_no_path_or_query_ends_in_a_5xx(which: str, request: pytest.FixtureRequest) -> None:
    call = request.getfixturevalue(which)

    @FUZZ
    @given(methods, st.lists(segments, max_size=4), quoted)
    def check(method: str, path: list[str], query: dict[str, str]) -> None:
        path = [part.encode("utf-8", "replace").decode() for part in path]
        query = {
            name.encode("utf-8", "replace").decode(): value.encode("utf-8", "replace").decode()
            for name, value in query.items()
        }
        _is_clear(call(method, f"{ROOT}/" + "/".join(path), query_string=query))

    check()


@pytest.mark.parametrize("which", ["caller", "postgres_caller"])
def test_no_query_of_a_list_ends_in_a_5xx(which: str, request: pytest.FixtureRequest) -> None:
    call = request.getfixturevalue(which)

    @FUZZ
    @given(words, st.binary(max_size=40))
    def check(path: str, query: bytes) -> None:
        raw = {"QUERY_STRING": query.decode("latin-1")}
        _is_clear(call("GET", f"{ROOT}/{path}", environ_overrides=raw))

    check()


@pytest.mark.parametrize("which", ["caller", "postgres_caller"])
def test_no_body_ends_in_a_5xx(which: str, request: pytest.FixtureRequest) -> None:
    call = request.getfixturevalue(which)

    @FUZZ
    @given(
        st.sampled_from(WRITES),
        st.sampled_from([JSON, JSON, JSON, "text/plain", "application/x-www-form-urlencoded"]),
        st.one_of(
            objects.map(json.dumps).map(str.encode), objects.map(repr).map(_bytes), st.binary()
        ),
    )
    def check(operation: Any, kind: str, body: bytes) -> None:
        path = ROOT + operation.path.replace("{id}", "1")
        _is_clear(call(operation.method, path, data=body, content_type=kind))

    check()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def test_no_header_ends_in_a_5xx(client: Browser, app: Flask) -> None:
    for token in ("\xff", "fm_org_" + "é" * 38, "a" * 5_000, "\x7f", tokens.mint() + " x"):
        for header in (f"Bearer {token}", token, f"Basic {token}"):
            answer = client.get(
                f"{ROOT}/me", headers={"Authorization": header, "User-Agent": token}
            )
            assert answer.status_code == 401
