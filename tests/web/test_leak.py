"""The walk-through after a leak: revoke, replace, see what the key did, report it."""

import re

import pytest

from convene_keys.audit import Actor, Origin, Target, record
from convene_keys.events import Action, Outcome
from convene_keys.extensions import db, transaction
from convene_keys.models import ApiKey, AuditEvent
from tests import factories as make
from tests.conftest import Browser, Clock

HOME, STRANGER = Origin("192.0.2.7", "Claude/1"), Origin("203.0.113.66", "curl/8", "r6")


@pytest.fixture
def maya(client: Browser, hands: Clock):
    member = make.member(make.organization(), "admin", "Maya")
    make.market_data(member.organization)
    client.sign_in(member)
    return member


@pytest.fixture
def key(maya) -> ApiKey:
    return make.api_key(maya.organization, "Website", creator=maya, tool="developer")[0]


def act(key: ApiKey, action: Action, origin: Origin = HOME, number: int | None = None, **more):
    target = number and Target("booking", number, f"booking {number}")
    with transaction() as session:
        record(session, Actor.of_key(key, origin), action, target, **more)


def events() -> list[AuditEvent]:
    db.session.rollback()
    return db.session.query(AuditEvent).order_by(AuditEvent.id).all()


def walk(client: Browser, key: ApiKey, step: str = "", **form: str):
    return client.post(f"/admin/api_keys/{key.id}/leak{step}", data=form)


def words(client: Browser, key: ApiKey, **query: str) -> str:
    page = client.get(f"/admin/api_keys/{key.id}/leak", query_string=query).text
    return " ".join(re.sub(r"<[^>]+>", " ", page).split())


def test_first_step_revokes_at_once_and_opens_the_incident(client, maya, key):
    assert "Don’t wait until you are sure" in words(client, key)
    answer = walk(client, key, where="In a shared document")
    assert (answer.status_code, answer.location) == (303, f"/admin/api_keys/{key.id}/leak")
    db.session.refresh(key)
    assert key.status == "revoked"
    assert key.leaked_at == key.revoked_at
    revoked, reported = events()
    assert (revoked.action, reported.action) == ("key.revoked", "key.leak_reported")
    assert (reported.member_name, reported.detail) == ("Maya", {"where": "In a shared document"})
    assert f"Incident {reported.id}" in words(client, key)
    walk(client, key)
    assert len(events()) == 2, "one incident, however often it is reported"


def test_key_that_was_revoked_before_can_still_be_reported(client, maya, key):
    client.post(f"/admin/api_keys/{key.id}/revoke")
    walk(client, key)
    assert [e.action for e in events()] == ["key.revoked", "key.leak_reported"]


def test_a_key_as_the_place_is_not_kept(client, maya, key):
    token = make.api_key(maya.organization, "Other")[1]
    answer = walk(client, key, where=f"at {token}")
    assert answer.status_code == 400
    assert events() == []


@pytest.mark.parametrize("where", ["x" * 301, "a\0b"])
def test_bad_place_marks_the_field_and_changes_nothing(client, maya, key, where):
    answer = walk(client, key, where=where)
    assert answer.status_code == 422
    assert 'id="where-error"' in answer.text
    assert events() == []


def test_second_step_makes_one_successor_with_the_same_powers(client, maya, key):
    assert walk(client, key, "/replace").status_code == 409  # not before the first
    walk(client, key)
    answer = walk(client, key, "/replace")
    assert answer.status_code == 200
    assert 'id="new-key"' in answer.text
    assert answer.headers["Cache-Control"] == "no-store"
    new = db.session.query(ApiKey).filter_by(predecessor_id=key.id).one()
    assert (new.name, new.tool, new.scope, new.works) == ("Website", "developer", key.scope, True)
    assert walk(client, key, "/replace").status_code == 409
    assert "has taken its place" in words(client, key)


def test_replacement_whose_name_is_taken_says_so(client, maya, key):
    walk(client, key)
    make.api_key(maya.organization, "Website")
    answer = walk(client, key, "/replace")
    assert answer.status_code == 422
    assert "Another active key has this name" in answer.text


def test_third_step_groups_what_it_did_since_a_day(client, maya, key, hands: Clock):
    act(key, Action.BOOKING_LISTED)
    hands.advance(days=20)
    client.sign_in(maya)
    for number in (1, 2):
        act(key, Action.BOOKING_APPROVED, STRANGER, number)
    act(key, Action.BOOKING_DECLINED, STRANGER, 3, outcome=Outcome.DENIED)
    act(make.api_key(maya.organization, "Other")[0], Action.VENDOR_LISTED)

    told = words(client, key)
    assert "Approved a booking 2 203.0.113.66 curl/8" in told
    assert "Declined a booking refused or failed 1 203.0.113.66" in told
    assert "Listed bookings 1 192.0.2.7 Claude/1" in told
    assert "Listed vendors" not in told
    later = words(client, key, since="2026-12-01")
    assert "Listed bookings" not in later
    assert "Approved a booking 2" in later
    assert "It did nothing since then." in words(client, key, since="2027-01-01")
    bad = client.get(f"/admin/api_keys/{key.id}/leak?since=yesterday")
    assert bad.status_code == 400


def test_changes_are_listed_with_the_way_to_undo_them(client, maya, key):
    assert "What it changed" not in words(client, key)
    act(key, Action.BOOKING_LISTED)
    assert "Nothing: it only read." in words(client, key)
    for number, action in enumerate(
        (Action.BOOKING_APPROVED, Action.BOOKING_DECLINED, Action.BOOKING_CANCELLED), 1
    ):
        act(key, action, STRANGER, number)
    act(key, Action.APPLICATION_UPDATED, STRANGER, 1)
    act(key, Action.BOOKING_APPROVED, STRANGER, 9, outcome=Outcome.DENIED)  # which changed nothing
    page = client.get(f"/admin/api_keys/{key.id}/leak").text
    links = set(re.findall(r'(?:href|action)="(/admin/(?:bookings|applications)/[^"]+)"', page))
    assert links == {
        "/admin/bookings/1/cancel",
        "/admin/bookings/2/approve",
        "/admin/applications/1/decide",
    }
    for link in links - {"/admin/bookings/2/approve"}:
        assert client.get(link).status_code == 200
    assert "ask the vendor to book again" in page


def test_report_has_everything_but_the_secret(client, maya, key, hands: Clock):
    walk(client, make.api_key(maya.organization, "Other")[0])  # another incident
    act(key, Action.BOOKING_APPROVED, STRANGER, 1)
    hands.advance(hours=1)
    client.sign_in(maya)
    walk(client, key, where="In a chat")
    walk(client, key, "/replace")
    answer = client.get(f"/admin/api_keys/{key.id}/leak/report.txt")
    assert answer.mimetype == "text/plain"
    assert "attachment" in answer.headers["Content-Disposition"]
    assert f"incident {events()[-2].id}" in answer.text
    for part in ("Riverside Market", "Website", key.hint, "In a chat", "by Maya", "203.0.113.66"):
        assert part in answer.text
    assert "approved booking 1" in answer.text
    assert "<" not in answer.text
    assert not re.search(r"fm_org_[0-9A-Za-z]{38}", answer.text)


def test_who_may_walk_through(client, maya, key):
    noor = make.member(maya.organization, "viewer", "Noor")
    client.sign_in(noor)
    assert client.get(f"/admin/api_keys/{key.id}/leak").status_code == 403
    assert walk(client, key).status_code == 403
    client.sign_in(make.member(make.organization("Elsewhere"), "admin"))
    for step in ("", "/replace"):
        assert walk(client, key, step).status_code == 404
    assert client.get(f"/admin/api_keys/{key.id}/leak/report.txt").status_code == 404
    assert events() == []


def test_after_half_an_hour_only_the_new_key_needs_the_password(client, maya, key, hands: Clock):
    hands.advance(minutes=31)
    assert walk(client, key).status_code == 303
    answer = walk(client, key, "/replace")
    assert answer.status_code == 422
    assert answer.text.count('name="current_password"') == 1
