"""Sign-in links: one sets a password, once, within 72 hours."""

import pytest

from convene_keys.accounts import links, members, sign_in
from convene_keys.audit.log import Actor
from convene_keys.db.session import db
from convene_keys.errors import Conflict, Invalid, NotFound
from convene_keys.models import Member, Organization
from tests import factories
from tests.accounts.conftest import HERE, PASSWORD, PEPPERS, actions, fields
from tests.conftest import Clock


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
    assert actions() == ["member.invited", "member.password_set", "member.signed_in"]


def test_link_with_a_weak_password_can_be_tried_again(actor: Actor, noor: Member) -> None:
    _, code = members.invitation(actor, noor.id)
    for weak in ("short", "Riverside Market Noor"):
        with pytest.raises(Invalid) as info:
            _accept(code, weak)
        assert fields(info) == ["password"]
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
