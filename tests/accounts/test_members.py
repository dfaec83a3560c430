"""Members: added, listed, changed, disabled, and what each may do to themselves."""

from datetime import timedelta

import pytest
from flask import Flask

from convene_keys import clock
from convene_keys.accounts import members, passwords
from convene_keys.audit.log import Actor
from convene_keys.db.session import db
from convene_keys.errors import Conflict, Invalid, NotFound
from convene_keys.models import Member, Organization, Role
from tests import factories
from tests.accounts.conftest import PASSWORD, PEPPERS, actions, events, fields
from tests.conftest import Clock


def test_add_member(actor: Actor) -> None:
    member = members.add_member(actor, name=" Noor ", email="Noor@Example.org", role=Role.VIEWER)
    assert (member.name, member.role, member.password_hash) == ("Noor", "viewer", None)
    (event,) = events()
    assert (event.action, event.target_name, event.detail) == (
        "member.added",
        "Noor",
        {"role": "viewer"},
    )


def test_add_member_with_a_password(actor: Actor) -> None:
    given = {"name": "Noor", "email": "noor@example.org", "role": Role.VIEWER, "peppers": PEPPERS}
    with pytest.raises(Invalid) as info:
        members.add_member(actor, password="noor@example.org", **given)
    assert fields(info) == ["password"]
    member = members.add_member(actor, password=PASSWORD, **given)
    assert passwords.fits(PASSWORD, member.password_hash, PEPPERS)


BAD_EMAILS = [
    "",
    "nobody",
    "a@",
    "@b.org",
    "a b@example.org",
    "a@example.org\0",
    "a@b@c.org",
    "a" * 10_000,
] + ["x" * 255 + "@example.org", "a\n@example.org", "a@exa\u202emple.org", "<a@example.org>"]


def test_bad_email_is_refused(actor: Actor) -> None:
    for email in BAD_EMAILS:
        with pytest.raises(Invalid) as info:
            members.add_member(actor, name="Noor", email=email, role=Role.VIEWER)
        assert fields(info) == ["email"], email


def test_email_signs_in_one_member_of_one_organization(actor: Actor) -> None:
    other = Actor.system(factories.organization().id)
    for who in (actor, other):
        with pytest.raises(Invalid, match="signs in with this email already") as info:
            members.add_member(who, name="Maya", email="MAYA@example.org", role=Role.VIEWER)
        assert fields(info) == ["email"]
    assert events() == []


def test_add_member_needs_an_organization(app: Flask) -> None:
    with pytest.raises(NotFound):
        members.add_member(Actor.system(99), name="A", email="a@example.org", role=Role.ADMIN)


def test_members_are_listed_by_name_the_disabled_ones_last(organization: Organization) -> None:
    for name, disabled in (("bo", None), ("Al", clock.now()), ("Cy", None), ("ann", clock.now())):
        factories.member(organization, name=name, disabled_at=disabled)
    factories.member(factories.organization(), name="Else")
    found = members.members(db.session(), organization.id)
    assert [member.name for member in found] == ["bo", "Cy", "Al", "ann"]


def test_keys_of_a_member_are_those_that_work_through_them(
    organization: Organization, maya: Member, fake_clock: Clock
) -> None:
    noor, now = factories.member(organization, "manager"), clock.now()
    factories.api_key(organization, "B", creator=maya)
    factories.api_key(organization, "a", creator=maya, expires_at=now + timedelta(seconds=1))
    factories.api_key(organization, "C", creator=maya, expires_at=now)
    factories.api_key(organization, "D", creator=maya, revoked_at=now, released_at=now)
    factories.api_key(organization, "E", creator=noor)
    assert [key.name for key in members.keys_of(db.session(), maya)] == ["a", "B"]
    maya.role = "viewer"
    assert list(members.keys_of(db.session(), maya)) == []


def test_nobody_reaches_a_member_of_another_organization(actor: Actor) -> None:
    foreign = factories.member(factories.organization())
    for number in (foreign.id, 0, 10**9, 10**30):
        for attempt in (
            lambda n: members.get(db.session(), actor.organization_id, n),
            lambda n: members.change_member(actor, n, name="X", role=Role.VIEWER),
            lambda n: members.set_disabled(actor, n, disabled=True),
            lambda n: members.invitation(actor, n),
        ):
            with pytest.raises(NotFound):
                attempt(number)
    assert events() == []
    assert db.session.get_one(Member, foreign.id).disabled_at is None


def test_change_member_records_what_changed(actor: Actor, organization: Organization) -> None:
    noor = factories.member(organization, "viewer", "Noor")
    members.change_member(actor, noor.id, name="Noor K.", role=Role.MANAGER)
    members.change_member(actor, noor.id, name="Noor K.", role=Role.MANAGER)
    (event,) = events()
    assert event.target_name == "Noor K."
    assert event.detail == {
        "name": {"before": "Noor", "after": "Noor K."},
        "role": {"before": "viewer", "after": "manager"},
    }
    with pytest.raises(Invalid) as info:
        members.change_member(actor, noor.id, name=" ", role=Role.MANAGER)
    assert fields(info) == ["name"]


def test_own_role_stays(actor: Actor, maya: Member, organization: Organization) -> None:
    factories.member(organization, name="Second admin")
    with pytest.raises(Conflict, match="own role"):
        members.change_member(actor, maya.id, name="Maya", role=Role.VIEWER)
    assert members.change_member(actor, maya.id, name="Maya B.", role=Role.ADMIN).name == "Maya B."
    assert actions() == ["member.changed"]


def test_last_admin_stays(organization: Organization, maya: Member) -> None:
    system = Actor.system(organization.id)
    factories.member(organization, disabled_at=clock.now())
    factories.member(factories.organization())
    with pytest.raises(Conflict, match="at least one admin"):
        members.set_disabled(system, maya.id, disabled=True)
    with pytest.raises(Conflict, match="at least one admin"):
        members.change_member(system, maya.id, name="Maya", role=Role.MANAGER)
    db.session.refresh(maya)
    assert (maya.role, maya.disabled_at) == ("admin", None)
    assert events() == []


def test_disabled_member_loses_sessions_and_comes_back_without(
    actor: Actor, organization: Organization
) -> None:
    noor = factories.member(organization, "manager", "Noor")
    session, _ = factories.session(noor)
    assert members.set_disabled(actor, noor.id, disabled=True).disabled_at is not None
    members.set_disabled(actor, noor.id, disabled=True)
    db.session.refresh(session)
    ended = session.ended_at
    assert ended is not None
    assert not noor.may_make_keys
    assert members.set_disabled(actor, noor.id, disabled=False).disabled_at is None
    db.session.refresh(session)
    assert session.ended_at == ended
    assert actions() == ["member.disabled", "member.enabled"]


def test_nobody_disables_themselves(actor: Actor, maya: Member) -> None:
    for disabled in (True, False):
        with pytest.raises(Conflict, match="disable yourself"):
            members.set_disabled(actor, maya.id, disabled=disabled)


def test_rename_self(actor: Actor, maya: Member) -> None:
    members.rename_self(actor, " Maya  B. ")
    members.rename_self(actor, "Maya B.")
    db.session.refresh(maya)
    assert maya.name == "Maya B."
    (event,) = events()
    assert event.action == "member.renamed"
    assert event.detail == {"name": {"before": "Maya", "after": "Maya B."}}
    with pytest.raises(Invalid):
        members.rename_self(actor, "")
