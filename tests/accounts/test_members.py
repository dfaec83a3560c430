"""The organization and its people: first run, members, invitations, settings."""

from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import func, select

from convene_keys import clock
from convene_keys.accounts import links, members, organizations, passwords, sign_in
from convene_keys.audit.log import Actor, Origin
from convene_keys.db.session import db
from convene_keys.errors import Conflict, Invalid, NotFound
from convene_keys.models import (
    AuditEvent,
    KeyMakers,
    Member,
    Organization,
    OrganizationStatus,
    Role,
)
from tests import factories
from tests.conftest import Clock
from tests.databases import PEPPER, SECRET_KEY

PEPPERS = [PEPPER]
PASSWORD = "velvet tractor umbrella ninety"
HERE = Origin("192.0.2.1", "Firefox", "r1")


@pytest.fixture
def organization(app: Flask) -> Organization:
    return factories.organization()


@pytest.fixture
def maya(organization: Organization) -> Member:
    return factories.member(organization, email="maya@example.org")


@pytest.fixture
def actor(maya: Member) -> Actor:
    return Actor.of_member(maya, HERE)


def _events() -> list[AuditEvent]:
    db.session.rollback()
    return list(db.session.scalars(select(AuditEvent).order_by(AuditEvent.id)))


def _actions() -> list[str]:
    return [event.action for event in _events()]


def _fields(info: pytest.ExceptionInfo[Invalid]) -> list[str]:
    return [error.field for error in info.value.errors]


def _set_up(**values: Any) -> tuple[Organization, Member]:
    given = {
        "name": "Riverside Market",
        "admin_name": "Maya",
        "admin_email": "Maya@Example.org",
        "password": PASSWORD,
        "origin": HERE,
        "peppers": PEPPERS,
    }
    return organizations.create_organization(**{**given, **values})


# First run -----------------------------------------------------------------------------------


def test_first_run_makes_the_organization_and_its_admin(app: Flask) -> None:
    assert organizations.is_empty(db.session())
    organization, maya = _set_up(first_only=True)
    assert not organizations.is_empty(db.session())
    assert (organization.name, organization.slug) == ("Riverside Market", "riverside-market")
    assert organization.status == OrganizationStatus.LIVE
    assert (maya.name, maya.role, maya.organization_id) == ("Maya", "admin", organization.id)
    assert maya.email_folded == "maya@example.org"
    assert passwords.fits(PASSWORD, maya.password_hash, PEPPERS)
    (event,) = _events()
    assert (event.action, event.actor, event.member_id, event.target_name) == (
        "organization.created",
        "member",
        maya.id,
        "Riverside Market",
    )


def test_first_run_works_once(app: Flask) -> None:
    _set_up(first_only=True)
    with pytest.raises(NotFound, match="set up already"):
        _set_up(first_only=True, admin_email="other@example.org")
    assert db.session.scalar(select(func.count()).select_from(Organization)) == 1


def test_further_organization_is_made_by_the_system(app: Flask) -> None:
    _set_up()
    organization, _ = _set_up(admin_email="other@example.org")
    assert organization.slug == "riverside-market-2"
    assert _set_up(admin_email="third@example.org")[0].slug == "riverside-market-3"
    assert {event.actor for event in _events()} == {"system"}


def test_setup_code_is_derived_from_both_secrets() -> None:
    code = organizations.setup_code(SECRET_KEY, PEPPER)
    assert code == organizations.setup_code(SECRET_KEY, PEPPER)
    assert organizations.is_setup_code(code, SECRET_KEY, PEPPER)
    others = (
        organizations.setup_code("x" * 32, PEPPER),
        organizations.setup_code(SECRET_KEY, "x" * 32),
    )
    for wrong in ("", code[:-1], code + "0", "é", "\ud800", *others):
        assert not organizations.is_setup_code(wrong, SECRET_KEY, PEPPER)


def test_set_up_names_every_field_that_is_wrong(app: Flask) -> None:
    with pytest.raises(Invalid) as info:
        _set_up(name=" ", admin_name="a\u202eb", admin_email="nobody", password="short")
    assert _fields(info) == ["organization", "name", "email", "password"]
    with pytest.raises(Invalid) as info:
        _set_up(password="Riverside Market Maya")
    assert _fields(info) == ["password"]
    assert organizations.is_empty(db.session())


def test_set_up_with_an_email_that_is_taken_leaves_nothing(maya: Member) -> None:
    with pytest.raises(Invalid) as info:
        _set_up(admin_email="MAYA@example.org")
    assert _fields(info) == ["email"]
    assert db.session.scalar(select(func.count()).select_from(Organization)) == 1
    assert _events() == []


# Members -------------------------------------------------------------------------------------


def test_add_member(actor: Actor) -> None:
    member = members.add_member(actor, name=" Noor ", email="Noor@Example.org", role=Role.VIEWER)
    assert (member.name, member.role, member.password_hash) == ("Noor", "viewer", None)
    (event,) = _events()
    assert (event.action, event.target_name, event.detail) == (
        "member.added",
        "Noor",
        {"role": "viewer"},
    )


def test_add_member_with_a_password(actor: Actor) -> None:
    given = {"name": "Noor", "email": "noor@example.org", "role": Role.VIEWER, "peppers": PEPPERS}
    with pytest.raises(Invalid) as info:
        members.add_member(actor, password="noor@example.org", **given)
    assert _fields(info) == ["password"]
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
        assert _fields(info) == ["email"], email


def test_email_signs_in_one_member_of_one_organization(actor: Actor) -> None:
    other = Actor.system(factories.organization().id)
    for who in (actor, other):
        with pytest.raises(Invalid, match="signs in with this email already") as info:
            members.add_member(who, name="Maya", email="MAYA@example.org", role=Role.VIEWER)
        assert _fields(info) == ["email"]
    assert _events() == []


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
    assert _events() == []
    assert db.session.get_one(Member, foreign.id).disabled_at is None


def test_change_member_records_what_changed(actor: Actor, organization: Organization) -> None:
    noor = factories.member(organization, "viewer", "Noor")
    members.change_member(actor, noor.id, name="Noor K.", role=Role.MANAGER)
    members.change_member(actor, noor.id, name="Noor K.", role=Role.MANAGER)
    (event,) = _events()
    assert event.target_name == "Noor K."
    assert event.detail == {
        "name": {"before": "Noor", "after": "Noor K."},
        "role": {"before": "viewer", "after": "manager"},
    }
    with pytest.raises(Invalid) as info:
        members.change_member(actor, noor.id, name=" ", role=Role.MANAGER)
    assert _fields(info) == ["name"]


def test_own_role_stays(actor: Actor, maya: Member, organization: Organization) -> None:
    factories.member(organization, name="Second admin")
    with pytest.raises(Conflict, match="own role"):
        members.change_member(actor, maya.id, name="Maya", role=Role.VIEWER)
    assert members.change_member(actor, maya.id, name="Maya B.", role=Role.ADMIN).name == "Maya B."
    assert _actions() == ["member.changed"]


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
    assert _events() == []


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
    assert _actions() == ["member.disabled", "member.enabled"]


def test_nobody_disables_themselves(actor: Actor, maya: Member) -> None:
    for disabled in (True, False):
        with pytest.raises(Conflict, match="disable yourself"):
            members.set_disabled(actor, maya.id, disabled=disabled)


# Sign-in links -------------------------------------------------------------------------------


@pytest.fixture
def noor(organization: Organization) -> Member:
    return factories.member(organization, "viewer", "Noor", email="noor@example.org")


def _accept(code: str, password: str = PASSWORD) -> Member:
    return members.accept(code, password, HERE, PEPPERS)


def test_link_sets_the_password_once(actor: Actor, noor: Member) -> None:
    session, _ = factories.session(noor)
    member, code = members.invitation(actor, noor.id)
    assert member.id == noor.id
    assert links.opened_by(db.session(), code).member.id == noor.id
    _accept(code)
    db.session.refresh(session)
    assert session.ended_at is not None
    assert sign_in.sign_in("noor@example.org", PASSWORD, HERE, PEPPERS)
    with pytest.raises(NotFound, match="used already or is too old"):
        _accept(code, "quartz ladder monsoon fig")
    assert _actions() == ["member.invited", "member.password_set", "member.signed_in"]


def test_link_with_a_weak_password_can_be_tried_again(actor: Actor, noor: Member) -> None:
    _, code = members.invitation(actor, noor.id)
    for weak in ("short", "Riverside Market Noor"):
        with pytest.raises(Invalid) as info:
            _accept(code, weak)
        assert _fields(info) == ["password"]
    assert _accept(code).id == noor.id


def test_link_lives_72_hours(actor: Actor, noor: Member, fake_clock: Clock) -> None:
    _, code = members.invitation(actor, noor.id)
    fake_clock.advance(hours=71, minutes=59, seconds=59)
    assert links.opened_by(db.session(), code).member.id == noor.id
    fake_clock.advance(seconds=1)
    with pytest.raises(NotFound):
        _accept(code)


def test_link_of_a_disabled_member_is_dead(actor: Actor, noor: Member) -> None:
    _, code = members.invitation(actor, noor.id)
    members.set_disabled(actor, noor.id, disabled=True)
    with pytest.raises(NotFound):
        _accept(code)
    with pytest.raises(Conflict, match="disabled"):
        members.invitation(actor, noor.id)


def test_other_texts_are_no_link(actor: Actor, noor: Member) -> None:
    _, code = members.invitation(actor, noor.id)
    for wrong in ("", "x", code[:-1], code + "x", "é", "a.b.c", "\0", "x" * 10_000):
        with pytest.raises(NotFound):
            _accept(wrong)


# Settings ------------------------------------------------------------------------------------


def test_rename_self(actor: Actor, maya: Member) -> None:
    members.rename_self(actor, " Maya  B. ")
    members.rename_self(actor, "Maya B.")
    db.session.refresh(maya)
    assert maya.name == "Maya B."
    (event,) = _events()
    assert event.action == "member.renamed"
    assert event.detail == {"name": {"before": "Maya", "after": "Maya B."}}
    with pytest.raises(Invalid):
        members.rename_self(actor, "")


def test_change_organization(actor: Actor, organization: Organization) -> None:
    change = {
        "name": "Harbour",
        "timezone": "Europe/Berlin",
        "status": OrganizationStatus.DRAFT,
        "key_makers": KeyMakers.ADMINS,
        "rotate_months": 6,
    }
    organizations.change_organization(actor, **change)
    organizations.change_organization(actor, **change)
    db.session.refresh(organization)
    assert (organization.name, organization.timezone, organization.status) == (
        "Harbour",
        "Europe/Berlin",
        "draft",
    )
    (event,) = _events()
    assert (event.action, event.target_name) == ("settings.organization_changed", "Harbour")
    assert event.detail["status"] == {"before": "live", "after": "draft"}
    assert event.detail["key_makers"] == {"before": "managers", "after": "admins"}


def test_unknown_time_zone_is_refused(actor: Actor) -> None:
    rest = {"status": OrganizationStatus.LIVE, "key_makers": KeyMakers.MANAGERS, "rotate_months": 6}
    for timezone in ("", "Mars/Olympus", "../etc/passwd", "europe/berlin", "\0"):
        with pytest.raises(Invalid) as info:
            organizations.change_organization(actor, name="X", timezone=timezone, **rest)
        assert _fields(info) == ["timezone"]
    assert _events() == []


def test_time_zones_are_named_after_places() -> None:
    assert {"UTC", "Europe/Berlin", "America/New_York"} <= set(organizations.zones())
    assert not {"EST", "Etc/GMT+1", "localtime"} & set(organizations.zones())


def test_change_billing(actor: Actor, organization: Organization) -> None:
    organizations.change_billing(
        actor, billing_email="pay@example.org", plan="plus", stripe_account_id=" acct_1A2b3C "
    )
    db.session.refresh(organization)
    assert (organization.billing_email, organization.plan, organization.stripe_account_id) == (
        "pay@example.org",
        "plus",
        "acct_1A2b3C",
    )
    organizations.change_billing(actor, billing_email="", plan="plus", stripe_account_id="")
    first, second = _events()
    assert first.action == second.action == "settings.billing_changed"
    assert second.detail == {
        "billing_email": {"before": "pay@example.org", "after": None},
        "stripe_account_id": {"before": "acct_1A2b3C", "after": None},
    }


BAD_BILLING = (
    ("billing_email", "nobody"),
    ("plan", "gold"),
    ("stripe_account_id", "acct_"),
    ("stripe_account_id", "cus_123"),
    ("stripe_account_id", "acct_1 2"),
    ("stripe_account_id", "acct_é"),
    ("stripe_account_id", "acct_" + "1" * 60),
)


def test_bad_billing_is_refused(actor: Actor) -> None:
    given = {"billing_email": "", "plan": "free", "stripe_account_id": ""}
    for field, value in BAD_BILLING:
        with pytest.raises(Invalid) as info:
            organizations.change_billing(actor, **{**given, field: value})
        assert _fields(info) == [field], value
    assert _events() == []
