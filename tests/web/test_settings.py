"""The settings pages: the organization, billing, one's own account."""

import re

import pytest

from convene_keys import clock, create_app
from convene_keys.accounts import passwords
from convene_keys.audit.user_agents import device
from convene_keys.db.session import db
from convene_keys.models import AuditEvent, Mail, Member, Organization
from tests import factories
from tests.conftest import Browser, Clock, new_browser
from tests.databases import PEPPER, environ

pytestmark = pytest.mark.on_sqlite

PASSWORD = "plum kettle orbit sandal"
NEW_PASSWORD = "violet anchor meadow biscuit"
ORGANIZATION = {
    "name": "Harbour Markets",
    "timezone": "Europe/Stockholm",
    "status": "draft",
    "rotate_months": "12",
}
BILLING = {
    "billing_email": "money@example.org",
    "plan": "plus",
    "stripe_account_id": "acct_1A2b3C4d5E6f7G8h",
}


def member_with_password(role: str = "admin") -> Member:
    hashed = passwords.hash_password(PASSWORD, [PEPPER])
    return factories.member(factories.organization(), role, "Maya", password_hash=hashed)


@pytest.fixture
def maya(client: Browser) -> Member:
    """An admin, signed in, whose password is PASSWORD."""
    maya = member_with_password()
    client.sign_in(maya)
    return maya


def events() -> list[tuple[str, dict]]:
    found = db.session.query(AuditEvent).order_by(AuditEvent.id)
    return [(event.action, event.detail) for event in found]


def marked(html: str) -> list[str]:
    return re.findall(r'id="([a-z_]+)-error"', html)


def organization() -> Organization:
    db.session.expire_all()
    return db.session.query(Organization).order_by(Organization.id).first()


# The organization


def test_pages_say_whether_mail_is_on(client, maya, app):
    for path, words in {
        "/admin/settings/organization": "Mail is off: nobody is told",
        "/admin/team/new": "Mail is off: tell them yourself",
        "/help/keys": "It is off here",
    }.items():
        assert words in client.get(path).text


def test_pages_say_where_mail_comes_from_and_what_is_lost(sqlite_url):
    on = {"MAIL_URL": "smtp://127.0.0.1:1", "MAIL_FROM": "keys@example.org"}
    app = create_app(environ(sqlite_url, **on))
    with app.app_context():
        client, maya = new_browser(app), member_with_password()
        client.sign_in(maya)
        page = client.get("/admin/settings/organization").text
        assert "It comes from keys@example.org." in page
        assert "Mail is off" not in page
        assert "delivered" not in page
        for of in (maya.organization_id, factories.organization().id):
            lost = Mail(organization_id=of, kind="test", recipient="a@example.org", subject="a")
            lost.text, lost.html, lost.given_up_at = "a", "a", clock.now()
            db.session.add(lost)
        db.session.commit()
        page = client.get("/admin/settings/organization").text
        assert "1 mail could not be delivered in the last week." in page
        assert "The link is not in it." in client.get("/admin/team/new").text
        assert "keys@example.org" in client.get("/help/keys").text
        db.session.remove()
        db.engine.dispose()


def test_organization_is_changed_and_recorded(client, maya):
    page = client.get("/admin/settings/organization").text
    assert 'value="Riverside Market"' in page
    assert '<option selected value="UTC">' in page

    answer = client.post("/admin/settings/organization", data=ORGANIZATION)

    assert (answer.status_code, answer.location) == (303, "/admin/settings/organization")
    changed = organization()
    assert (changed.name, changed.timezone, changed.status, str(changed.rotate_months)) == tuple(
        ORGANIZATION.values()
    )
    assert events() == [
        (
            "settings.organization_changed",
            {
                "name": {"before": "Riverside Market", "after": "Harbour Markets"},
                "timezone": {"before": "UTC", "after": "Europe/Stockholm"},
                "status": {"before": "live", "after": "draft"},
                "rotate_months": {"before": 6, "after": 12},
            },
        )
    ]
    page = client.get("/admin/settings/organization").text
    assert "The organization was saved." in page
    assert '<option selected value="Europe/Stockholm">' in page


def test_organization_saved_as_it_was_records_nothing(client, maya):
    form = {"name": "Riverside Market", "timezone": "UTC", "status": "live"}

    assert client.post("/admin/settings/organization", data=form).status_code == 303
    assert client.post("/admin/settings/organization").status_code == 303

    assert events() == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "n" * 10_000),
        ("name", "Har\0bour"),
        ("name", "Harbour\u202e"),
        ("timezone", "Mars/Olympus"),
        ("timezone", "../../etc/passwd"),
        ("timezone", "\0"),
        ("timezone", "Factory"),
        ("timezone", ""),
        ("rotate_months", "0"),
        ("rotate_months", "25"),
        ("rotate_months", "six"),
        ("rotate_months", "9" * 9_000),
        ("rotate_months", ""),
        ("status", "closed"),
        ("status", ""),
    ],
)
def test_organization_marks_what_is_wrong_and_keeps_the_rest(client, maya, field, value):
    answer = client.post("/admin/settings/organization", data=ORGANIZATION | {field: value})

    assert answer.status_code == 422
    assert marked(answer.text) == [field]
    assert ('value="Harbour Markets"' in answer.text) is (field != "name")
    assert organization().name == "Riverside Market"
    assert events() == []


def test_a_draft_organizations_keys_are_refused(client, maya):
    _, secret = factories.api_key(maya.organization, creator=maya)
    headers = {"Authorization": f"Bearer {secret}"}
    assert client.get("/api/v1/admin/me", headers=headers).status_code == 200

    client.post("/admin/settings/organization", data=ORGANIZATION)

    refused = client.get("/api/v1/admin/me", headers=headers)
    assert (refused.status_code, refused.json["code"]) == (403, "organization_draft")


# Billing


def test_billing_is_changed_and_recorded(client, maya):
    assert client.get("/admin/settings/billing").status_code == 200

    answer = client.post("/admin/settings/billing", data=BILLING)

    assert (answer.status_code, answer.location) == (303, "/admin/settings/billing")
    changed = organization()
    assert {name: getattr(changed, name) for name in BILLING} == BILLING
    assert events() == [
        (
            "settings.billing_changed",
            {
                "billing_email": {"before": None, "after": "money@example.org"},
                "plan": {"before": "free", "after": "plus"},
                "stripe_account_id": {"before": None, "after": "acct_1A2b3C4d5E6f7G8h"},
            },
        )
    ]
    assert 'value="acct_1A2b3C4d5E6f7G8h"' in client.get("/admin/settings/billing").text


def test_billing_can_be_emptied(client, maya):
    client.post("/admin/settings/billing", data=BILLING)
    client.post("/admin/settings/billing", data={"billing_email": "", "stripe_account_id": " "})

    changed = organization()
    assert (changed.billing_email, changed.plan, changed.stripe_account_id) == (None, "plus", None)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("billing_email", "money"),
        ("billing_email", "money\0@example.org"),
        ("billing_email", "m" * 10_000 + "@example.org"),
        ("plan", "golden"),
        ("stripe_account_id", "acct_"),
        ("stripe_account_id", "1A2b3C4d5E6f7G8h"),
        ("stripe_account_id", "acct_1A2b\u202e3C4d"),
        ("stripe_account_id", "acct_1A2b\0"),
        ("stripe_account_id", "acct_" + "1" * 10_000),
    ],
)
def test_billing_marks_what_is_wrong_and_keeps_the_rest(client, maya, field, value):
    answer = client.post("/admin/settings/billing", data=BILLING | {field: value})

    assert answer.status_code == 422
    assert marked(answer.text) == [field]
    kept = {"billing_email", "stripe_account_id"} - {field}
    assert all(f'value="{BILLING[name]}"' in answer.text for name in kept)
    assert organization().plan == "free"
    assert events() == []


@pytest.mark.parametrize("role", ["manager", "viewer"])
def test_organization_and_billing_are_for_admins(client, role):
    client.sign_in(member_with_password(role))

    for area, form in (("organization", ORGANIZATION), ("billing", BILLING)):
        path = f"/admin/settings/{area}"
        assert client.get(path).status_code == 403
        assert client.post(path, data=form).status_code == 403
        assert path not in client.get("/admin/settings/account").text
    assert (organization().name, organization().plan) == ("Riverside Market", "free")
    assert events() == []


def test_settings_reach_ones_own_organization_alone(client, maya):
    other = factories.organization("Hill Markets", billing_email="hill@example.org")

    assert "hill@example.org" not in client.get("/admin/settings/billing").text
    client.post("/admin/settings/billing", data=BILLING)
    client.post("/admin/settings/organization", data=ORGANIZATION)

    db.session.refresh(other)
    assert (other.name, other.billing_email, other.status) == (
        "Hill Markets",
        "hill@example.org",
        "live",
    )


@pytest.mark.parametrize(
    ("path", "form"),
    [
        ("organization", ORGANIZATION),
        ("billing", BILLING),
        ("account/name", {"name": "Maya L."}),
        ("account/password", {"current_password": PASSWORD, "new_password": NEW_PASSWORD}),
        ("account/sessions", {}),
    ],
)
def test_stale_forms_change_nothing(strict_client, path, form):
    maya = member_with_password()
    strict_client.sign_in(maya)

    for token in ({}, {"csrf_token": "stale"}):
        answer = strict_client.post(f"/admin/settings/{path}", data=form | token)
        assert answer.status_code == 400
        assert "This form is out of date" in answer.text
    db.session.refresh(maya)
    assert (organization().name, maya.name) == ("Riverside Market", "Maya")
    assert passwords.fits(PASSWORD, maya.password_hash, [PEPPER])
    assert events() == []


# One's own account


@pytest.mark.parametrize("role", ["admin", "manager", "viewer"])
def test_everybody_changes_their_own_name(client, role):
    client.sign_in(member_with_password(role))

    answer = client.post("/admin/settings/account/name", data={"name": " مايا  L. "})

    assert (answer.status_code, answer.location) == (303, "/admin/settings/account")
    assert 'value="مايا L."' in client.get("/admin/settings/account").text
    detail = {"name": {"before": "Maya", "after": "مايا L."}}
    assert events() == [("member.renamed", detail)]


@pytest.mark.parametrize("name", ["", "n" * 10_000, "May\0a", "Maya\u202e"])
def test_name_is_marked_when_wrong(client, maya, name):
    answer = client.post("/admin/settings/account/name", data={"name": name})

    assert answer.status_code == 422
    assert marked(answer.text) == ["name"]
    assert events() == []


def test_password_change_ends_the_other_sessions(app, client, maya):
    other = new_browser(app)
    other.sign_in(maya)

    answer = client.post(
        "/admin/settings/account/password",
        data={"current_password": PASSWORD, "new_password": NEW_PASSWORD},
    )

    assert (answer.status_code, answer.location) == (303, "/admin/settings/account")
    assert "Your password was changed." in client.get("/admin/settings/account").text
    assert other.get("/admin/settings/account").location.startswith("/login")
    db.session.refresh(maya)
    assert passwords.fits(NEW_PASSWORD, maya.password_hash, [PEPPER])
    assert events() == [("member.password_changed", {})]


@pytest.mark.parametrize(
    ("current", "new", "field"),
    [
        ("", NEW_PASSWORD, "current_password"),
        ("not the password at all", NEW_PASSWORD, "current_password"),
        (PASSWORD, "", "new_password"),
        (PASSWORD, "too short", "new_password"),
        (PASSWORD, "Riverside Market Maya", "new_password"),
        (PASSWORD, "p" * 10_000, "new_password"),
        (PASSWORD, f"{NEW_PASSWORD}\0", "new_password"),
    ],
)
def test_password_change_marks_what_is_wrong(app, client, maya, current, new, field):
    other = new_browser(app)
    other.sign_in(maya)

    answer = client.post(
        "/admin/settings/account/password",
        data={"current_password": current, "new_password": new},
    )

    assert answer.status_code == 422
    assert marked(answer.text) == [field]
    assert PASSWORD not in answer.text
    assert NEW_PASSWORD not in answer.text
    assert other.get("/admin/settings/account").status_code == 200
    db.session.refresh(maya)
    assert passwords.fits(PASSWORD, maya.password_hash, [PEPPER])
    assert ("member.password_changed", {}) not in events()


def test_password_change_is_slowed_down_like_sign_in(client, maya, fake_clock: Clock):
    form = {"current_password": "not the password at all", "new_password": NEW_PASSWORD}
    for _ in range(10):
        assert client.post("/admin/settings/account/password", data=form).status_code == 422

    form["current_password"] = PASSWORD
    answer = client.post("/admin/settings/account/password", data=form)

    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "900")


def test_account_lists_ones_own_living_sessions(app, client, maya, fake_clock: Clock):
    phone = "Mozilla/5.0 (iPhone; CPU iPhone OS 17_0 like Mac OS X) Version/17.0 Safari/604.1"
    seen = fake_clock.moment.replace(hour=11, minute=45)
    for values in (
        {"user_agent": phone, "ip": "192.0.2.7", "last_seen_at": seen},
        {"user_agent": "Mozilla/5.0 (X11; Linux) Firefox/120", "ended_at": seen},
        {
            "user_agent": "Mozilla/5.0 (Windows NT) Firefox/120",
            "last_seen_at": seen.replace(hour=1),
        },
    ):
        begun, _ = factories.session(maya)
        for name, value in values.items():
            setattr(begun, name, value)
    stranger, _ = factories.session(factories.member(maya.organization))
    stranger.user_agent = "Mozilla/5.0 (Android) Firefox/120"
    db.session.commit()

    page = client.get("/admin/settings/account").text

    assert "Safari on iPhone" in page
    assert "192.0.2.7" in page
    assert "15 minutes ago" in page
    assert page.count("This one") == 1
    assert all(name not in page for name in ("on Linux", "on Windows", "on Android"))


def test_signing_out_everywhere_else_keeps_this_session(app, client, maya):
    other, stranger = new_browser(app), new_browser(app)
    other.sign_in(maya)
    stranger.sign_in(factories.member(maya.organization))
    assert "Sign out everywhere else" in client.get("/admin/settings/account").text

    answer = client.post("/admin/settings/account/sessions")

    assert (answer.status_code, answer.location) == (303, "/admin/settings/account")
    assert "You are signed in nowhere else." in client.get("/admin/settings/account").text
    assert other.get("/admin/team").location.startswith("/login")
    assert stranger.get("/admin/team").status_code == 200
    assert events() == [("member.sessions_ended", {})]


@pytest.mark.parametrize("path", ["organization", "billing", "account"])
def test_settings_need_a_sign_in(client, path):
    answer = client.get(f"/admin/settings/{path}")

    assert (answer.status_code, answer.location) == (303, f"/login?next=/admin/settings/{path}")


@pytest.mark.parametrize(
    ("user_agent", "words"),
    [
        (
            (
                "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) "
                "Chrome/126.0.0.0 Safari/537.36 Edg/126.0.0.0"
            ),
            "Edge on Windows",
        ),
        (
            (
                "Mozilla/5.0 (Linux; Android 14) AppleWebKit/537.36 (KHTML, like Gecko) "
                "Chrome/126.0.0.0 Mobile Safari/537.36"
            ),
            "Chrome on Android",
        ),
        (
            (
                "Mozilla/5.0 (Macintosh; Intel Mac OS X 14_5) AppleWebKit/605.1.15 (KHTML, like Gecko) "
                "Version/17.5 Safari/605.1.15"
            ),
            "Safari on Mac",
        ),
        (
            "Mozilla/5.0 (X11; Linux x86_64; rv:127.0) Gecko/20100101 Firefox/127.0",
            "Firefox on Linux",
        ),
        ("Mozilla/5.0 (iPhone; CPU iPhone OS 17_5) CriOS/126.0", "Chrome on iPhone"),
        ("Firefox/127.0", "Firefox on an unknown device"),
        ("Windows", "Unknown browser on Windows"),
        ("curl/8.5", "Unknown device"),
        ("", "Unknown device"),
        (None, "Unknown device"),
    ],
)
def test_device_is_named_in_plain_words(user_agent, words):
    assert device(user_agent) == words


# Mail


def test_member_switches_the_weekly_digest_off_and_on(client, maya):
    for sent, wanted in (({}, False), ({"weekly_digest": "y"}, True)):
        answer = client.post("/admin/settings/account/mail", data=sent)
        assert (answer.status_code, answer.location) == (303, "/admin/settings/account")
        assert db.session.get(Member, maya.id).weekly_digest is wanted
        assert events()[-1] == (
            "member.mail_changed",
            {"weekly_digest": {"before": not wanted, "after": wanted}},
        )
    client.post("/admin/settings/account/mail", data={"weekly_digest": "y"})
    assert len(events()) == 2


@pytest.mark.parametrize(
    ("role", "offered"), [("admin", True), ("manager", True), ("viewer", False)]
)
def test_digest_is_offered_to_whom_it_is_sent(sqlite_url, role, offered):
    on = {"MAIL_URL": "smtp://127.0.0.1:1", "MAIL_FROM": "keys@example.org"}
    app = create_app(environ(sqlite_url, **on))
    with app.app_context():
        client = new_browser(app)
        client.sign_in(member_with_password(role))
        assert ("A digest each Monday" in client.get("/admin/settings/account").text) is offered
        db.session.remove()
        db.engine.dispose()
