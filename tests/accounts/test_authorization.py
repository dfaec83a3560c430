"""What an actor may do is read again where it is done. `tests/web/test_authority.py` tries each page."""

from dataclasses import replace

import pytest
from flask import Flask
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError

from convene_keys import clock
from convene_keys.accounts.authorization import acting, changing_team
from convene_keys.audit.log import Actor
from convene_keys.db.session import db, transaction
from convene_keys.errors import Forbidden
from convene_keys.models import MAKER, KeyMakers, Member, Organization, Role, SignInSession
from tests import factories
from tests.accounts.conftest import HERE


@pytest.fixture
def noor(organization: Organization) -> Actor:
    """A manager in a browser."""
    member = factories.member(organization, "manager", "Noor")
    return Actor.of_member(member, HERE, factories.session(member)[0].id)


def may(actor: Actor, needed: str) -> bool:
    try:
        with acting(actor, needed):
            return True
    except Forbidden:
        return False


def test_a_member_may_do_what_their_role_covers(noor: Actor) -> None:
    levels = (Role.VIEWER, Role.MANAGER, MAKER, Role.ADMIN)
    assert [may(noor, needed) for needed in levels] == [True, True, True, False]


def test_what_was_lost_meanwhile_counts(noor: Actor) -> None:
    for lost in (
        update(Member).values(role=Role.VIEWER),
        update(Member).values(disabled_at=clock.now()),
        update(SignInSession).values(ended_at=clock.now()),
    ):
        with transaction(db.engine) as elsewhere:
            elsewhere.execute(lost)
        assert not may(noor, Role.MANAGER)
        with transaction(db.engine) as elsewhere:
            elsewhere.execute(update(Member).values(role=Role.MANAGER, disabled_at=None))
            elsewhere.execute(update(SignInSession).values(ended_at=None))
        assert may(noor, Role.MANAGER)


def test_who_may_make_keys_is_read_again_as_well(noor: Actor) -> None:
    with transaction(db.engine) as elsewhere:
        elsewhere.execute(update(Organization).values(key_makers=KeyMakers.ADMINS))
    assert [may(noor, MAKER), may(noor, Role.MANAGER)] == [False, True]


def test_a_member_is_nobody_in_another_organization(maya: Member) -> None:
    other = factories.organization()
    me = Actor.of_member(maya, HERE)
    assert may(me, Role.ADMIN)
    assert not may(replace(me, organization_id=other.id), Role.VIEWER)


def test_only_admins_change_the_team(noor: Actor, maya: Member) -> None:
    with changing_team(Actor.of_member(maya, HERE)) as session:
        session.execute(update(Organization).values(name="Harbour"))
    with pytest.raises(Forbidden), changing_team(noor):
        pass
    with changing_team(noor, Role.MANAGER):
        pass
    assert db.session.scalars(select(Organization.name)).all() == ["Harbour"]


def test_a_key_and_the_system_have_no_role(organization: Organization) -> None:
    key, _ = factories.api_key(organization)
    assert may(Actor.of_key(key, HERE), Role.ADMIN)
    assert may(Actor.system(organization.id), Role.ADMIN)


@pytest.mark.parametrize("shared", ["postgresql"], indirect=True)
def test_what_was_read_stays_until_the_change_is_made(app: Flask, noor: Actor) -> None:
    member = select(Member.id).where(Member.id == noor.member_id)
    for needed, query in (
        (Role.MANAGER, member),
        (Role.MANAGER, select(SignInSession.id)),
        (MAKER, select(Organization.id)),
    ):
        taken = query.with_for_update(nowait=True)
        with (
            acting(noor, needed),
            db.engine.connect() as elsewhere,
            pytest.raises(OperationalError, match="could not obtain lock"),
        ):
            elsewhere.execute(taken)
        with db.engine.connect() as elsewhere:
            elsewhere.execute(taken)
