"""What a new key is given beforehand, and how its end and its rights are changed later."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from flask.testing import FlaskClient

from convene_keys.accounts import passwords
from convene_keys.db.session import db
from convene_keys.models import ApiKey, AuditEvent, Member
from tests import factories
from tests.conftest import Browser, Clock
from tests.databases import PEPPER

pytestmark = pytest.mark.on_sqlite

HTMX = {"HX-Request": "true"}
PASSWORD = "correct horse battery staple"
ENDS = datetime(2027, 2, 10, 22, 59, 59, tzinfo=UTC)  # the end of the day in Stockholm


@pytest.fixture
def maya(client: Browser, fake_clock: Clock) -> Member:
    """An admin, signed in; it is noon of 24 November."""
    hashed = passwords.hash_password(PASSWORD, [PEPPER])
    member = factories.member(
        factories.organization(timezone="Europe/Stockholm"), password_hash=hashed
    )
    client.sign_in(member)
    return member


@pytest.fixture
def key(maya: Member) -> ApiKey:
    return factories.api_key(maya.organization, creator=maya, scope="read", expires_at=ENDS)[0]


def edit(client: FlaskClient, key: ApiKey, **form: str):  # type: ignore[no-untyped-def]
    return client.post(f"/admin/api_keys/{key.id}/edit", data=form)


def changes() -> list[tuple[str, dict[str, str]]]:
    db.session.rollback()
    return [(event.action, event.detail) for event in db.session.query(AuditEvent)]


def words(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


@pytest.mark.parametrize(
    ("months", "ends"), [(6, "In 6 months, on 24 May 2027"), (4, "In 4 months, on 24 Mar 2027")]
)
def test_a_new_key_reads_and_ends_when_it_is_to_be_replaced(
    client: Browser, maya: Member, months: int, ends: str
) -> None:
    maya.organization.rotate_months = months
    db.session.commit()
    html = " ".join(client.get("/admin/api_keys/new").text.split())
    assert 'name="scope" value="read" required checked' in html
    chosen = re.search(r'<option selected value="(\d+)">([^<]+)</option>', html)
    assert chosen
    assert chosen[2] == ends
    assert '<option value="">Never</option>' in html
    created = client.post(
        "/admin/api_keys", data={"name": "Claude", "expires_in_days": chosen[1], "scope": "read"}
    )
    assert ends.partition(" on ")[2] in words(created.text)


@pytest.mark.parametrize(
    ("form", "recorded"),
    [
        ({"expires_on": "2027-01-31"}, {"after": "2027-01-31T22:59:59Z"}),
        ({"expires_on": "2027-06-30"}, {"after": "2027-06-30T21:59:59Z"}),
        ({"expires_on": "2026-11-24"}, {"after": "2026-11-24T22:59:59Z"}),
        ({"expires_on": ""}, {}),
    ],
)
def test_the_end_is_changed_to_the_last_moment_of_a_day(
    client: Browser, key: ApiKey, form: dict[str, str], recorded: dict[str, str]
) -> None:
    assert edit(client, key, **form).status_code == 303
    action = "key.expiry_changed" if recorded else "key.expiry_removed"
    assert changes() == [(action, {"before": "2027-02-10T22:59:59Z", **recorded})]


def test_rights_are_changed_there_and_back(client: Browser, key: ApiKey) -> None:
    edit(client, key, scope="read_write")
    edit(client, key, scope="read")
    assert changes() == [
        ("key.widened", {"before": "read", "after": "read_write"}),
        ("key.narrowed", {"before": "read_write", "after": "read"}),
    ]


def test_what_stays_as_it_is_is_not_recorded(client: Browser, key: ApiKey) -> None:
    assert edit(client, key).status_code == 303
    assert edit(client, key, expires_on="2027-02-10", scope="read").status_code == 303
    noon = ENDS.replace(hour=11)  # as of one that ends after so many days
    other, _ = factories.api_key(key.organization, "Other", scope="read", expires_at=noon)
    assert edit(client, other, expires_on="2027-02-10", scope="read").status_code == 303
    assert changes() == []
    assert db.session.get_one(ApiKey, key.id).expires_at == ENDS
    assert db.session.get_one(ApiKey, other.id).expires_at == noon


def test_htmx_gets_the_page_anew_which_says_what_is_so_now(client: Browser, key: ApiKey) -> None:
    address = f"/admin/api_keys/{key.id}/edit"
    form = {"expires_on": "", "scope": "read_write"}
    answer = client.post(address, headers=HTMX, data=form)
    assert answer.status_code == 200
    assert "<html" not in answer.text
    assert "Ends Never" in words(answer.text)
    assert "Approve, decline and cancel bookings" in answer.text
    assert "has no end date" in answer.headers["HX-Trigger"]


@pytest.mark.parametrize(
    "form", [{"expires_on": "2027-02-11"}, {"expires_on": ""}, {"scope": "read_write"}]
)
def test_more_needs_the_password_when_it_was_given_too_long_ago(
    client: Browser, key: ApiKey, fake_clock: Clock, form: dict[str, str]
) -> None:
    fake_clock.advance(minutes=31)
    assert 'name="current_password"' not in client.get(f"/admin/api_keys/{key.id}").text
    for wrong in ({}, {"current_password": "wrong"}):
        answer = edit(client, key, **form, **wrong)
        assert answer.status_code == 422
        assert 'id="current_password-error"' in answer.text
    assert {action for action, _ in changes()} <= {"member.sign_in_failed"}
    assert edit(client, key, **form, current_password=PASSWORD).status_code == 303
    assert len(changes()) == 2


def test_less_needs_no_password(client: Browser, key: ApiKey, fake_clock: Clock) -> None:
    fake_clock.advance(minutes=31)
    assert edit(client, key, expires_on="2027-02-09").status_code == 303
    key.scope = "read_write"
    db.session.commit()
    assert edit(client, key, scope="read").status_code == 303
    assert [action for action, _ in changes()] == ["key.expiry_changed", "key.narrowed"]


@pytest.mark.parametrize(
    ("form", "field"),
    [
        ({"expires_on": "2026-11-23"}, "expires_on"),
        ({"expires_on": "2036-11-23"}, "expires_on"),
        ({"expires_on": "0001-01-01"}, "expires_on"),
        ({"expires_on": "9999-12-31"}, "expires_on"),
        ({"expires_on": "soon"}, "expires_on"),
        ({"scope": "everything"}, "scope"),
    ],
)
def test_what_cannot_be_is_said_on_its_field(
    client: Browser, key: ApiKey, form: dict[str, str], field: str
) -> None:
    answer = edit(client, key, **form)
    assert answer.status_code == 422
    assert f'id="{field}-error"' in answer.text
    assert changes() == []


def test_where_only_admins_make_keys_a_manager_can_give_none_more(
    client: Browser, maya: Member, key: ApiKey
) -> None:
    client.sign_in(factories.member(maya.organization, "manager", "Noor"))
    maya.organization.key_makers = "admins"
    db.session.commit()
    for form in ({"expires_on": ""}, {"scope": "read_write"}):
        assert edit(client, key, **form).status_code == 403
    assert changes() == []
    assert edit(client, key, expires_on="2027-01-01").status_code == 303


def test_who_may_not_manage_keys_changes_nothing(client: Browser, maya: Member) -> None:
    theirs, _ = factories.api_key(factories.organization())
    assert edit(client, theirs).status_code == edit(client, ApiKey(id=10**9)).status_code == 404
    mine, _ = factories.api_key(maya.organization)
    client.sign_in(factories.member(maya.organization, "viewer"))
    assert edit(client, mine, expires_on="2027-01-01").status_code == 403
    assert "/edit" not in client.get(f"/admin/api_keys/{mine.id}").text


def test_a_key_that_has_ended_or_was_rotated_stays_as_it_is(
    client: Browser, key: ApiKey, fake_clock: Clock
) -> None:
    client.post(f"/admin/api_keys/{key.id}/rotate")
    before = changes()
    for said in ("This key was rotated", "can’t be brought back"):
        answer = edit(client, key, expires_on="2027-03-01")
        assert answer.status_code == 409
        assert said in answer.text
        fake_clock.advance(days=1)
        client.sign_in(key.creator)
    assert changes() == before
    ended, _ = factories.api_key(key.organization, "Trial", expires_at=fake_clock())
    assert "can’t be brought back" in client.get(f"/admin/api_keys/{ended.id}").text


def test_the_check_up_shows_the_day_of_each_key_and_gives_it(
    client: Browser, maya: Member, fake_clock: Clock
) -> None:
    """All different, none before half of the organization's months, and none after them."""
    ids = [factories.api_key(maya.organization, f"Key {n}", creator=maya)[0].id for n in range(40)]
    html = client.get("/admin/checkup/endless").text
    shown = dict(
        re.findall(
            r'value="(\d+)"(?:(?!</label>).)*?ends <time datetime="([^"]+)"', html, re.DOTALL
        )
    )
    assert len(shown) == len(set(shown.values())) == 40
    client.post("/admin/checkup/endless", data={"key": ids})
    db.session.rollback()
    for key in db.session.query(ApiKey):
        assert (
            fake_clock() + timedelta(days=90) < key.expires_at < fake_clock() + timedelta(days=182)
        )
        assert shown[str(key.id)] == key.expires_at.isoformat().replace("+00:00", "Z")
