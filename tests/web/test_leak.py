"""The walk-through after a leak: revoke, replace, see what the key did, report it."""

import re

import pytest

from convene_keys.audit.actions import Action
from convene_keys.audit.log import Actor, Origin, Target, record
from convene_keys.db.session import db, transaction
from convene_keys.errors import Problem
from convene_keys.models import ApiKey, AuditEvent, Outcome
from tests import factories
from tests.conftest import Browser, Clock

pytestmark = pytest.mark.on_sqlite

HOME, STRANGER = Origin("192.0.2.7", "Claude/1"), Origin("203.0.113.66", "curl/8", "r6")


@pytest.fixture
def maya(client: Browser, fake_clock: Clock):
    member = factories.member(factories.organization(), "admin", "Maya")
    factories.market_data(member.organization)
    client.sign_in(member)
    return member


@pytest.fixture
def key(maya) -> ApiKey:
    return factories.api_key(maya.organization, "Website", creator=maya, tool="developer")[0]


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
    token = factories.api_key(maya.organization, "Other")[1]
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
    again = walk(client, key, "/replace")
    assert (again.status_code, again.location) == (303, f"/admin/api_keys/{new.id}")
    assert db.session.query(ApiKey).filter_by(predecessor_id=key.id).count() == 1
    assert "has taken its place" in words(client, key)


def test_replacement_whose_name_is_taken_says_so(client, maya, key):
    walk(client, key)
    factories.api_key(maya.organization, "Website")
    answer = walk(client, key, "/replace")
    assert answer.status_code == 422
    assert "Another active key has this name" in answer.text


def test_third_step_groups_what_it_did_since_a_day(client, maya, key, fake_clock: Clock):
    act(key, Action.BOOKING_LISTED)
    fake_clock.advance(days=20)
    client.sign_in(maya)
    for number in (1, 2):
        act(key, Action.BOOKING_APPROVED, STRANGER, number)
    act(key, Action.BOOKING_DECLINED, STRANGER, 3, outcome=Outcome.DENIED)
    act(factories.api_key(maya.organization, "Other")[0], Action.VENDOR_LISTED)

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


@pytest.fixture
def thief(maya):
    """Acts with the secret of another key of Maya's organization; gives that key and the way."""
    key, secret = factories.api_key(maya.organization, "Leaked", creator=maya)

    def call(operation: str, origin: Origin = STRANGER, **values):
        factories.call(secret, operation, origin, **values)
        return events()[-1]

    return key, call


def changes(client: Browser, key: ApiKey) -> list[str]:
    """The lines of what it changed, each with what can be done about it."""
    page = client.get(f"/admin/api_keys/{key.id}/leak").text
    part = page.partition('id="changes"')[2].partition("All its calls")[0]
    return [
        " ".join(re.sub(r"<[^>]+>", " ", row).split())
        for row in re.findall(r"(?s)<tr.*?</tr>", part)
    ]


def test_a_sentence_sums_up_and_changes_come_before_reads(client, maya, thief):
    key, call = thief
    for _ in range(64):
        call("list_bookings")
    assert "64 reads, always from the same address." in words(client, key)
    call("approve_booking", id=1)
    call("approve_booking", id=1)  # which changed nothing
    told = words(client, key)
    assert "1 change and 65 reads" not in told
    assert "1 change and 64 reads, always from the same address." in told
    assert told.index("Approved booking 1") < told.index("Listed bookings 64")
    call("list_bookings", HOME)
    with pytest.raises(Problem):
        call("approve_booking", id=99)
    told = words(client, key)
    assert "1 change, 65 reads and 1 try that came to nothing, from 2 addresses." in told


def test_a_change_is_undone_in_place_and_says_so_from_then_on(client, maya, thief, fake_clock):
    key, call = thief
    event, other = call("approve_booking", id=1), call("decline_booking", id=2)
    address = f"/admin/api_keys/{key.id}/leak/undo/{event.id}"
    assert address in client.get(f"/admin/api_keys/{key.id}/leak").text
    answer = client.post(f"{address}?since=2026-11-20")
    assert answer.status_code == 303
    assert answer.location == f"/admin/api_keys/{key.id}/leak?since=2026-11-20#review"
    assert [e.member_name for e in events() if e.action == "booking.restored"] == ["Maya"]
    assert "Undone: it is as it was before." in words(client, key)
    second, first = changes(client, key)
    assert first.endswith("Undone 12:00 by Maya")
    assert second.endswith("Undo")
    assert address not in client.get(f"/admin/api_keys/{key.id}/leak").text
    assert client.post(address).status_code == 303  # once more, from an older page
    assert len([e for e in events() if e.action == "booking.restored"]) == 1

    htmx = client.post(
        f"/admin/api_keys/{key.id}/leak/undo/{other.id}", headers={"HX-Request": "true"}
    )
    assert htmx.status_code == 200
    assert htmx.text.lstrip().startswith('<div id="changes">')
    assert htmx.text.count("Undone") == 2
    assert htmx.text.count("autofocus") == 1
    assert "/undo" not in htmx.text
    assert "toast" in htmx.headers["HX-Trigger"]


def test_what_was_decided_since_is_told_and_stays(client, maya, thief):
    key, call = thief
    event = call("approve_booking", id=1)
    sam = factories.member(maya.organization, "manager", "Sam")
    client.sign_in(sam)
    client.post("/admin/bookings/1/cancel")
    client.sign_in(maya)
    [line] = changes(client, key)
    assert line.endswith("Sam changed booking 1 since.")
    address = f"/admin/api_keys/{key.id}/leak/undo/{event.id}"
    answer = client.post(address)  # from an older page
    assert answer.status_code == 303
    assert "Sam changed booking 1 since." in words(client, key)
    htmx = client.post(address, headers={"HX-Request": "true"})
    assert htmx.status_code == 409
    assert htmx.text.lstrip().startswith('<div id="changes">')
    assert "toast" in htmx.headers["HX-Trigger"]
    assert "booking.restored" not in [e.action for e in events()]


def test_all_are_undone_in_one_go_but_for_those_that_can_not_be(client, maya, thief):
    key, call = thief
    for number in (1, 2, 3):
        call("approve_booking", id=number)
    client.post("/admin/bookings/2/mark_paid")
    address = f"/admin/api_keys/{key.id}/leak/undo"
    assert "Undo all that can be undone" in words(client, key)
    answer = client.post(address, headers={"HX-Request": "true"})
    assert "2 changes undone. 1 could not be" in answer.headers["HX-Trigger"]
    assert "Undo all" not in answer.text
    assert [line.rpartition(" by Maya")[1] or line[-29:] for line in changes(client, key)] == [
        " by Maya",
        "Maya changed booking 2 since.",
        " by Maya",
    ]
    assert client.post(address).status_code == 303
    assert "Nothing was undone. 1 could not be" in words(client, key)


def test_report_has_everything_but_the_secret(client, maya, key, fake_clock: Clock):
    walk(client, factories.api_key(maya.organization, "Other")[0])  # another incident
    act(key, Action.BOOKING_APPROVED, STRANGER, 1)
    fake_clock.advance(hours=1)
    client.sign_in(maya)
    walk(client, key, where="In a chat")
    walk(client, key, "/replace")
    answer = client.get(f"/admin/api_keys/{key.id}/leak/report.txt")
    assert answer.mimetype == "text/plain"
    assert "attachment" in answer.headers["Content-Disposition"]
    assert f"incident {events()[-2].id}" in answer.text
    for part in ("Riverside Market", "Website", key.hint, "In a chat", "by Maya", "203.0.113.66"):
        assert part in answer.text
    assert "1 change, always from the same address." in answer.text
    assert "approved booking 1" in answer.text
    assert "<" not in answer.text
    assert not re.search(r"fm_org_[0-9A-Za-z]{38}", answer.text)


def test_who_may_walk_through(client, maya, key):
    noor = factories.member(maya.organization, "viewer", "Noor")
    client.sign_in(noor)
    assert client.get(f"/admin/api_keys/{key.id}/leak").status_code == 403
    assert walk(client, key).status_code == 403
    assert walk(client, key, "/undo").status_code == 403
    client.sign_in(factories.member(factories.organization("Elsewhere"), "admin"))
    for step in ("", "/replace", "/undo", "/undo/1"):
        assert walk(client, key, step).status_code == 404
    assert client.get(f"/admin/api_keys/{key.id}/leak/report.txt").status_code == 404
    assert events() == []


def test_after_half_an_hour_only_the_new_key_needs_the_password(
    client, maya, key, fake_clock: Clock
):
    fake_clock.advance(minutes=31)
    assert walk(client, key).status_code == 303
    answer = walk(client, key, "/replace")
    assert answer.status_code == 422
    assert answer.text.count('name="current_password"') == 1
