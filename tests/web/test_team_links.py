"""Sign-in links: who can use one, until when, who is told, and what the log says."""

import hashlib
import re
from functools import partial
from urllib.parse import urlsplit

import pytest
from flask.testing import FlaskClient
from itsdangerous import URLSafeSerializer
from sqlalchemy import select

from convene_keys import clock
from convene_keys.accounts import links, members, passwords, sign_in
from convene_keys.audit.log import Actor, Origin
from convene_keys.db.session import db, transaction
from convene_keys.errors import TooMany
from convene_keys.models import AuditEvent, Member
from tests import factories
from tests.conftest import Browser, Clock, new_browser
from tests.databases import PEPPER, SECRET_KEY
from tests.web.test_auth import both_at_once

pytestmark = pytest.mark.on_sqlite

PASSWORD = "plum kettle orbit sandal"
DEAD = "This link was withdrawn, used already or is too old. Please ask for a new one."


@pytest.fixture
def maya(client: Browser, fake_clock: Clock) -> Member:
    """An admin, signed in just now."""
    maya = factories.member(factories.organization(), "admin", "Maya")
    client.sign_in(maya)
    return maya


@pytest.fixture
def zoe(maya: Member) -> Member:
    """Another admin of Maya's organization, with a browser of her own: see `as_zoe`."""
    return factories.member(maya.organization, "admin", "Zoe")


@pytest.fixture
def as_zoe(client: Browser, zoe: Member) -> Browser:
    browser = new_browser(client.application)
    browser.sign_in(zoe)
    return browser


@pytest.fixture
def noor(maya: Member) -> Member:
    """A market manager of Maya's organization, who has a password."""
    hashed = passwords.hash_password(PASSWORD, [PEPPER])
    return factories.member(maya.organization, "manager", "Noor", password_hash=hashed)


def made(browser: Browser, member: Member) -> str:
    """The path of a new link for `member`."""
    answer = browser.post(f"/admin/team/{member.id}/link")
    assert answer.status_code == 200
    return link_in(answer.text)


def link_in(html: str) -> str:
    url = urlsplit(re.search(r'id="sign-in-link"\s+value="([^"]+)"', html)[1])
    return f"{url.path}?{url.query}"


def opens(browser: Browser, link: str) -> bool:
    """Whether the link shows its form to somebody who is not signed in."""
    answer = new_browser(browser.application).get(link)
    assert answer.status_code in (200, 404)
    assert answer.status_code == 200 or "used already or is too old" in answer.text
    return answer.status_code == 200


def open_links(browser: Browser) -> list[str]:
    """The rows of the team page's list of open links, as text."""
    rows = re.findall(r'<tr id="link-\d+">(.*?)</tr>', browser.get("/admin/team").text, re.DOTALL)
    return [" ".join(re.sub(r"<[^>]+>", " ", row).split()) for row in rows]


def withdrawals() -> list[tuple[str | None, str | None, dict[str, str]]]:
    query = select(AuditEvent).where(AuditEvent.action == "member.link_withdrawn")
    events = db.session.scalars(query.order_by(AuditEvent.id))
    return [(event.member_name, event.target_name, event.detail) for event in events]


def test_a_new_link_ends_the_older_ones(client, maya, noor):
    first, second = made(client, noor), made(client, noor)

    assert (opens(client, first), opens(client, second)) == (False, True)
    assert len(open_links(client)) == 1
    assert withdrawals() == [("Maya", "Noor", {"made_by": "Maya", "reason": "a newer link"})]


@pytest.mark.parametrize("loss", ["disabled", "demoted"])
def test_a_link_ends_with_its_makers_role_and_stays_ended(client, maya, zoe, as_zoe, noor, loss):
    link = made(as_zoe, noor)
    one = f"/admin/team/{zoe.id}"

    if loss == "disabled":
        client.post(f"{one}/disable")
        assert not opens(client, link)
        client.post(f"{one}/enable")
    else:
        client.post(one, data={"name": "Zoe", "role": "manager"})
        assert not opens(client, link)
        client.post(one, data={"name": "Zoe", "role": "admin"})

    assert not opens(client, link)
    assert open_links(client) == []
    assert (
        new_browser(client.application).post(link, data={"password": PASSWORD}).status_code == 404
    )
    reason = "who made it is no longer an admin"
    assert withdrawals() == [("Maya", "Noor", {"made_by": "Zoe", "reason": reason})]


@pytest.mark.parametrize("loss", [{"disabled_at": clock.now()}, {"role": "manager"}])
def test_a_link_asks_for_its_maker_when_it_is_used(client, maya, zoe, as_zoe, noor, loss):
    """Also where the maker's row was changed by something that knows nothing of links."""
    link = made(as_zoe, noor)
    for name, value in loss.items():
        setattr(zoe, name, value)
    db.session.commit()

    assert not opens(client, link)
    assert open_links(client) == []


def test_a_link_for_somebody_who_was_disabled_is_not_revived(client, maya, noor):
    link = made(client, noor)
    client.post(f"/admin/team/{noor.id}/disable")
    client.post(f"/admin/team/{noor.id}/enable")

    assert not opens(client, link)


def test_a_link_ends_with_a_new_password(client, maya, noor):
    link = made(client, noor)
    session, _ = factories.session(noor)
    actor = Actor.of_member(noor, Origin())
    sign_in.change_password(actor, noor, session.id, "amber cello thicket pond", [PEPPER])

    assert not opens(client, link)
    assert withdrawals() == [("Noor", "Noor", {"made_by": "Maya", "reason": "a new password"})]


def test_admins_see_open_links_and_withdraw_them(client, maya, zoe, as_zoe, noor):
    link = made(as_zoe, noor)
    page = client.get("/admin/team").text
    assert open_links(client) == ["Noor by Zoe 27 Nov 2026, 12:00 Withdraw"]
    assert 'aria-label="Withdraw the link for Noor"' in page

    path = re.search(r'action="(/admin/team/links/\d+/withdraw)"', page)[1]
    answer = client.post(path)

    assert (answer.status_code, answer.location) == (303, "/admin/team")
    assert "The link for Noor doesn’t work any more." in client.get("/admin/team").text
    assert open_links(client) == []
    assert not opens(client, link)
    assert withdrawals() == [("Maya", "Noor", {"made_by": "Zoe"})]
    assert client.post(path).status_code == 404
    assert len(withdrawals()) == 1


def test_only_admins_of_the_organization_see_and_withdraw(client, maya, noor):
    link = made(client, noor)
    path = re.search(r"/admin/team/links/\d+/withdraw", client.get("/admin/team").text)[0]
    stranger, manager = new_browser(client.application), new_browser(client.application)
    stranger.sign_in(factories.member(factories.organization()))
    manager.sign_in(noor)

    for browser, status in ((stranger, 404), (manager, 403)):
        assert open_links(browser) == []
        assert browser.post(path).status_code == status
    assert opens(client, link)


def test_the_log_says_who_made_the_link_that_was_used(client, maya, noor):
    link = made(client, noor)
    theirs = new_browser(client.application)
    assert theirs.post(link, data={"password": PASSWORD}).status_code == 303

    log = re.sub(r"<[^>]+>", "", client.get("/admin/audit_log").text)
    assert "Noor set their password by a link that Maya made" in log
    query = select(AuditEvent).where(AuditEvent.action == "member.password_set")
    event = db.session.scalars(query).one()
    assert (event.member_name, event.target_name) == ("Noor", "Maya")


def test_the_secret_key_alone_forges_no_link(client, maya):
    """As it once did, for whoever had no password yet: it takes the database to make one."""
    state = hashlib.sha256(f"{maya.id} None".encode()).hexdigest()[:16]
    at = int(clock.now().timestamp())
    code = URLSafeSerializer(SECRET_KEY, salt="sign-in link").dumps([maya.id, state, at])

    assert not opens(client, f"/welcome?code={code}")


def test_unknown_used_withdrawn_and_ended_links_answer_alike(client, maya, noor, fake_clock):
    replaced, used = made(client, noor), made(client, noor)
    new_browser(client.application).post(used, data={"password": PASSWORD})
    ended = made(client, noor)
    fake_clock.advance(hours=72)
    answers = [
        re.sub(r"<span class=\"mono\">\w+", "", new_browser(client.application).get(link).text)
        for link in (used, replaced, ended, "/welcome?code=unknown", "/welcome")
    ]
    assert len(set(answers)) == 1
    assert DEAD in answers[0]


def test_two_links_made_at_once_leave_one(client, maya, as_zoe, noor):
    """And of two browsers that use one at once, one sets the password: see `test_auth`."""
    path = f"/admin/team/{noor.id}/link"
    copies = [copy_of(browser) for browser in (client, as_zoe)]

    pages = both_at_once(*(lambda copy=copy: copy.post(path).text for copy in copies))

    assert [opens(client, link_in(page)) for page in pages].count(True) == 1
    assert len(open_links(client)) == 1


def copy_of(browser: Browser) -> FlaskClient:
    """One that a thread may use. Of two admins, since what one alone does takes turns anyway."""
    app = browser.application
    copy = FlaskClient(app, app.response_class)
    copy.set_cookie("convene", browser.get_cookie("convene").value)
    return copy


# How many an hour


def add(browser: FlaskClient, number: int) -> int:
    form = {"name": "N", "email": f"n{number}@example.org", "role": "viewer"}
    return browser.post("/admin/team", data=form).status_code


def test_an_organization_adds_twenty_members_an_hour(client, maya, noor, fake_clock):
    assert [add(client, number) for number in range(18)] == [200] * 18
    fake_clock.advance(minutes=10)
    assert [client.post(f"/admin/team/{noor.id}/link").status_code for _ in range(2)] == [200] * 2

    for path in ("/admin/team", f"/admin/team/{noor.id}/link"):
        answer = client.post(path, data={"name": "N", "email": "a@example.org", "role": "viewer"})
        assert answer.status_code == 429
        assert answer.headers["Retry-After"] == "3000"
        assert "You can go on at 24 Nov 2026, 13:00 UTC." in answer.text
        assert path != "/admin/team" or 'value="a@example.org"' in answer.text
    assert db.session.query(Member).count() == 20

    elsewhere = new_browser(client.application)
    elsewhere.sign_in(factories.member(factories.organization()))
    assert add(elsewhere, 98) == 200
    of = Actor.system(maya.organization_id)
    assert members.invitation(of, noor.id), "whoever hosts this can always let somebody in"
    fake_clock.advance(minutes=50)
    actor = Actor.of_member(maya, Origin())
    for _ in range(18):
        members.invitation(actor, noor.id)
    with pytest.raises(TooMany):
        members.invitation(actor, noor.id)


def test_the_last_place_is_given_once(client, maya, as_zoe, noor):
    with transaction() as session:
        for _ in range(links.PER_HOUR - 1):
            links.make(session, Actor.of_member(maya, Origin()), noor)
    calls = [partial(add, copy_of(browser), n) for n, browser in enumerate((client, as_zoe))]

    assert sorted(both_at_once(*calls)) == [200, 429]
