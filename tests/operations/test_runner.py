"""The one runner: its walls and their order, and what it records."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_core import to_json
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from convene_keys import clock
from convene_keys.audit import log as audit_log
from convene_keys.audit.log import Actor, Origin
from convene_keys.db.session import db
from convene_keys.errors import Conflict, MethodNotAllowed, NotFound, Problem, Unauthenticated
from convene_keys.keys import tokens
from convene_keys.markets import decisions
from convene_keys.models import ApiKey, AuditEvent, Base, Booking, Member, Organization, Scope
from convene_keys.operations import runner, schemas
from convene_keys.operations.schemas import Json
from convene_keys.operations.table import BY_NAME, OPERATIONS, Call, Operation
from tests import factories
from tests.conftest import Clock
from tests.factories import caller

HERE = Origin("192.0.2.1", "curl/8", "r1")
APPROVE = BY_NAME["approve_booking"]


@pytest.fixture
def maya(organization: Organization) -> Member:
    return factories.member(organization, "manager")


@pytest.fixture
def secret(organization: Organization, maya: Member) -> str:
    return factories.api_key(organization, creator=maya)[1]


def run(operation: Operation, secret: str, **arguments: Any) -> Json:
    """The answer, which is as its model would write it."""
    answer = runner.run(
        operation,
        caller(secret, HERE),
        lambda: operation.from_json(arguments),
        arguments.get("id"),
    )
    assert to_json(answer).decode() == operation.output.model_validate(answer).model_dump_json()
    return answer


def _refused(
    secret: str, operation: Operation = APPROVE, read: Callable[[], BaseModel] | None = None
) -> Problem:
    """The problem with which a call of booking 1 ends; without `read`, reading is a failure."""

    def unread() -> BaseModel:
        raise AssertionError("input is read behind the walls only")

    with pytest.raises(Problem) as info:
        runner.run(operation, caller(secret, HERE), read or unread, 1)
    return info.value


def recorded() -> list[AuditEvent]:
    db.session.rollback()
    return list(db.session.scalars(select(AuditEvent).order_by(AuditEvent.id)))


def _last() -> AuditEvent:
    return recorded()[-1]


def arguments_for(operation: Operation) -> dict[str, Any]:
    """What an operation needs, for the rows of `factories.market_data`."""
    arguments: dict[str, Any] = {"id": 1} if "id" in operation.input.model_fields else {}
    if operation.name == "update_vendor_application":
        arguments["status"] = "approved"
    return arguments


def contents() -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table, but for the audit log and what tells how keys were used."""
    db.session.rollback()
    contents = {}
    for table in Base.metadata.sorted_tables:
        if table.name not in ("audit_event", "key_use"):
            columns = [c for c in table.columns if not c.name.startswith("last_")]
            rows = db.session.execute(select(*columns).order_by(*table.primary_key.columns))
            contents[table.name] = [tuple(row) for row in rows]
    db.session.rollback()
    return contents


# The walls -----------------------------------------------------------------------------------


def test_walls_stand_in_order(organization: Organization, maya: Member) -> None:
    """Key, creator, organization, scope, input: each is taken down to meet the next."""
    now = clock.now()
    key, secret = factories.api_key(
        organization, creator=maya, scope="read", revoked_at=now, released_at=now
    )
    maya.disabled_at = now
    organization.status = "draft"
    db.session.commit()
    met = []

    def meet(read: Callable[[], BaseModel] | None = None) -> None:
        problem = _refused(secret, read=read)
        met.append((problem.status, problem.code, _last().outcome, _last().action))

    meet()
    key.revoked_at = key.released_at = None
    db.session.commit()
    meet()
    maya.disabled_at = None
    db.session.commit()
    meet()
    organization.status = "live"
    db.session.commit()
    meet()
    key.scope = Scope.READ_WRITE
    db.session.commit()
    meet(lambda: APPROVE.from_json({"id": "one"}))
    meet(lambda: APPROVE.from_json({"id": 99}))
    assert met == [
        (401, "key_revoked", "denied", "key.refused"),
        (403, "creator_inactive", "denied", "booking.approved"),
        (403, "organization_draft", "denied", "booking.approved"),
        (403, "scope_required", "denied", "booking.approved"),
        (422, "invalid", "failed", "booking.approved"),
        (404, "not_found", "failed", "booking.approved"),
    ]
    assert db.session.get_one(Booking, (organization.id, 1)).status == "pending"


def test_unknown_keys_are_refused_without_an_event(organization: Organization) -> None:
    missing = _refused("")
    assert (missing.status, missing.code) == (401, "key_missing")
    for token in ("x", "fm_org_" + "0" * 38, tokens.mint(), "\ud800", "é" * 10_000):
        problem = _refused(token)
        assert (problem.status, problem.code) == (401, "key_unknown")
    assert recorded() == []


def test_garbage_is_refused_without_the_database(
    organization: Organization, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> None:
        raise AssertionError("the database was asked")

    monkeypatch.setattr(runner, "transaction", away)
    assert _refused("fm_org_" + "0" * 38).code == "key_unknown"


def test_expired_key_is_refused(organization: Organization, maya: Member) -> None:
    _, secret = factories.api_key(organization, creator=maya, expires_at=clock.now())
    assert _refused(secret).code == "key_expired"
    assert [event.action for event in recorded()] == ["key.expired", "key.refused"]


def test_creator_must_still_be_admin_or_manager(
    organization: Organization, maya: Member, secret: str
) -> None:
    for role, disabled_at, code in (
        ("viewer", None, "creator_inactive"),
        ("manager", clock.now(), "creator_inactive"),
        ("admin", clock.now(), "creator_inactive"),
        ("viewer", clock.now(), "creator_inactive"),
        ("admin", None, None),
        ("manager", None, None),
    ):
        maya.role, maya.disabled_at = role, disabled_at
        db.session.commit()
        if code is None:
            assert run(BY_NAME["whoami"], secret)
        else:
            assert _refused(secret, BY_NAME["whoami"]).code == code


def test_key_made_on_the_command_line_has_no_creator_to_lose(organization: Organization) -> None:
    assert run(BY_NAME["whoami"], factories.api_key(organization)[1])


def test_read_key_reads_everything_and_changes_nothing(
    organization: Organization, maya: Member
) -> None:
    _, secret = factories.api_key(organization, "Reader", creator=maya, scope="read")
    before = contents()
    for operation in OPERATIONS:
        arguments = arguments_for(operation)
        if operation.scope is Scope.READ:
            assert (
                run(operation, secret, **arguments).keys() == operation.output.model_fields.keys()
            )
        else:
            assert _refused(secret, operation).code == "scope_required"
    assert contents() == before


# What is recorded ----------------------------------------------------------------------------


def test_call_is_recorded_under_the_keys_name(organization: Organization, secret: str) -> None:
    run(APPROVE, secret, id=2)
    event = _last()
    assert (event.action, event.outcome, event.key_name, event.actor) == (
        "booking.approved",
        "ok",
        "Claude on laptop",
        "key",
    )
    assert (event.target_type, event.target_id, event.target_name) == ("booking", "2", "booking 2")
    assert (event.ip, event.user_agent, event.request_id) == ("192.0.2.1", "curl/8", "r1")
    replaced = {"status": "pending", "decided_at": None}
    assert event.detail == {"before": "pending", "changed": True, "replaced": replaced}


def test_every_operation_is_recorded_once_as_what_it_is(
    organization: Organization, secret: str
) -> None:
    for operation in OPERATIONS:
        before = len(recorded())
        try:
            run(operation, secret, **arguments_for(operation))
        except Conflict:
            assert operation.scope is Scope.READ_WRITE
        events = recorded()[before:]
        assert [event.action for event in events] == [operation.action]


def test_lists_record_what_was_asked_and_how_much_was_given(
    organization: Organization, secret: str
) -> None:
    run(BY_NAME["list_bookings"], secret, status="pending", limit=2, date="2026-12-04")
    assert _last().detail == {"status": "pending", "limit": 2, "date": "2026-12-04", "count": 2}
    run(BY_NAME["list_bookings"], secret, limit=2)
    assert _last().detail == {"limit": 2, "count": 2}


def test_use_is_kept_whatever_the_outcome(
    organization: Organization, maya: Member, fake_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, secret = factories.api_key(organization, creator=maya)
    for act in (
        lambda: run(BY_NAME["whoami"], secret),
        lambda: _refused(secret, read=lambda: schemas.One(id=99)),
        lambda: runner.record_refusal("GET", "/billing", caller(secret, HERE)),
        lambda: _crash(secret, monkeypatch),
    ):
        fake_clock.advance(minutes=1)
        act()
        db.session.rollback()
        assert db.session.get_one(ApiKey, key.id).last_used_at == clock.now()
    assert key.last_used_ip == "192.0.2.1"


def test_refused_key_is_not_used(organization: Organization) -> None:
    now = clock.now()
    key, secret = factories.api_key(organization, revoked_at=now, released_at=now)
    _refused(secret)
    db.session.refresh(key)
    assert (key.last_used_at, key.refused_count) == (None, 1)


def test_refused_change_is_undone_but_recorded(
    organization: Organization, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def handler(call: Call, _: schemas.One) -> BaseModel:
        call.session.get_one(Booking, (call.organization.id, 1)).status = "approved"
        call.session.flush()
        raise Conflict("Too late.", code="too_late")

    broken = Operation(**{**vars(APPROVE), "handler": handler})
    assert _refused(secret, broken, lambda: schemas.One(id=1)).code == "too_late"
    event = _last()
    assert (event.outcome, event.target_name) == ("failed", "booking 1")
    assert event.detail == {"code": "too_late"}
    assert db.session.get_one(Booking, (organization.id, 1)).status == "pending"


def _crash(secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def handler(call: Call, _: schemas.One) -> BaseModel:
        call.session.get_one(Booking, (call.organization.id, 1)).status = "approved"
        raise ZeroDivisionError(f"broken for {secret}")

    broken = Operation(**{**vars(APPROVE), "handler": handler})
    with pytest.raises(ZeroDivisionError):
        runner.run(broken, caller(secret, HERE), lambda: schemas.One(id=1), 1)


def test_unexpected_exception_is_recorded_and_changes_nothing(
    organization: Organization, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _crash(secret, monkeypatch)
    event = _last()
    assert (event.action, event.outcome) == ("booking.approved", "failed")
    assert event.detail == {"code": "internal"}
    assert db.session.get_one(Booking, (organization.id, 1)).status == "pending"


def test_unexpected_exception_is_answered_500_without_detail(
    organization: Organization,
    secret: str,
    client: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("the inside of the machine")

    monkeypatch.setattr(decisions, "decide_booking", broken)
    answer = client.post("/api/v1/admin/bookings/1/approve", headers={"X-API-Key": secret})
    assert answer.status_code == 500
    assert answer.json["code"] == "internal"
    assert answer.mimetype == "application/problem+json"
    assert "machine" not in answer.text
    assert "ZeroDivisionError" not in answer.text
    assert (_last().outcome, _last().detail) == ("failed", {"code": "internal"})
    assert "the inside of the machine" in caplog.text
    assert secret not in caplog.text


def test_crash_that_cannot_be_recorded_is_logged_and_raised(
    organization: Organization,
    secret: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def away(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(audit_log, "event", away)
    with caplog.at_level(logging.ERROR), pytest.raises(OSError, match="the disk is full"):
        run(APPROVE, secret, id=1)
    assert "a failed call could not be recorded" in caplog.text
    assert db.session.get_one(Booking, (organization.id, 1)).status == "pending"


FULL = {
    "sqlite": [
        """CREATE TRIGGER full_log BEFORE INSERT ON audit_event
        BEGIN SELECT RAISE(ABORT, 'the log is full'); END"""
    ],
    "postgresql": [
        """CREATE FUNCTION full_log() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'the log is full'; END $$""",
        """CREATE TRIGGER full_log BEFORE INSERT ON audit_event
        FOR EACH ROW EXECUTE FUNCTION full_log()""",
    ],
}


def test_no_event_no_answer_and_no_change(organization: Organization, secret: str) -> None:
    for statement in FULL[db.engine.dialect.name]:
        db.session.execute(text(statement))
    db.session.commit()
    for operation in (APPROVE, BY_NAME["get_booking"]):
        with pytest.raises(DBAPIError, match="the log is full"):
            run(operation, secret, id=1)
    assert db.session.get_one(Booking, (organization.id, 1)).status == "pending"


# Refusals of what is no operation ------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "action", "status", "code"),
    [
        ("/billing", "request.off_limits", 403, "off_limits"),
        ("/billing/plan/1", "request.off_limits", 403, "off_limits"),
        ("/admin/api_keys", "request.off_limits", 403, "off_limits"),
        ("/bookings", "request.unknown", 405, "method_not_allowed"),
        ("/bookings/7/approve", "request.unknown", 405, "method_not_allowed"),
        ("/bookings/x/approve", "request.unknown", 404, "not_found"),
        ("/nothing", "request.unknown", 404, "not_found"),
        ("/", "request.unknown", 404, "not_found"),
        ("/a\0b\u202e", "request.unknown", 404, "not_found"),
    ],
)
def test_refuse_records_what_was_reached_for(
    organization: Organization, secret: str, path: str, action: str, status: int, code: str
) -> None:
    problem = runner.record_refusal("DELETE", path, caller(secret, HERE))
    assert (problem.status, problem.code) == (status, code)
    if isinstance(problem, MethodNotAllowed):
        assert problem.headers == {"Allow": "GET" if path == "/bookings" else "POST"}
    event = _last()
    assert (event.action, event.outcome) == (action, "denied" if status == 403 else "failed")
    assert event.target_name == f"DELETE {path}".replace("\0", "�").replace("\u202e", "�")


def test_off_limits_is_said_to_every_working_key(organization: Organization, maya: Member) -> None:
    _, secret = factories.api_key(organization, creator=maya, scope="read")
    maya.disabled_at, organization.status = clock.now(), "draft"
    db.session.commit()
    assert runner.record_refusal("GET", "/stripe", caller(secret, HERE)).code == "off_limits"
    assert runner.record_refusal("GET", "/me/x", caller(secret, HERE)).code == "creator_inactive"
    problem = runner.record_refusal("GET", "/stripe", caller("nonsense", HERE))
    assert isinstance(problem, Unauthenticated)


# Members use the same operations -------------------------------------------------------------


def test_member_runs_an_operation_under_their_name(
    organization: Organization, maya: Member
) -> None:
    actor = Actor.of_member(maya, HERE)
    runner.run_for_member(APPROVE, actor, lambda: schemas.One(id=1))
    event = _last()
    assert (event.action, event.member_name, event.key_id) == ("booking.approved", "Maya", None)
    assert event.target_name == "booking 1"
    with pytest.raises(NotFound):
        runner.run_for_member(APPROVE, actor, lambda: schemas.One(id=99))
    assert (_last().outcome, _last().target_name) == ("failed", "booking 99")


def test_member_works_in_a_draft_organization(organization: Organization, maya: Member) -> None:
    organization.status = "draft"
    db.session.commit()
    runner.run_for_member(APPROVE, Actor.of_member(maya, HERE), lambda: schemas.One(id=1))
    assert (_last().action, _last().outcome) == ("booking.approved", "ok")
