"""Bookings and applications, as a browser with and without HTMX sees and decides them."""

import re
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import event

from convene_keys import clock
from convene_keys.audit.log import Actor
from convene_keys.db.session import db
from convene_keys.markets import sample
from convene_keys.models import (
    AuditEvent,
    Booking,
    MarketDate,
    Member,
    Organization,
    VendorApplication,
)
from tests import factories
from tests.conftest import Browser, Clock

pytestmark = pytest.mark.on_sqlite

HTMX = {"HX-Request": "true"}
AREAS = pytest.mark.parametrize("noun", ["booking", "application"])


@pytest.fixture
def maya(client: Browser) -> Member:
    """A market manager of an organization with three bookings and two applications, signed in."""
    organization = factories.organization()
    factories.market_data(organization)
    member = factories.member(organization, "manager", "Maya")
    client.sign_in(member)
    return member


def booking(of: Member, number: int = 1) -> Booking:
    db.session.expire_all()
    return db.session.get_one(Booking, (of.organization_id, number))


def market_date(of: Member) -> MarketDate:
    return db.session.get_one(MarketDate, (of.organization_id, booking(of).market_date_id))


def application(of: Member, number: int = 1) -> VendorApplication:
    db.session.expire_all()
    return db.session.get_one(VendorApplication, (of.organization_id, number))


def set_state(row: Any, **values: Any) -> None:
    for name, value in values.items():
        setattr(row, name, value)
    db.session.commit()


def events() -> list[AuditEvent]:
    return db.session.query(AuditEvent).order_by(AuditEvent.id).all()


def numbers(html: str, noun: str = "booking") -> list[int]:
    return [int(number) for number in re.findall(rf'<tr id="{noun}-(\d+)"', html)]


def announced(html: str) -> str:
    found = re.search(r'<p[^>]*id="count"[^>]*>(.*?)</p>', html, re.DOTALL)
    assert found
    assert 'role="status"' in found[0]
    return found[1].strip()


def tabs(html: str) -> dict[str, int]:
    """state -> how many"""
    found = re.findall(r'id="tab-(\w+)".*?<span class="soft">(\d+)</span>', html, re.DOTALL)
    return {status: int(count) for status, count in found}


# Lists --------------------------------------------------------------------------------------------


@AREAS
def test_list_shows_first_what_waits(client: Browser, maya: Member, noun: str) -> None:
    row = {"booking": booking, "application": application}[noun](maya)
    set_state(row, status="approved", decided_at=clock.now())
    total = {"booking": 3, "application": 2}[noun]

    html = client.get(f"/admin/{noun}s").text

    assert numbers(html, noun) == list(range(total, 1, -1))
    assert tabs(html) | {"declined": 0} == tabs(html)
    assert (tabs(html)["pending"], tabs(html)["approved"], tabs(html)["all"]) == (
        total - 1,
        1,
        total,
    )
    assert announced(html) == f"{total - 1} {noun}{'' if total == 2 else 's'}"
    assert numbers(client.get(f"/admin/{noun}s?status=approved").text, noun) == [1]
    assert len(numbers(client.get(f"/admin/{noun}s?status=all").text, noun)) == total


def test_bookings_of_one_market_date_or_day(client: Browser, maya: Member) -> None:
    day = market_date(maya).date
    for query, count in (
        ("market_date_id=1", 3),
        ("market_date_id=2", 0),
        (f"date={day}", 3),
        (f"date={day + timedelta(days=1)}", 0),
        (f"date={day}&market_date_id=1&status=all", 3),
        (f"date={day}&status=cancelled", 0),
        ("date=&market_date_id=", 3),
    ):
        html = client.get(f"/admin/bookings?{query}").text
        assert len(numbers(html)) == count
        assert announced(html) == f"{count} bookings"


def test_applications_of_one_market_or_vendor(client: Browser, maya: Member) -> None:
    for query, count in (
        ("market_id=1", 2),
        ("market_id=2", 0),
        ("q=GREEN", 2),
        ("q=acre&market_id=1", 2),
        ("q=blue", 0),
        ("q=%25", 0),
    ):
        html = client.get(f"/admin/applications?{query}").text
        assert len(numbers(html, "application")) == count
        assert tabs(html)["all"] == count


def test_bookings_can_be_narrowed_to_every_date_that_is_not_a_draft(
    client: Browser, maya: Member
) -> None:
    html = client.get("/admin/bookings?market_date_id=1").text
    assert re.search(
        r'<option value="1" selected>\w{3} \d+ \w{3} \d{4}, Old Harbour</option>', html
    )
    set_state(market_date(maya), status="draft")
    assert '<option value="1"' not in client.get("/admin/bookings").text


BAD_FILTERS = [
    "status=paid",
    "status=PENDING",
    "market_date_id=x&market_id=x",
    "market_date_id=-1&market_id=-1",
    "market_date_id=99999999999999999999&market_id=99999999999999999999",
    "market_date_id=%C2%B2&market_id=%C2%B2",
    f"date={'1' * 200}&q={'x' * 101}",
    "date=%00&q=%00",
    "cursor=x",
    "cursor=999",
    "cursor=-1",
]


@AREAS
def test_list_refuses_what_is_no_filter(client: Browser, maya: Member, noun: str) -> None:
    for query in BAD_FILTERS:
        for headers in ({}, HTMX):
            answer = client.get(f"/admin/{noun}s?{query}", headers=headers)
            assert answer.status_code == 400, query
    assert events() == []


def test_bookings_refuse_a_day_that_does_not_exist(client: Browser, maya: Member) -> None:
    for day in ("2026-02-30", "yesterday", "2026-13-01", "0000-01-01"):
        answer = client.get(f"/admin/bookings?date={day}")
        assert answer.status_code == 400
        assert "is not a date" in answer.text


@AREAS
def test_older_rows_are_loaded_page_by_page(app: Flask, client: Browser, noun: str) -> None:
    organization = factories.organization()
    sample.make(Actor.system(organization.id))
    client.sign_in(factories.member(organization))
    url, seen = f"/admin/{noun}s?status=all", list[int]()
    total = tabs(client.get(url).text)["all"]
    for headers in ({}, HTMX):
        seen, here = [], url
        while here:
            html = client.get(here, headers=headers).text
            assert len(numbers(html, noun)) <= 25
            seen += numbers(html, noun)
            more = re.search(r'id="more">.*?hx-get="([^"]+)"', html, re.DOTALL)
            here = more[1].replace("&amp;", "&") if more else ""
        assert seen == list(range(total, 0, -1))


@AREAS
def test_htmx_gets_only_the_list(client: Browser, maya: Member, noun: str) -> None:
    answer = client.get(f"/admin/{noun}s?status=all", headers=HTMX)
    assert "<html" not in answer.text
    assert "HX-Request" in answer.headers["Vary"]
    assert len(numbers(answer.text, noun)) == {"booking": 3, "application": 2}[noun]
    assert re.search(r'id="status"[^>]*value="all"[^>]*hx-swap-oob', answer.text, re.DOTALL)
    assert announced(answer.text)


@AREAS
def test_an_empty_list_says_what_to_do_next(client: Browser, noun: str) -> None:
    organization = factories.organization()
    client.sign_in(factories.member(organization))
    text = client.get(f"/admin/{noun}s").text
    assert f"No {noun}s yet" in text
    assert 'role="search"' not in text
    assert 'id="tabs"' not in text
    narrowed = client.get(f"/admin/{noun}s?{'q=x' if noun == 'application' else 'date=2026-11-24'}")
    assert "Nothing matches" in narrowed.text
    assert 'role="search"' in narrowed.text
    factories.market_data(organization)
    row = Booking if noun == "booking" else VendorApplication
    db.session.query(row).update({"status": "declined"})
    db.session.commit()
    assert "Nothing waits for you" in client.get(f"/admin/{noun}s").text
    assert "None approved" in client.get(f"/admin/{noun}s?status=approved").text
    narrowed = {"booking": "market_date_id=7", "application": "q=nobody"}[noun]
    assert "Nothing matches" in client.get(f"/admin/{noun}s?{narrowed}").text


@AREAS
def test_lists_show_nothing_of_another_organization(
    client: Browser, maya: Member, noun: str
) -> None:
    other = factories.organization("Other")
    client.sign_in(factories.member(other))
    html = client.get(f"/admin/{noun}s?status=all").text
    assert numbers(html, noun) == []
    assert f"No {noun}s yet" in html
    assert "Old Harbour" not in html


def test_lists_cost_the_same_number_of_queries_however_long(app: Flask, client: Browser) -> None:
    organization = factories.organization()
    sample.make(Actor.system(organization.id))
    client.sign_in(factories.member(organization))
    asked: list[str] = []
    event.listen(db.engine, "before_cursor_execute", lambda *args: asked.append(args[2]))
    for noun in ("booking", "application"):
        asked.clear()
        client.get(f"/admin/{noun}s?status=all")
        assert len([sql for sql in asked if sql.startswith("SELECT")]) <= 6


# Changes ------------------------------------------------------------------------------------------

CHANGES = [
    ("booking", "approve", {}, "pending", ("approved", False), "booking.approved"),
    ("booking", "approve", {}, "declined", ("approved", False), "booking.approved"),
    ("booking", "decline", {"reason": "Full"}, "pending", ("declined", False), "booking.declined"),
    ("booking", "cancel", {}, "pending", ("cancelled", False), "booking.cancelled"),
    ("booking", "cancel", {"reason": "Ill"}, "approved", ("cancelled", False), "booking.cancelled"),
    ("booking", "mark_paid", {}, "approved", ("approved", True), "booking.paid"),
]


@pytest.mark.parametrize(("noun", "verb", "form", "before", "after", "action"), CHANGES)
def test_a_manager_decides_a_booking_under_their_own_name(
    client: Browser,
    maya: Member,
    noun: str,
    verb: str,
    form: dict[str, str],
    before: str,
    after: tuple[str, bool],
    action: str,
) -> None:
    set_state(booking(maya), status=before)
    answer = client.post(
        f"/admin/bookings/1/{verb}?status=all&market_date_id=1",
        data=form,
        headers={"User-Agent": "Firefox"},
    )
    assert answer.status_code == 303
    assert answer.location == "/admin/bookings?status=all&market_date_id=1"
    row = booking(maya)
    assert (row.status, row.paid) == after
    assert row.reason == form.get("reason", "")
    [event] = events()
    assert (event.action, event.outcome) == (action, "ok")
    assert (event.actor, event.member_name, event.key_id) == ("member", "Maya", None)
    assert (event.target_type, event.target_id) == ("booking", "1")
    assert (event.ip, event.user_agent) == ("127.0.0.1", "Firefox")
    assert "Green Acre Farm is" in client.get(answer.location).text


@pytest.mark.parametrize("status", ["approved", "waitlisted", "declined"])
def test_a_manager_decides_an_application_with_a_note(
    client: Browser, maya: Member, status: str
) -> None:
    form = {"status": status, "note": "First line\r\nSecond line"}
    answer = client.post("/admin/applications/1/decide?q=green", data=form)
    assert answer.status_code == 303
    assert answer.location == "/admin/applications?status=pending&q=green"
    row = application(maya)
    assert (row.status, row.note) == (status, "First line\nSecond line")
    assert row.decided_at is not None
    [event] = events()
    assert (event.action, event.outcome, event.member_name) == ("application.updated", "ok", "Maya")
    assert (event.detail["before"], event.detail["after"]) == ("pending", status)


def test_a_decision_without_a_note_leaves_the_note(client: Browser, maya: Member) -> None:
    set_state(application(maya), note="Ask for insurance")
    client.post("/admin/applications/1/decide", data={"status": "approved"})
    assert (application(maya).status, application(maya).note) == ("approved", "Ask for insurance")
    client.post("/admin/applications/1/decide", data={"status": "approved", "note": ""})
    assert application(maya).note == ""


def test_a_reminder_is_noted_once_a_day(client: Browser, maya: Member, fake_clock: Clock) -> None:
    client.sign_in(maya)
    assert client.post("/admin/applications/1/remind").status_code == 303
    assert application(maya).reminded_at == fake_clock.moment
    first = fake_clock.moment
    fake_clock.advance(minutes=30)
    answer = client.post("/admin/applications/1/remind")
    assert answer.status_code == 409
    assert "in the last 24 hours" in answer.text
    assert application(maya).reminded_at == first
    assert [event.outcome for event in events()] == ["ok", "failed"]


def test_htmx_gets_the_row_as_it_is_now_and_the_tabs(client: Browser, maya: Member) -> None:
    answer = client.post("/admin/bookings/2/approve?status=pending", headers=HTMX)
    assert answer.status_code == 200
    assert numbers(answer.text) == [2]
    assert answer.text.lstrip().startswith('<tr id="booking-2"')
    assert "Approved just now" in answer.text
    assert "autofocus" in answer.text
    assert "toast" in answer.headers["HX-Trigger"]
    assert tabs(answer.text) == {
        "pending": 2,
        "approved": 1,
        "declined": 0,
        "cancelled": 0,
        "all": 3,
    }
    assert "<html" not in answer.text
    answer = client.post(
        "/admin/applications/2/decide", data={"status": "waitlisted"}, headers=HTMX
    )
    assert numbers(answer.text, "application") == [2]
    assert "Waitlisted" in answer.text


def test_doing_it_twice_changes_nothing_more(client: Browser, maya: Member) -> None:
    for _ in range(2):
        assert client.post("/admin/bookings/1/approve").status_code == 303
    assert [event.detail["changed"] for event in events()] == [True, False]


STALE = [
    ("approve", {"status": "cancelled"}),
    ("decline", {"status": "approved"}),
    ("cancel", {"status": "declined"}),
    ("mark_paid", {"status": "pending"}),
]


@pytest.mark.parametrize(("verb", "state"), STALE)
def test_what_comes_too_late_shows_the_present_state_and_changes_nothing(
    client: Browser, maya: Member, verb: str, state: dict[str, str]
) -> None:
    set_state(booking(maya), **state)
    answer = client.post(f"/admin/bookings/1/{verb}", headers=HTMX)
    assert answer.status_code == 409
    assert numbers(answer.text) == [1]
    assert state["status"].capitalize() in answer.text
    assert "just now" not in answer.text
    assert '"danger"' in answer.headers["HX-Trigger"]
    answer = client.post(f"/admin/bookings/1/{verb}?status=all")
    assert answer.status_code == 409
    assert f"Booking 1 is {state['status']}" in answer.text
    assert numbers(answer.text) == [3, 2, 1]
    assert (booking(maya).status, booking(maya).paid) == (state["status"], False)
    assert {event.outcome for event in events()} == {"failed"}


QUESTIONS = ["bookings/1/decline", "bookings/1/cancel", "applications/1/decide"]


@pytest.mark.parametrize("path", QUESTIONS)
def test_a_question_is_a_dialog_for_htmx_and_a_page_without(
    client: Browser, maya: Member, path: str
) -> None:
    html = client.get(f"/admin/{path}?status=all").text
    assert "<html" in html
    assert "<dialog" not in html
    assert f'action="/admin/{path}?status=all"' in html
    html = client.get(f"/admin/{path}?status=all", headers=HTMX).text
    assert "<html" not in html
    assert "<dialog" in html
    assert "autofocus" in html
    assert f'hx-post="/admin/{path}?status=all"' in html
    assert events() == []


@pytest.mark.parametrize("path", QUESTIONS)
def test_a_question_can_be_left_with_a_word_that_means_one_thing(
    client: Browser, maya: Member, path: str
) -> None:
    word = "Keep booking" if path.endswith("cancel") else "Cancel"
    assert f">{word}</a>" in client.get(f"/admin/{path}").text
    assert f">{word}</button>" in client.get(f"/admin/{path}", headers=HTMX).text


def test_deciding_starts_from_what_was_clicked(client: Browser, maya: Member) -> None:
    set_state(application(maya), note="Seen", message="We bake")

    def checked(query: str) -> list[str]:
        html = client.get(f"/admin/applications/1/decide{query}").text
        assert "We bake" in html
        assert ">Seen</textarea>" in html.replace("\n", "").replace("\r", "")
        return re.findall(r'value="(\w+)"[^>]*\bchecked', html.split("<main")[1], re.DOTALL)

    assert checked("?to=waitlisted") == ["waitlisted"]
    assert checked("?to=nonsense") == []
    set_state(application(maya), status="declined")
    assert checked("") == ["declined"]


@pytest.mark.parametrize("headers", [{}, HTMX])
@pytest.mark.parametrize(
    ("path", "form", "said"),
    [
        ("bookings/1/decline", {"reason": "x" * 301}, "at most 300 characters"),
        ("bookings/1/cancel", {"reason": "x" * 10_000}, "at most 300 characters"),
        ("bookings/1/decline", {"reason": "a\0b"}, "invisible"),
        ("bookings/1/cancel", {"reason": "a\u202eb"}, "invisible"),
        ("applications/1/decide", {"status": "approved", "note": "x" * 2_001}, "at most 2,000"),
        ("applications/1/decide", {"status": "approved", "note": "a\0b"}, "invisible"),
        ("applications/1/decide", {"status": "pending"}, "error"),
        ("applications/1/decide", {"status": "x"}, "error"),
        ("applications/1/decide", {}, "error"),
    ],
)
def test_bad_input_is_shown_on_its_field_and_changes_nothing(
    client: Browser,
    maya: Member,
    path: str,
    form: dict[str, str],
    said: str,
    headers: dict[str, str],
) -> None:
    answer = client.post(f"/admin/{path}", data=form, headers=headers)
    assert answer.status_code == 422
    assert said in answer.text
    assert 'class="error"' in answer.text
    if len(form.get("reason", "")) == 301:
        assert form["reason"] in answer.text  # what was typed is kept
    assert (booking(maya).status, application(maya).status) == ("pending", "pending")
    assert events() == []


def test_right_to_left_text_is_welcome(client: Browser, maya: Member) -> None:
    client.post("/admin/bookings/1/decline", data={"reason": "السوق ممتلئ"})
    assert booking(maya).reason == "السوق ممتلئ"
    assert "السوق ممتلئ" in client.get("/admin/bookings?status=declined").text


def test_a_long_message_is_folded_and_there_in_full(client: Browser, maya: Member) -> None:
    long = "We bake. " * 60
    set_state(application(maya), message=long)
    set_state(application(maya, 2), message="We bake")
    html = client.get("/admin/applications").text
    assert re.findall(r"<summary>(.*?)</summary>", html) == [long]


def test_what_vendors_wrote_is_text_and_never_markup(client: Browser, maya: Member) -> None:
    set_state(application(maya), message="<script>alert(1)</script>")
    html = client.get("/admin/applications").text
    assert "&lt;script&gt;alert(1)" in html
    assert "<script>alert" not in html


POSTS = [
    *(f"bookings/{{}}/{verb}" for verb in ("approve", "decline", "cancel", "mark_paid")),
    *(f"applications/{{}}/{verb}" for verb in ("decide", "remind")),
]


def test_what_is_not_there_is_not_found(client: Browser, maya: Member) -> None:
    for path in POSTS:
        for number in (99, 2**31, 2**70):
            answer = client.post(f"/admin/{path.format(number)}", data={"status": "approved"})
            assert answer.status_code == 404
    assert events() == []


@pytest.mark.parametrize("path", POSTS)
def test_another_organizations_row_is_not_found(client: Browser, maya: Member, path: str) -> None:
    theirs: Organization = maya.organization
    client.sign_in(factories.member(factories.organization("Other"), "admin"))
    data = {"status": "approved"}
    missing = client.post(f"/admin/{path.format(99)}", data=data)
    other = client.post(f"/admin/{path.format(1)}", data=data)
    assert missing.status_code == other.status_code == 404
    assert {row.status for row in db.session.query(Booking)} == {"pending"}
    assert not db.session.query(AuditEvent).filter_by(organization_id=theirs.id).count()


@pytest.mark.parametrize("path", POSTS)
def test_a_viewer_reads_and_changes_nothing(client: Browser, maya: Member, path: str) -> None:
    client.sign_in(factories.member(maya.organization, "viewer", "Vic"))
    for page in ("bookings", "applications"):
        html = client.get(f"/admin/{page}?status=all").text
        assert "Green Acre Farm" in html
        assert 'method="post"' not in html.split("<main")[1].split("</main>")[0]
    answer = client.post(f"/admin/{path.format(1)}", data={"status": "approved"})
    assert answer.status_code == 403
    assert (booking(maya).status, application(maya).status) == ("pending", "pending")


@pytest.mark.parametrize("path", POSTS)
def test_a_bad_filter_in_the_address_stops_a_change(
    client: Browser, maya: Member, path: str
) -> None:
    answer = client.post(f"/admin/{path.format(1)}?status=nonsense", data={"status": "approved"})
    assert answer.status_code == 400
    assert (booking(maya).status, application(maya).status) == ("pending", "pending")


@pytest.mark.parametrize("path", POSTS)
def test_a_form_without_its_token_is_refused(strict_client: Browser, path: str) -> None:
    organization = factories.organization()
    factories.market_data(organization)
    member = factories.member(organization, "manager")
    strict_client.sign_in(member)
    answer = strict_client.post(f"/admin/{path.format(1)}", data={"status": "approved"})
    assert answer.status_code == 400
    assert (booking(member).status, application(member).status) == ("pending", "pending")


def test_every_form_carries_its_token_and_works(strict_client: Browser) -> None:
    organization = factories.organization()
    factories.market_data(organization)
    member = factories.member(organization, "manager")
    strict_client.sign_in(member)
    html = strict_client.get("/admin/bookings").text
    forms = re.findall(r'<form method="post".*?</form>', html.split("<main")[1], re.DOTALL)
    assert len(forms) == 3
    token = {re.search(r'name="csrf_token" value="([^"]+)"', form)[1] for form in forms}.pop()
    strict_client.post("/admin/bookings/3/approve", data={"csrf_token": token})
    assert booking(member, 3).status == "approved"
    assert "Not paid yet" in strict_client.get("/admin/bookings?status=approved").text
