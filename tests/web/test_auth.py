"""The way in and out, as a browser sees it."""

import re
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from flask import Flask
from flask.testing import FlaskClient

from convene_keys import create_app
from convene_keys.accounts import members, organizations, passwords
from convene_keys.audit.log import Actor, Origin
from convene_keys.db.session import db
from convene_keys.models import AuditEvent, Booking, Member, Organization, SignInSession
from tests import factories
from tests.conftest import Clock, new_browser
from tests.databases import PEPPER, SECRET_KEY, environ

pytestmark = pytest.mark.on_sqlite

PASSWORD = "plum kettle orbit sandal"
NEW_PASSWORD = "violet anchor meadow biscuit"
SETUP = f"/setup?code={organizations.setup_code(SECRET_KEY, PEPPER)}"
FORM = {
    "organization": "Riverside Markets",
    "name": "Maya Lindqvist",
    "email": "maya@example.org",
    "password": PASSWORD,
}
OVERRIDE = "Maya\u202etxt"


def member_with_password(role: str = "admin", **values) -> Member:
    values.setdefault("password_hash", passwords.hash_password(PASSWORD, [PEPPER]))
    of = values.pop("of", None) or factories.organization()
    return factories.member(of, role, **values)


def sign_in(client: FlaskClient, email: str, password: str = PASSWORD, ip="192.0.2.1", **form):
    return client.post(
        "/login",
        data={"email": email, "password": password, **form},
        environ_overrides={"REMOTE_ADDR": ip},
    )


def is_signed_in(client: FlaskClient) -> bool:
    answer = client.get("/admin/settings/account")
    assert answer.status_code in (200, 303)
    return answer.status_code == 200


def actions() -> list[tuple[str, str]]:
    events = db.session.query(AuditEvent).order_by(AuditEvent.id)
    return [(event.action, event.outcome) for event in events]


def link_for(member: Member, by: Member) -> str:
    _, code = members.invitation(Actor.of_member(by, Origin()), member.id)
    return f"/welcome?code={code}"


def both_at_once(*calls) -> list:
    """What the calls return, made so that they run at the same time."""
    start = Barrier(len(calls))

    def run(call):
        start.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


# First run


def test_setup_makes_an_organization_and_signs_its_admin_in(client):
    assert client.get(SETUP).status_code == 200

    answer = client.post(SETUP, data=FORM)

    assert (answer.status_code, answer.location) == (303, "/admin/api_keys")
    organization = db.session.query(Organization).one()
    admin = db.session.query(Member).one()
    assert (organization.name, organization.slug) == ("Riverside Markets", "riverside-markets")
    assert (admin.name, admin.email, admin.role) == ("Maya Lindqvist", "maya@example.org", "admin")
    assert passwords.fits(PASSWORD, admin.password_hash, [PEPPER])
    assert is_signed_in(client)
    assert actions() == [("organization.created", "ok"), ("member.signed_in", "ok")]
    assert db.session.query(Booking).count() == 0


def test_setup_adds_sample_data_when_asked(client):
    client.post(SETUP, data=FORM | {"sample_data": "y"})

    assert db.session.query(Booking).count() > 100
    assert actions()[-1] == ("sample_data.made", "ok")


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("Europe/Stockholm", "Europe/Stockholm"),
        ("Asia/Calcutta", "Asia/Calcutta"),
        ("", "UTC"),
        ("../../etc/passwd", "UTC"),
        ("x" * 5_000, "UTC"),
    ],
)
def test_setup_takes_the_browsers_time_zone(client, sent, kept):
    client.post(SETUP, data=FORM | {"timezone": sent})

    assert db.session.query(Organization).one().timezone == kept


@pytest.mark.parametrize("code", ["", "?code=", "?code=wrong", "?code=%00", f"{SETUP[6:]}x"])
def test_setup_needs_its_code(client, code):
    for answer in (client.get(f"/setup{code}"), client.post(f"/setup{code}", data=FORM)):
        assert answer.status_code == 404
        assert "This set-up link doesn’t work" in answer.text
    assert db.session.query(Organization).count() == 0


def test_setup_works_once(app, client):
    client.post(SETUP, data=FORM)
    other = new_browser(app)

    assert other.get(SETUP).status_code == 404
    answer = other.post(SETUP, data=FORM | {"email": "eve@example.org"})

    assert answer.status_code == 404
    assert not is_signed_in(other)
    assert db.session.query(Member).count() == 1


def test_setup_twice_at_once_makes_one_organization(app, client):
    def call(email):
        browser = FlaskClient(app, app.response_class)
        return lambda: browser.post(SETUP, data=FORM | {"email": email}).status_code

    codes = both_at_once(call("maya@example.org"), call("eve@example.org"))

    assert sorted(codes) == [303, 404]
    assert db.session.query(Organization).count() == db.session.query(Member).count() == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("organization", ""),
        ("organization", "n" * 10_000),
        ("organization", "River\0side"),
        ("name", " "),
        ("name", OVERRIDE),
        ("name", "n" * 101),
        ("email", ""),
        ("email", "maya"),
        ("email", "maya\0@example.org"),
        ("email", f"{OVERRIDE}@example.org"),
        ("email", f"{'m' * 10_000}@example.org"),
        ("password", ""),
        ("password", "too short"),
        ("password", "aaaaaaaaaaaaaaaaaaaa"),
        ("password", "Riverside Markets Maya"),
        ("password", "n" * 257),
        ("password", "plum kettle orbit sandal\0"),
    ],
)
def test_setup_marks_what_is_wrong_and_keeps_what_was_typed(client, field, value):
    answer = client.post(SETUP, data=FORM | {field: value})

    assert answer.status_code == 422
    marked = re.findall(r'<p class="error" id="([a-z]+)-error"', answer.text)
    assert marked == [field]
    kept = {"organization", "name", "email"} - {field}
    assert all(f'value="{FORM[name]}"' in answer.text for name in kept)
    assert PASSWORD not in answer.text
    assert db.session.query(Organization).count() == 0


def test_setup_takes_right_to_left_names(client):
    names = {"organization": "سوق النهر", "name": "מאיה לינדקוויסט"}

    assert client.post(SETUP, data=FORM | names).status_code == 303

    assert db.session.query(Organization).one().name == "سوق النهر"
    assert "מאיה לינדקוויסט" in client.get("/admin/team").text


# Sign-in


def test_sign_in_page_tells_when_nobody_has_set_up_yet(client):
    assert "Open the set-up link" in client.get("/login").text
    factories.organization()
    assert "Open the set-up link" not in client.get("/login").text


def test_sign_in_begins_a_session_and_records_it(client):
    member = member_with_password(email="maya@example.org")

    answer = sign_in(client, "  MAYA@Example.ORG ", ip="192.0.2.7")

    assert (answer.status_code, answer.location) == (303, "/admin/api_keys")
    begun = db.session.query(SignInSession).one()
    assert (begun.member_id, begun.ip) == (member.id, "192.0.2.7")
    assert begun.user_agent.startswith("Werkzeug")
    event = db.session.query(AuditEvent).one()
    assert (event.action, event.member_name, event.ip) == ("member.signed_in", "Maya", "192.0.2.7")
    assert is_signed_in(client)


@pytest.mark.parametrize(
    ("values", "password"),
    [
        ({}, "not the password at all"),
        ({}, PASSWORD.upper()),
        ({"password_hash": None}, PASSWORD),
        ({"password_hash": "damaged"}, PASSWORD),
        ({"disabled_at": factories.clock.now()}, PASSWORD),
    ],
)
def test_sign_in_refuses_alike_and_records_it(client, values, password):
    member_with_password(email="maya@example.org", **values)

    answer = sign_in(client, "maya@example.org", password)
    unknown = sign_in(client, "nobody@example.org", password)

    assert answer.status_code == unknown.status_code == 422
    for page in (answer, unknown):
        assert "The email or the password is not right" in page.text
        assert password not in page.text
    assert 'value="maya@example.org"' in answer.text
    assert db.session.query(SignInSession).count() == 0
    assert actions() == [("member.sign_in_failed", "failed")]


@pytest.mark.parametrize(
    ("email", "password"),
    [
        ("", PASSWORD),
        ("maya@example.org", ""),
        ("\0", "\0"),
        ("m" * 15_000, PASSWORD),
        (OVERRIDE, OVERRIDE),
        ("maya@example.org", "p" * 15_000),
        ("مايا@example.org", "مايا"),
    ],
)
def test_sign_in_answers_odd_input_with_the_form(client, email, password):
    member_with_password(email="maya@example.org")

    answer = sign_in(client, email, password)

    assert answer.status_code == 422
    assert 'class="error"' in answer.text
    assert not is_signed_in(client)


def test_sign_in_without_fields_answers_with_the_form(client):
    answer = client.post("/login")

    assert answer.status_code == 422
    assert "Please type your email." in answer.text


@pytest.mark.parametrize(
    "address",
    ["/admin/team", "/admin/audit_log?key=3&q=a%20b", "/admin/api_keys/1#rename", "/admin/ü"],
)
def test_sign_in_goes_on_to_a_page_of_this_site(client, address):
    member_with_password(email="maya@example.org")

    page = client.get("/login", query_string={"next": address})
    assert 'name="next"' in page.text
    answer = sign_in(client, "maya@example.org", next=address)

    assert answer.status_code == 303
    assert answer.location.startswith("/admin/")
    assert answer.location.replace("%C3%BC", "ü") == address


@pytest.mark.parametrize(
    "address",
    [
        "https://evil.example",
        "//evil.example",
        "///evil.example",
        "/\\evil.example",
        "\\/evil.example",
        "\\\\evil.example",
        "/\t/evil.example",
        "/\n/evil.example",
        "\t//evil.example",
        " //evil.example",
        "/.//evil.example",
        "/admin//evil.example",
        "javascript:alert(1)",
        "data:text/html,x",
        "http:evil.example",
        "@evil.example",
        "/admin\r\nSet-Cookie: a=b",
        "/admin\0",
        "/\u202eadmin",
        "admin/team",
        "/login",
        "/login?next=/login",
        "/login/",
        "/logout",
        "",
    ],
)
def test_sign_in_leads_nowhere_else(client, address):
    member_with_password(email="maya@example.org")

    assert 'name="next"' not in client.get("/login", query_string={"next": address}).text
    answer = sign_in(client, "maya@example.org", next=address)
    again = client.get("/login", query_string={"next": address})

    assert (answer.status_code, answer.location) == (303, "/admin/api_keys")
    assert (again.status_code, again.location) == (303, "/admin/api_keys")


def test_a_page_that_needs_sign_in_is_opened_afterwards(client):
    member_with_password(email="maya@example.org")

    asked = client.get("/admin/team?x=1")
    assert (asked.status_code, asked.location) == (303, "/login?next=/admin/team?x%3D1")
    page = client.get(asked.location)
    wanted = re.search(r'name="next"[^>]*value="([^"]*)"', page.text)[1]

    assert sign_in(client, "maya@example.org", next=wanted).location == "/admin/team?x=1"


HERE = "http://localhost/admin/api_keys?status=all"


@pytest.mark.parametrize(
    ("method", "headers", "lost"),
    [
        ("POST", {"HX-Request": "true", "HX-Current-URL": HERE}, True),
        ("GET", {"HX-Request": "true", "HX-Current-URL": HERE}, False),  # a page that waits
        ("POST", {"Referer": HERE}, True),
    ],
)
def test_a_session_that_ends_in_between_says_why_and_leads_back(
    client, fake_clock: Clock, method, headers, lost
):
    member = member_with_password(email="maya@example.org")
    key, _ = factories.api_key(member.organization, creator=member)
    client.sign_in(member)
    fake_clock.advance(minutes=121)
    path = f"/admin/api_keys/{key.id}/{'revoke' if method == 'POST' else 'first_call'}"

    answer = client.open(path, method=method, headers=headers)

    db.session.refresh(key)
    assert key.works
    assert answer.status_code == (401 if "HX-Request" in headers else 303)
    page = client.get(answer.headers.get("HX-Redirect") or answer.location)
    assert "You were signed out after 2 hours without a click." in page.text
    assert ("What you did last was not done." in page.text) == lost
    assert "You were signed out after 2 hours" in sign_in(client, "maya@example.org", "wrong").text
    wanted = re.search(r'name="next"[^>]*value="([^"]*)"', page.text)[1]
    back = sign_in(client, "maya@example.org", next=wanted)
    assert back.location == "/admin/api_keys?status=all"
    client.post("/logout")
    assert "You were signed out after" not in client.get("/login").text


@pytest.mark.parametrize(
    ("headers", "path"),
    [
        ({"HX-Request": "true", "HX-Current-URL": "http://evil.example/admin/team"}, "/revoke"),
        ({"Referer": "http://evil.example/admin/team"}, "/revoke"),
        ({"Referer": "http://localhost/admin/api_keys/1/rename"}, "/rename"),  # no page to open
        ({"Referer": f"http://localhost/admin/api_keys?q=fm_org_{'a' * 38}"}, "/revoke"),
        ({}, "/revoke"),
    ],
)
def test_what_was_no_page_of_this_site_is_not_gone_back_to(
    client, fake_clock: Clock, headers, path
):
    client.sign_in(member_with_password())
    fake_clock.advance(minutes=121)
    answer = client.post(f"/admin/api_keys/1{path}", headers=headers)
    assert (answer.headers.get("HX-Redirect") or answer.location) == "/login?lost=yes"


def test_a_session_that_was_ended_says_so(client, fake_clock: Clock):
    member = member_with_password()
    assert "signed out" not in client.get("/login?lost=yes").text
    client.sign_in(member)
    db.session.query(SignInSession).update({"ended_at": fake_clock()})
    db.session.commit()
    fake_clock.advance(hours=3)
    assert "You were signed out. " in " ".join(client.get("/login").text.split()), "not idleness"
    fake_clock.advance(hours=-3)
    db.session.query(SignInSession).update({"ended_at": None})
    db.session.commit()
    for _ in range(13):
        fake_clock.advance(minutes=119)
        client.get("/admin/team")
    assert "You were signed out 24 hours after you signed in." in client.get("/login").text
    # Who presses Sign out then has what they wanted.
    assert client.post("/logout", headers={"Referer": HERE}).location.endswith("status%3Dall")


@pytest.mark.parametrize("path", ["/", "/admin"])
def test_the_front_door_leads_to_the_keys_or_to_sign_in(client, path):
    assert client.get(path).location.startswith("/login")
    client.sign_in(factories.member(factories.organization(), "viewer"))
    assert client.get(path).location == "/admin/api_keys"


def test_sign_in_takes_nothing_along_that_was_in_the_browser(client):
    member_with_password(email="maya@example.org")
    with client.session_transaction() as cookie:
        cookie["planted"] = "by someone else"
        cookie["csrf_token"] = "known to someone else"

    sign_in(client, "maya@example.org")

    with client.session_transaction() as cookie:
        assert "planted" not in cookie
        assert cookie.get("csrf_token") != "known to someone else"


def test_signed_in_people_stay_who_they_are(client):
    maya = member_with_password(email="maya@example.org")
    member_with_password(email="noor@example.org", name="Noor")
    client.sign_in(maya)

    assert sign_in(client, "noor@example.org").location == "/admin/api_keys"

    assert 'value="Maya"' in client.get("/admin/settings/account").text


@pytest.mark.parametrize("path", [SETUP, "/login"])
def test_pages_before_sign_in_are_kept_nowhere(client, path):
    assert client.get(path).headers["Cache-Control"] == "no-store"


# Throttling


def test_sign_in_is_slowed_down_across_processes(app, client, database_url, fake_clock: Clock):
    member_with_password(email="maya@example.org")
    member_with_password(email="noor@example.org", name="Noor")
    elsewhere = create_app(environ(database_url))
    elsewhere.config["WTF_CSRF_ENABLED"] = False
    browsers = [client, new_browser(elsewhere)]

    for number in range(10):
        wrong = sign_in(browsers[number % 2], "maya@example.org", f"guess number {number}")
        assert wrong.status_code == 422
    fake_clock.advance(minutes=5)

    for browser in browsers:
        answer = sign_in(browser, "Maya@example.org")
        assert answer.status_code == 429
        assert answer.headers["Retry-After"] == "600"
        assert "Please wait 10 minutes" in answer.text
        assert 'value="Maya@example.org"' in answer.text
        assert not is_signed_in(browser)
    # Others, and the same person from another place, still get in.
    assert sign_in(new_browser(app), "noor@example.org").status_code == 303
    assert sign_in(new_browser(app), "maya@example.org", ip="198.51.100.1").status_code == 303
    with elsewhere.app_context():
        db.engine.dispose()


def test_sign_in_is_possible_again_after_the_wait(client, fake_clock: Clock):
    member_with_password(email="maya@example.org")
    for number in range(11):
        answer = sign_in(client, "maya@example.org", f"guess number {number}")

    fake_clock.advance(seconds=int(answer.headers["Retry-After"]) - 1)
    late = sign_in(client, "maya@example.org")
    assert (late.status_code, late.headers["Retry-After"]) == (429, "1")
    assert "Please wait a minute." in late.text
    fake_clock.advance(seconds=1)

    assert sign_in(client, "maya@example.org").status_code == 303


def test_sign_in_forgets_wrong_tries_once_it_succeeds(app, client, fake_clock: Clock):
    member_with_password(email="maya@example.org")
    for _ in range(2):
        for number in range(9):
            sign_in(client, "maya@example.org", f"guess number {number}")
        assert sign_in(new_browser(app), "maya@example.org").status_code == 303


# Signing out, and stale forms


def test_sign_out_kills_a_copied_cookie(app, client):
    member_with_password(email="maya@example.org")
    sign_in(client, "maya@example.org")
    thief = new_browser(app)
    thief.set_cookie("convene", client.get_cookie("convene").value)
    assert is_signed_in(thief)

    answer = client.post("/logout")

    assert (answer.status_code, answer.location) == (303, "/login")
    assert "You are signed out." in client.get("/login").text
    assert not is_signed_in(client)
    assert not is_signed_in(thief)
    assert actions() == [("member.signed_in", "ok"), ("member.signed_out", "ok")]


def test_sign_out_is_a_post(client):
    client.sign_in(factories.member(factories.organization()))

    assert client.get("/logout").status_code == 405
    assert is_signed_in(client)


def test_stale_forms_change_nothing(strict_client):
    member_with_password(email="maya@example.org")

    for form in ({}, {"csrf_token": "stale"}):
        answer = strict_client.post(
            "/login", data={"email": "maya@example.org", "password": PASSWORD, **form}
        )
        assert answer.status_code == 400
        assert "This form is out of date" in answer.text
    assert db.session.query(SignInSession).count() == 0

    page = strict_client.get("/login").text
    token = re.search(r'name="csrf_token" value="([^"]+)"', page)[1]
    assert sign_in(strict_client, "maya@example.org", csrf_token=token).status_code == 303
    assert strict_client.post("/logout", data={"csrf_token": token}).status_code == 400
    assert is_signed_in(strict_client)


def test_stale_setup_form_makes_nothing(strict_client):
    assert strict_client.post(SETUP, data=FORM).status_code == 400
    assert db.session.query(Organization).count() == 0


# One-time links


@pytest.fixture
def invited(app: Flask) -> tuple[Member, str]:
    """Noor, who has no password yet, and the link that Maya made for her."""
    of = factories.organization()
    maya = factories.member(of, "admin", "Maya")
    noor = factories.member(of, "viewer", "Noor", email="noor@example.org")
    return noor, link_for(noor, by=maya)


def test_welcome_sets_the_password_and_signs_in(client, invited):
    noor, link = invited
    page = client.get(link)
    assert page.status_code == 200
    assert page.headers["Cache-Control"] == "no-store"
    assert "Noor" in page.text
    assert "noor@example.org" in page.text
    assert "Riverside Market" in page.text

    answer = client.post(link, data={"password": NEW_PASSWORD})

    assert (answer.status_code, answer.location) == (303, "/admin/api_keys")
    assert 'value="Noor"' in client.get("/admin/settings/account").text
    assert passwords.fits(NEW_PASSWORD, db.session.get(Member, noor.id).password_hash, [PEPPER])
    assert actions() == [
        ("member.invited", "ok"),
        ("member.password_set", "ok"),
        ("member.signed_in", "ok"),
    ]


def hashes() -> list[str | None]:
    return [member.password_hash for member in db.session.query(Member).order_by(Member.id)]


def refused(client: FlaskClient, link: str) -> bool:
    """Whether the link shows nothing and sets nothing."""
    before = hashes()
    answers = client.get(link), client.post(link, data={"password": "amber cello thicket pond"})
    return before == hashes() and all(
        answer.status_code == 404 and "used already or is too old" in answer.text
        for answer in answers
    )


def test_welcome_works_once(app, client, invited):
    _, link = invited
    client.post(link, data={"password": NEW_PASSWORD})

    assert refused(new_browser(app), link)
    assert is_signed_in(client)


def test_welcome_twice_at_once_sets_one_password(app, client, invited):
    noor, link = invited

    def call(password):
        browser = FlaskClient(app, app.response_class)
        return lambda: (browser.post(link, data={"password": password}).status_code, password)

    answers = both_at_once(call(NEW_PASSWORD), call("amber cello thicket pond"))

    assert sorted(code for code, _ in answers) == [303, 404]
    won = next(password for code, password in answers if code == 303)
    assert passwords.fits(won, db.session.get(Member, noor.id).password_hash, [PEPPER])


def test_welcome_ends_after_72_hours(client, fake_clock: Clock):
    of = factories.organization()
    noor = factories.member(of, "viewer", "Noor")
    link = link_for(noor, by=factories.member(of))

    fake_clock.advance(hours=71, minutes=59)
    assert client.get(link).status_code == 200
    fake_clock.advance(minutes=1)
    assert refused(client, link)


@pytest.mark.parametrize(
    "tamper",
    [
        lambda code: "",
        lambda code: code[:-1],
        lambda code: code + "A",
        lambda code: "x" + code,
        lambda code: code.swapcase(),
        lambda code: "\0",
        lambda code: "é",
        lambda code: "A" * 20_000,
    ],
)
def test_welcome_refuses_a_link_that_was_changed(client, invited, tamper):
    _, link = invited
    changed = tamper(link.removeprefix("/welcome?code="))

    assert client.get("/welcome", query_string={"code": changed}).status_code == 404
    answer = client.post(
        "/welcome", query_string={"code": changed}, data={"password": NEW_PASSWORD}
    )
    assert answer.status_code == 404
    assert db.session.query(SignInSession).count() == 0


def test_welcome_refuses_a_disabled_member(client, invited):
    noor, link = invited
    noor.disabled_at = factories.clock.now()
    db.session.commit()

    assert refused(client, link)


def test_welcome_wants_a_good_password(client, invited):
    _, link = invited

    for weak in ("", "short", "noor@example.org noor", "aaaaaaaaaaaaaaaaaaaaa", "p" * 10_000):
        answer = client.post(link, data={"password": weak})
        assert answer.status_code == 422
        assert 'id="password-error"' in answer.text
        assert "Noor" in answer.text
    assert client.get(link).status_code == 200
    assert not is_signed_in(client)


def test_a_forgotten_password_is_replaced_and_old_sessions_end(app, client):
    of = factories.organization()
    noor = member_with_password("manager", of=of, name="Noor", email="noor@example.org")
    link = link_for(noor, by=factories.member(of))
    old = new_browser(app)
    old.sign_in(noor)
    for number in range(11):
        answer = sign_in(client, "noor@example.org", f"guess number {number}")
    assert answer.status_code == 429

    assert "Choose a new password" in client.get(link).text
    assert client.post(link, data={"password": NEW_PASSWORD}).status_code == 303

    assert is_signed_in(client)
    assert not is_signed_in(old)
    assert sign_in(new_browser(app), "noor@example.org").status_code == 422
    assert sign_in(new_browser(app), "noor@example.org", NEW_PASSWORD).status_code == 303


def test_welcome_replaces_who_was_signed_in_here(app, client, invited):
    _, link = invited
    maya = db.session.query(Member).filter_by(name="Maya").one()
    client.sign_in(maya)
    copied = new_browser(app)
    copied.set_cookie("convene", client.get_cookie("convene").value)

    client.post(link, data={"password": NEW_PASSWORD})

    assert 'value="Noor"' in client.get("/admin/settings/account").text
    assert not is_signed_in(copied)
