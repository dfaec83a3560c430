"""The audit log: an event is recorded beside the change, or neither is there."""

import json

import pytest
from sqlalchemy import func, select

from convene_keys.audit import export
from convene_keys.audit import log as audit_log
from convene_keys.audit.actions import Action
from convene_keys.audit.log import Actor, Origin, Target, record
from convene_keys.db.session import db, transaction
from convene_keys.keys import tokens
from convene_keys.models import AuditEvent, Organization
from tests import factories
from tests.audit.conftest import ORIGIN, recorded
from tests.conftest import Clock


def _count() -> int:
    return db.session.scalar(select(func.count()).select_from(AuditEvent)) or 0


def test_record_keeps_who_what_where_and_when(
    organization: Organization, fake_clock: Clock
) -> None:
    key, _ = factories.api_key(organization)
    event = recorded(
        Actor.of_key(key, ORIGIN),
        Action.BOOKING_APPROVED,
        target=Target("booking", 123, "booking 123"),
        detail={"before": "pending"},
    )
    assert export.as_dict(event) == {
        "id": event.id,
        "at": "2026-11-24T12:00:00Z",
        "organization_id": organization.id,
        "actor": "key",
        "key_id": key.id,
        "key_name": "Claude on laptop",
        "member_id": None,
        "member_name": None,
        "action": "booking.approved",
        "target_type": "booking",
        "target_id": "123",
        "target_name": "booking 123",
        "outcome": "ok",
        "ip": "192.0.2.7",
        "user_agent": "curl/8",
        "request_id": "r1",
        "detail": {"before": "pending"},
    }


def test_actor_is_named_after_the_key_the_member_or_the_system(organization: Organization) -> None:
    key, _ = factories.api_key(organization, "Zapier")
    member = factories.member(organization, name="Noor")
    assert Actor.of_key(key, ORIGIN).name == "Zapier"
    assert Actor.of_member(member, ORIGIN).name == "Noor"
    assert Actor.of_member(member, ORIGIN).member_id == member.id
    assert Actor.system(organization.id).name == "the system"
    assert Actor.system(organization.id).origin == Origin()


def test_rollback_leaves_neither_the_change_nor_the_event(organization: Organization) -> None:
    def change() -> None:
        with transaction() as session:
            session.get_one(Organization, organization.id).name = "Other"
            record(session, Actor.system(organization.id), Action.SETTINGS_ORGANIZATION_CHANGED)
            raise RuntimeError("the power went")

    with pytest.raises(RuntimeError):
        change()
    assert _count() == 0
    assert db.session.get_one(Organization, organization.id).name == "Riverside Market"


def test_no_event_no_change(organization: Organization) -> None:
    """An event that the database refuses takes the change with it."""

    def change() -> None:
        with transaction() as session:
            session.get_one(Organization, organization.id).name = "Other"
            record(session, Actor.system(10**9), Action.SETTINGS_ORGANIZATION_CHANGED)

    with pytest.raises(Exception, match="(?i)foreign key"):
        change()
    assert db.session.get_one(Organization, organization.id).name == "Riverside Market"


def test_secrets_never_appear_in_any_column(organization: Organization) -> None:
    token = tokens.mint()
    origin = Origin("192.0.2.7", f"agent {token}", "r1")
    for actor in (
        Actor.system(organization.id, origin),
        Actor(audit_log.ActorKind.KEY, organization.id, origin, key_name=token),
        Actor(audit_log.ActorKind.MEMBER, organization.id, origin, member_name=token),
    ):
        event = recorded(
            actor,
            target=Target("request", None, f"GET /{token}"),
            detail={"reason": f"in {token}", token: [{"deep": token}]},
        )
        row = json.dumps(export.as_dict(event), ensure_ascii=False)
        assert token not in row
        assert token[7:20] not in row
        assert tokens.hint(token) + "…" in row


def test_long_texts_are_cut_to_their_columns(organization: Organization) -> None:
    event = recorded(
        Actor.system(organization.id, Origin(None, "a" * 1_000)),
        target=Target("request", None, "b" * 1_000),
    )
    assert event.user_agent == "a" * 256
    assert event.target_name == "b" * 200
    assert event.target_id is None
