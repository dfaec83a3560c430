"""Organizations: the first run, further ones, and their settings."""

from typing import Any

import pytest
from flask import Flask
from sqlalchemy import func, select

from convene_keys.accounts import organizations, passwords
from convene_keys.audit.log import Actor
from convene_keys.db.session import db
from convene_keys.errors import Invalid, NotFound
from convene_keys.models import KeyMakers, Member, Organization, OrganizationStatus
from tests.accounts.conftest import HERE, PASSWORD, PEPPERS, events, fields
from tests.databases import PEPPER, SECRET_KEY


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


def test_first_run_makes_the_organization_and_its_admin(app: Flask) -> None:
    assert organizations.is_empty(db.session())
    organization, maya = _set_up(first_only=True)
    assert not organizations.is_empty(db.session())
    assert (organization.name, organization.slug) == ("Riverside Market", "riverside-market")
    assert organization.status == OrganizationStatus.LIVE
    assert (maya.name, maya.role, maya.organization_id) == ("Maya", "admin", organization.id)
    assert maya.email_folded == "maya@example.org"
    assert passwords.fits(PASSWORD, maya.password_hash, PEPPERS)
    (event,) = events()
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
    assert {event.actor for event in events()} == {"system"}


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
    assert fields(info) == ["organization", "name", "email", "password"]
    with pytest.raises(Invalid) as info:
        _set_up(password="Riverside Market Maya")
    assert fields(info) == ["password"]
    assert organizations.is_empty(db.session())


def test_set_up_with_an_email_that_is_taken_leaves_nothing(maya: Member) -> None:
    with pytest.raises(Invalid) as info:
        _set_up(admin_email="MAYA@example.org")
    assert fields(info) == ["email"]
    assert db.session.scalar(select(func.count()).select_from(Organization)) == 1
    assert events() == []


# Settings ------------------------------------------------------------------------------------


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
    (event,) = events()
    assert (event.action, event.target_name) == ("settings.organization_changed", "Harbour")
    assert event.detail["status"] == {"before": "live", "after": "draft"}
    assert event.detail["key_makers"] == {"before": "managers", "after": "admins"}


def test_unknown_time_zone_is_refused(actor: Actor) -> None:
    rest = {"status": OrganizationStatus.LIVE, "key_makers": KeyMakers.MANAGERS, "rotate_months": 6}
    for timezone in ("", "Mars/Olympus", "../etc/passwd", "europe/berlin", "\0"):
        with pytest.raises(Invalid) as info:
            organizations.change_organization(actor, name="X", timezone=timezone, **rest)
        assert fields(info) == ["timezone"]
    assert events() == []


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
    first, second = events()
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
        assert fields(info) == [field], value
    assert events() == []
