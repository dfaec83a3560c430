"""The team pages: members, roles, sign-in links, disabling."""

import re

import pytest

from convene_keys import clock
from convene_keys.accounts import passwords
from convene_keys.db.session import db
from convene_keys.models import AuditEvent, Member, SignInSession
from tests import factories
from tests.conftest import Browser, Clock, new_browser
from tests.databases import PEPPER

pytestmark = pytest.mark.on_sqlite

PASSWORD = "plum kettle orbit sandal"
NEW = {"name": "Noor Haddad", "email": "noor@example.org", "role": "manager"}
POSTS = ("", "/disable", "/enable", "/link")


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


def events() -> list[AuditEvent]:
    return db.session.query(AuditEvent).order_by(AuditEvent.id).all()


def actions() -> list[str]:
    return [event.action for event in events()]


def link_in(html: str) -> str:
    found = re.search(r'<input[^>]*id="sign-in-link"[^>]*>', html)
    assert "readonly" in found[0]
    return re.search(r'value="([^"]+)"', found[0])[1]


def state_of(member: Member) -> tuple[str, str, bool]:
    db.session.refresh(member)
    return member.name, member.role, member.disabled_at is not None


def test_list_shows_the_organization_alone(client, maya, noor):
    factories.member(maya.organization, "viewer", "Ida", disabled_at=clock.now())
    factories.member(factories.organization(), "admin", "Stranger")

    page = client.get("/admin/team").text

    rows = re.findall(r'<tr id="member-\d+".*?</tr>', page, re.DOTALL)
    assert len(rows) == 3
    assert "Stranger" not in page
    assert "Ida" in rows[2]
    assert "Disabled" in rows[2]
    assert 'aria-label="Enable Ida"' in rows[2]
    assert "Not signed in yet" in rows[1]
    assert 'aria-label="Edit Noor"' in rows[1]
    assert "(you)" in rows[0]


@pytest.mark.parametrize("role", ["manager", "viewer"])
def test_only_an_admin_changes_the_team(client, maya, noor, role):
    browser = new_browser(client.application)
    browser.sign_in(factories.member(maya.organization, role, "Ida"))

    page = browser.get("/admin/team")
    assert page.status_code == 200
    assert "Noor" in page.text
    assert f"/admin/team/{noor.id}" not in page.text
    assert "/admin/team/new" not in page.text

    one = f"/admin/team/{noor.id}"
    answers = [browser.get(f"{one}{path}") for path in POSTS] + [browser.get("/admin/team/new")]
    answers += [browser.post(f"{one}{path}", data=NEW) for path in POSTS]
    answers += [browser.post("/admin/team", data=NEW)]
    assert {answer.status_code for answer in answers} == {403}
    assert db.session.query(Member).count() == 3
    assert state_of(noor) == ("Noor", "manager", False)
    assert events() == []


@pytest.mark.parametrize("path", POSTS)
def test_another_organizations_member_is_not_there(client, maya, path):
    stranger = factories.member(factories.organization(), "manager", "Stranger")

    for number in (stranger.id, stranger.id + 1, 0, 2**63 - 1, 2**63, 10**40):
        for answer in (
            client.get(f"/admin/team/{number}{path}"),
            client.post(f"/admin/team/{number}{path}", data={"name": "X", "role": "viewer"}),
        ):
            assert answer.status_code == 404
            assert "Stranger" not in answer.text
    assert state_of(stranger) == ("Stranger", "manager", False)
    assert events() == []


@pytest.mark.parametrize("path", POSTS)
def test_stale_forms_change_nothing(strict_client, path):
    maya = factories.member(factories.organization(), "admin", "Maya")
    noor = factories.member(maya.organization, "manager", "Noor")
    strict_client.sign_in(maya)
    form = {"name": "X", "role": "viewer", "csrf_token": "stale"}

    answer = strict_client.post(f"/admin/team/{noor.id}{path}", data=form)

    assert answer.status_code == 400
    assert "This form is out of date" in answer.text
    assert strict_client.post("/admin/team", data=NEW).status_code == 400
    assert state_of(noor) == ("Noor", "manager", False)
    assert db.session.query(Member).count() == 2


# Adding


def test_add_shows_a_link_once_with_which_the_member_signs_in(client, maya):
    assert client.get("/admin/team/new").status_code == 200

    answer = client.post("/admin/team", data=NEW)

    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    assert "works once, and ends after 72 hours" in answer.text
    link = link_in(answer.text)
    assert link.startswith("http://127.0.0.1:8000/welcome?code=")
    added = db.session.query(Member).filter_by(name="Noor Haddad").one()
    assert (added.email, added.role, added.password_hash) == ("noor@example.org", "manager", None)
    assert added.organization_id == maya.organization_id
    assert [(e.action, e.member_name, e.target_name) for e in events()] == [
        ("member.added", "Maya", "Noor Haddad"),
        ("member.invited", "Maya", "Noor Haddad"),
    ]
    assert events()[0].detail == {"role": "manager"}
    code = link.partition("code=")[2]
    assert code not in client.get("/admin/team").text
    assert not any(code in str(event.detail) for event in events())

    theirs = new_browser(client.application)
    path = link.removeprefix("http://127.0.0.1:8000")
    assert theirs.post(path, data={"password": PASSWORD}).status_code == 303
    assert theirs.get("/admin/api_keys").status_code == 200
    assert theirs.get("/admin/team/new").status_code == 403


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "n" * 10_000),
        ("name", "No\0or"),
        ("name", "Noor\u202e"),
        ("email", ""),
        ("email", "noor"),
        ("email", "noor\0@example.org"),
        ("email", "noor@example.org, eve@example.org"),
        ("email", "n" * 10_000 + "@example.org"),
        ("email", "MAYA@example.org"),
        ("role", "owner"),
        ("role", ""),
    ],
)
def test_add_marks_what_is_wrong_and_keeps_what_was_typed(client, maya, field, value):
    maya.email, maya.email_folded = "maya@example.org", "maya@example.org"
    db.session.commit()

    answer = client.post("/admin/team", data=NEW | {field: value})

    assert answer.status_code == 422
    assert re.findall(r'id="([a-z]+)-error"', answer.text) == [field]
    assert all(f'value="{NEW[name]}"' in answer.text for name in {"name", "email"} - {field})
    assert db.session.query(Member).count() == 1
    assert events() == []


def test_add_refuses_somebody_of_another_organization(client, maya):
    factories.member(factories.organization(), "admin", "Noor", email="noor@example.org")

    answer = client.post("/admin/team", data=NEW)

    assert answer.status_code == 422
    assert "Somebody signs in with this email already." in answer.text


def test_add_takes_right_to_left_names(client, maya):
    answer = client.post("/admin/team", data=NEW | {"name": "نور حداد"})

    assert answer.status_code == 200
    assert "نور حداد" in client.get("/admin/team").text


@pytest.mark.parametrize("role", ["manager", "nobody"])
def test_of_several_wrong_fields_only_the_first_takes_the_focus(client, maya, role):
    answer = client.post("/admin/team", data={"name": "", "email": "", "role": role})
    assert answer.status_code == 422
    wrong = re.findall(r"<input[^>]*aria-invalid[^>]*>", answer.text)
    assert len(wrong) == (2 if role == "manager" else 0)
    assert len(re.findall(r"<input[^>]* autofocus", answer.text)) == 1


# Changing


def test_change_sets_name_and_role_and_records_both(client, maya, noor):
    assert 'value="Noor"' in client.get(f"/admin/team/{noor.id}").text

    answer = client.post(f"/admin/team/{noor.id}", data={"name": "Noor H.", "role": "viewer"})

    assert (answer.status_code, answer.location) == (303, "/admin/team")
    assert "Noor H. was saved." in client.get("/admin/team").text
    assert state_of(noor) == ("Noor H.", "viewer", False)
    (event,) = events()
    assert (event.action, event.target_id) == ("member.changed", str(noor.id))
    assert event.detail == {
        "name": {"before": "Noor", "after": "Noor H."},
        "role": {"before": "manager", "after": "viewer"},
    }


def test_change_without_a_change_records_nothing(client, maya, noor):
    client.post(f"/admin/team/{noor.id}", data={"name": " Noor ", "role": "manager"})

    assert events() == []


@pytest.mark.parametrize(("field", "value"), [("name", ""), ("name", "\0"), ("role", "owner")])
def test_change_marks_what_is_wrong(client, maya, noor, field, value):
    form = {"name": "Noor H.", "role": "viewer"} | {field: value}

    answer = client.post(f"/admin/team/{noor.id}", data=form)

    assert answer.status_code == 422
    assert re.findall(r'id="([a-z]+)-error"', answer.text) == [field]
    assert state_of(noor) == ("Noor", "manager", False)


def test_a_role_counts_at_once(client, maya, noor):
    browser = new_browser(client.application)
    browser.sign_in(noor)
    assert browser.get("/admin/api_keys/new").status_code == 200

    client.post(f"/admin/team/{noor.id}", data={"name": "Noor", "role": "viewer"})

    assert browser.get("/admin/api_keys/new").status_code == 403


def test_nobody_changes_their_own_role(client, maya):
    page = client.get(f"/admin/team/{maya.id}").text
    assert "Only another admin can change it." in page
    assert 'name="role"' not in page

    answer = client.post(f"/admin/team/{maya.id}", data={"name": "Maya", "role": "viewer"})
    assert answer.status_code == 409
    assert "You can’t change your own role" in answer.text
    assert client.post(f"/admin/team/{maya.id}", data={"name": "Maya L."}).status_code == 303

    assert state_of(maya) == ("Maya L.", "admin", False)


def test_edit_page_names_the_keys_that_a_viewer_would_lose(client, maya, noor):
    factories.api_key(maya.organization, "Claude on Noor’s laptop", creator=noor)

    assert "Claude on Noor’s laptop" in client.get(f"/admin/team/{noor.id}").text
    noor.role = "viewer"
    db.session.commit()
    assert "Claude on Noor’s laptop" not in client.get(f"/admin/team/{noor.id}").text


# Disabling


def test_disable_names_the_keys_that_stop(client, maya, noor):
    of, now = maya.organization, clock.now()
    factories.api_key(of, "Claude on laptop", creator=noor)
    factories.api_key(of, "Revoked one", creator=noor, revoked_at=now, released_at=now)
    factories.api_key(of, "Expired one", creator=noor, expires_at=now)
    factories.api_key(of, "Maya’s own", creator=maya)

    page = client.get(f"/admin/team/{noor.id}/disable")

    assert page.status_code == 200
    assert "Claude on laptop" in page.text
    assert all(name not in page.text for name in ("Revoked one", "Expired one", "Maya’s own"))
    assert state_of(noor) == ("Noor", "manager", False)


def test_disable_ends_sessions_and_keys_at_once_and_enable_undoes_it(client, maya, noor):
    _, secret = factories.api_key(maya.organization, creator=noor)
    browser = new_browser(client.application)
    browser.sign_in(noor)

    def api() -> int:
        headers = {"Authorization": f"Bearer {secret}"}
        return client.get("/api/v1/admin/me", headers=headers).status_code

    assert (browser.get("/admin/team").status_code, api()) == (200, 200)

    answer = client.post(f"/admin/team/{noor.id}/disable")

    assert (answer.status_code, answer.location) == (303, "/admin/team")
    assert "Noor was disabled and is signed out everywhere." in client.get("/admin/team").text
    assert browser.get("/admin/team").location.startswith("/login")
    assert api() == 403
    assert db.session.query(SignInSession).filter_by(member_id=noor.id).one().ended_at is not None
    assert client.get("/admin/team").status_code == 200

    assert client.get(f"/admin/team/{noor.id}/enable").status_code == 200
    assert client.post(f"/admin/team/{noor.id}/enable").status_code == 303

    assert api() == 200
    assert browser.get("/admin/team").location.startswith("/login")  # the session stays ended
    changes = [e for e in events() if e.action.startswith("member.")]
    assert [(e.action, e.target_name) for e in changes] == [
        ("member.disabled", "Noor"),
        ("member.enabled", "Noor"),
    ]


def test_a_member_who_was_not_signed_out_is_still_shut_out(client, maya, noor):
    browser = new_browser(client.application)
    browser.sign_in(noor)
    noor.disabled_at = clock.now()
    db.session.commit()

    assert browser.get("/admin/team").location.startswith("/login")


def test_disable_twice_records_once(client, maya, noor):
    for _ in range(2):
        assert client.post(f"/admin/team/{noor.id}/disable").status_code == 303

    assert actions() == ["member.disabled"]


def test_nobody_disables_themselves(client, maya, noor):
    answer = client.post(f"/admin/team/{maya.id}/disable")

    assert answer.status_code == 409
    assert "You can’t disable yourself" in answer.text
    assert state_of(maya) == ("Maya", "admin", False)
    assert events() == []


# Sign-in links


def test_link_is_made_for_a_forgotten_password(client, maya, noor):
    assert "chooses the password of this account" in client.get(f"/admin/team/{noor.id}/link").text

    answer = client.post(f"/admin/team/{noor.id}/link")

    assert answer.status_code == 200
    link = link_in(answer.text).removeprefix("http://127.0.0.1:8000")
    page = new_browser(client.application).get(link)
    assert "Noor" in page.text
    assert [(e.action, e.target_name) for e in events()] == [("member.invited", "Noor")]


def test_link_is_not_made_for_a_disabled_member(client, maya, noor):
    noor.disabled_at = clock.now()
    db.session.commit()

    answer = client.post(f"/admin/team/{noor.id}/link")

    assert answer.status_code == 409
    assert "Please enable them first." in answer.text
    assert events() == []
