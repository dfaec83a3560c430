"""The password again, half an hour after sign-in: who is asked for it, when, and how often."""

import pytest

from convene_keys.accounts import passwords
from convene_keys.db.session import db
from convene_keys.models import Member
from tests import factories
from tests.conftest import Browser, Clock
from tests.databases import PEPPER
from tests.web.test_team import NEW, PASSWORD, actions, state_of

pytestmark = pytest.mark.on_sqlite


@pytest.fixture
def maya(client: Browser, fake_clock: Clock) -> Member:
    """An admin, signed in just now, whose password is PASSWORD."""
    hashed = passwords.hash_password(PASSWORD, [PEPPER])
    maya = factories.member(factories.organization(), "admin", "Maya", password_hash=hashed)
    client.sign_in(maya)
    return maya


@pytest.fixture
def noor(maya: Member) -> Member:
    """A market manager of Maya's organization."""
    return factories.member(maya.organization, "manager", "Noor")


def change_of_each_kind(noor: Member) -> list[tuple[str, dict[str, str]]]:
    one = f"/admin/team/{noor.id}"
    return [
        ("/admin/team", {"name": "Ida", "email": "ida@example.org", "role": "viewer"}),
        (one, {"name": "Noor H.", "role": "viewer"}),
        (f"{one}/link", {}),
        (f"{one}/disable", {}),
        (f"{one}/enable", {}),
    ]


@pytest.fixture
def later(fake_clock: Clock, maya: Member) -> Clock:
    """Half an hour after Maya signed in."""
    fake_clock.advance(minutes=30)
    return fake_clock


def test_every_change_asks_for_the_password_when_the_sign_in_is_old(client, maya, noor, later):
    for path, form in change_of_each_kind(noor):
        asked = client.get("/admin/team/new" if path == "/admin/team" else path).text
        assert 'name="current_password"' in asked

        for password in ("", "not the password at all"):
            answer = client.post(path, data=form | {"current_password": password})
            assert answer.status_code == 422
            assert 'id="current_password-error"' in answer.text
            if "email" in form:
                assert 'value="ida@example.org"' in answer.text
    assert state_of(noor) == ("Noor", "manager", False)
    assert db.session.query(Member).count() == 2
    # Only what was typed counts as a try.
    assert actions() == ["member.sign_in_failed"] * 5


def test_the_right_password_is_enough_for_half_an_hour(client, maya, noor, later):
    first, *others = change_of_each_kind(noor)

    answer = client.post(first[0], data=first[1] | {"current_password": PASSWORD})
    assert answer.status_code == 200
    later.advance(minutes=29)
    for path, form in others:
        assert client.post(path, data=form).status_code in (200, 303)

    assert actions() == [
        "member.added",
        "member.invited",
        "member.changed",
        "member.invited",
        "member.disabled",
        "member.link_withdrawn",
        "member.enabled",
    ]


def test_the_password_is_asked_once_though_something_else_was_wrong(client, maya, later):
    form = NEW | {"email": "noor", "current_password": PASSWORD}
    answer = client.post("/admin/team", data=form)

    assert answer.status_code == 422
    assert 'name="current_password"' not in answer.text
    assert client.post("/admin/team", data=NEW).status_code == 200


def test_guessing_the_password_again_is_slowed_down(client, maya, noor, later):
    path = f"/admin/team/{noor.id}/disable"
    for number in range(10):
        wrong = client.post(path, data={"current_password": f"guess number {number}"})
        assert wrong.status_code == 422

    answer = client.post(path, data={"current_password": PASSWORD})

    assert answer.status_code == 429
    assert answer.headers["Retry-After"] == "900"
    assert state_of(noor) == ("Noor", "manager", False)
