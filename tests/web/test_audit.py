"""The audit log's page and exports, as a browser with and without HTMX sees them."""

import csv
import io
import json
import re
from datetime import UTC, datetime
from html import unescape

import pytest

from convene_keys.audit import export
from convene_keys.audit import queries as audit_queries
from convene_keys.audit.actions import Action
from convene_keys.audit.log import Actor, Origin, Target, record
from convene_keys.db.session import alone, db, transaction
from convene_keys.models import AuditEvent, Outcome
from convene_keys.web import audit as audit_pages
from tests import factories
from tests.conftest import Browser, Clock

pytestmark = pytest.mark.on_sqlite

HTMX = {"HX-Request": "true"}


@pytest.fixture
def maya(client: Browser, fake_clock: Clock):
    member = factories.member(factories.organization(timezone="Europe/Berlin"), "admin", "Maya")
    client.sign_in(member)
    return member


def happened(actor: Actor, action: Action = Action.BOOKING_LISTED, **values) -> int:
    with transaction() as session:
        return record(session, actor, action, **values)


def by_key(key) -> Actor:
    return Actor.of_key(key, Origin("203.0.113.8", "Claude/1.0", "a" * 16))


def shown(html: str) -> list[int]:
    return [int(number) for number in re.findall(r'id="event-(\d+)"', html)]


def test_page_shows_own_events_newest_first_as_sentences(client, maya, fake_clock):
    key, _ = factories.api_key(maya.organization)
    first = happened(by_key(key), Action.BOOKING_APPROVED, target=Target("booking", 7, "booking 7"))
    fake_clock.advance(minutes=1)
    second = happened(by_key(key), Action.BOOKING_APPROVED, outcome=Outcome.DENIED)
    foreign, _ = factories.api_key(factories.organization(), "Foreign")
    happened(by_key(foreign))

    html = client.get("/admin/audit_log").text

    assert shown(html) == [second, first]
    text = re.sub(r"<[^>]+>", "", html)
    assert "Claude on laptop approved booking 7" in text
    assert "Claude on laptop tried to approve" in text
    assert "Foreign" not in html
    assert re.search(r'role="status"[^>]*>\s*2 events', html)
    row = re.search(rf'<tr[^>]*id="event-{first}"[^>]*>', html)[0]
    for hook in ('data-action="booking.approved"', 'data-outcome="ok"', f'data-key="{key.id}"'):
        assert hook in row


def test_each_filter_narrows(client, maya, fake_clock):
    one, _ = factories.api_key(maya.organization, "One")
    two, _ = factories.api_key(
        maya.organization, "Two", revoked_at=fake_clock(), released_at=fake_clock()
    )
    events = {
        "one": happened(by_key(one)),
        "two": happened(by_key(two), Action.BOOKING_APPROVED, outcome=Outcome.FAILED),
        "maya": happened(Actor.of_member(maya, Origin()), Action.KEY_REVOKED),
    }
    for query, expected in {
        f"key={one.id}": ["one"],
        f"key={two.id}": ["two"],
        f"member={maya.id}": ["maya"],
        "action=booking.approved": ["two"],
        "outcome=failed": ["two"],
        "q=TWO": ["two"],
        "q=203.0.113.8": ["two", "one"],
        f"key={one.id}&outcome=failed": [],
        "": ["maya", "two", "one"],
    }.items():
        html = client.get(f"/admin/audit_log?{query}").text
        assert shown(html) == [events[name] for name in expected], query
    assert ">Two (ended)</option>" in re.sub(r"\s+\(", " (", html)


def test_days_are_the_organizations_and_the_last_one_counts_whole(client, maya, fake_clock):
    fake_clock.moment = datetime(2026, 11, 23, 22, 59, tzinfo=UTC)  # 23:59 on the 23rd in Berlin
    before = happened(Actor.system(maya.organization_id))
    fake_clock.advance(minutes=1)
    begins = happened(Actor.system(maya.organization_id))
    fake_clock.advance(hours=24, seconds=-1)
    ends = happened(Actor.system(maya.organization_id))
    client.sign_in(maya)

    day = "since=2026-11-24&until=2026-11-24"
    assert shown(client.get(f"/admin/audit_log?{day}").text) == [ends, begins]
    assert shown(client.get("/admin/audit_log?until=2026-11-23").text) == [before]
    exact = "since=2026-11-23T22:59:00Z&until=2026-11-23T23:00:00Z"
    assert shown(client.get(f"/admin/audit_log?{exact}").text) == [before]


@pytest.mark.parametrize(
    "query",
    [
        "key=x",
        "key=-1",
        "key=99999999999999999999999",
        "member=x",
        "action=nope",
        "outcome=nope",
        "since=2026-02-30",
        "since=yesterday",
        "until=9999-12-31",
        "since=0001-01-01T00:00:00%2B14:00",
        "before=x",
        "before=999",
        "q=" + "x" * 101,
        "q=%00",
    ],
)
@pytest.mark.parametrize("ending", ["", ".csv", ".jsonl"])
def test_what_is_no_filter_gets_a_clear_400(client, maya, query, ending):
    if ending and query.startswith("before"):
        query = "outcome=nope"  # an export has no pages
    answer = client.get(f"/admin/audit_log{ending}?{query}")
    assert answer.status_code == 400
    assert "<h1" in answer.text


@pytest.mark.parametrize("name", ["key", "member"])
def test_filtering_by_what_is_not_ours_is_404(client, maya, name):
    elsewhere = factories.organization()
    foreign = factories.api_key(elsewhere)[0] if name == "key" else factories.member(elsewhere)
    assert client.get(f"/admin/audit_log?{name}={foreign.id}").status_code == 404
    assert client.get(f"/admin/audit_log?{name}=987654").status_code == 404


def test_older_events_come_page_by_page_without_gap_or_repeat(client, maya, monkeypatch):
    monkeypatch.setattr(audit_pages, "PAGE_SIZE", 3)
    made = [happened(Actor.system(maya.organization_id)) for _ in range(8)]
    for headers in ({}, HTMX):
        seen, address = [], "/admin/audit_log?action=booking.listed"
        while address:
            html = client.get(address, headers=headers).text
            seen += shown(html)
            more = re.search(r'id="more".*?href="([^"]+)"', html, re.DOTALL)
            address = more[1].replace("&amp;", "&") if more else None
        assert seen == made[::-1]


def test_htmx_gets_the_log_or_only_the_older_lines(client, maya):
    made = [happened(Actor.system(maya.organization_id)) for _ in range(3)]
    log = client.get("/admin/audit_log", headers=HTMX)
    assert "<html" not in log.text
    assert 'role="status"' in log.text
    assert "HX-Request" in log.vary
    older = client.get(f"/admin/audit_log?before={made[-1]}", headers=HTMX).text
    assert "<table" not in older
    assert shown(older) == made[-2::-1]


def test_counting_stops_where_it_gets_slow(client, maya, monkeypatch):
    monkeypatch.setattr(audit_pages, "PAGE_SIZE", 2)
    monkeypatch.setattr(audit_queries, "COUNT_CAP", 2)
    for _ in range(3):
        happened(Actor.system(maya.organization_id))
    assert "More than 2 events" in client.get("/admin/audit_log").text


def test_a_search_that_takes_long_says_how_far_it_has_looked_and_goes_on(
    client, maya, fake_clock, monkeypatch
):
    key, _ = factories.api_key(maya.organization)
    sought = happened(by_key(key), Action.BOOKING_APPROVED)
    for _ in range(3):
        fake_clock.advance(minutes=1)
        happened(by_key(key))
        happened(Actor.system(maya.organization_id), Action.BOOKING_APPROVED)
    monkeypatch.setattr(audit_queries, "STRETCH_FIRST", 2)
    monkeypatch.setattr(audit_queries, "LOOK_MAX", 0)

    html = client.get(f"/admin/audit_log?key={key.id}&action=booking.approved").text
    assert shown(html) == []
    assert "Nothing matches" not in html
    assert re.search(r'role="status"[^>]*>\s*None so far', html)
    assert re.search(r"Looked back to <time[^>]*>[^<]*13:0[123]</time>", html)
    found = {}
    while 'id="more"' in html:
        more = re.search(r'<a[^>]*hx-get="([^"]+)"[^>]*>Look further back', html)
        assert 'hx-trigger="click, load' in more[0]
        address = unescape(more[1])
        html = client.get(address, headers=HTMX | {"X-Looks-On": "1"}).text
        assert "autofocus" not in html, "whoever types meanwhile goes on typing"
        found |= {event: address for event in shown(html)}
    assert list(found) == [sought]
    assert "autofocus" in client.get(found[sought], headers=HTMX).text


def test_a_thing_leads_to_all_that_happened_to_it(client, maya):
    factories.market_data(maya.organization)
    on = Target("booking", 1, "booking 1")
    first = happened(Actor.of_member(maya, Origin()), Action.BOOKING_APPROVED, target=on)
    happened(Actor.of_member(maya, Origin()), target=Target("booking", 11, "booking 11"))
    for page, words in (
        ("/admin/bookings", "Booking 1: everything that happened to it"),
        ("/admin/audit_log", "everything that happened to it"),
    ):
        html = client.get(page).text
        links = re.findall(r'<a href="(/admin/audit_log\?q=booking\+1)"([^>]*)>([^<]+)', html)
        assert [words in attributes + text for _, attributes, text in links] == [True], page
        assert shown(client.get(links[0][0]).text) == [first]
    assert "q=application+1" in client.get("/admin/applications").text


def test_an_empty_log_and_an_empty_filter_say_different_things(client, maya):
    assert "Nothing recorded yet" in client.get("/admin/audit_log").text
    assert "Nothing matches" in client.get("/admin/audit_log?outcome=denied").text


def test_what_a_client_says_of_itself_is_shown_as_text(client, maya):
    bad = "<script>alert(1)</script>"
    happened(
        Actor.system(maya.organization_id, Origin("198.51.100.7", bad)),
        target=Target("booking", 1, bad),
        detail={"reason": bad},
    )
    html = client.get("/admin/audit_log").text
    assert bad not in html
    assert "&lt;script&gt;" in html


def test_csv_has_the_filtered_rows_oldest_first_and_runs_nothing(client, maya):
    key, _ = factories.api_key(maya.organization, "=HYPERLINK(1)")
    first, second = happened(by_key(key)), happened(by_key(key))
    happened(Actor.system(maya.organization_id))

    answer = client.get(f"/admin/audit_log.csv?key={key.id}")

    assert answer.mimetype == "text/csv"
    assert 'attachment; filename="audit-log-2026-11-24.csv"' in answer.headers.values()
    assert answer.text.startswith(audit_pages.BOM)
    rows = list(csv.DictReader(io.StringIO(answer.text.removeprefix(audit_pages.BOM))))
    assert [int(row["id"]) for row in rows] == [first, second]
    assert tuple(rows[0]) == export.COLUMNS
    assert rows[0]["key_name"] == "'=HYPERLINK(1)"


def test_jsonl_has_a_line_an_event(client, maya):
    event = happened(Actor.of_member(maya, Origin()), Action.KEY_REVOKED, detail={"reason": "é"})
    answer = client.get("/admin/audit_log.jsonl?action=key.revoked")
    (row,) = [json.loads(line) for line in answer.text.splitlines()]
    assert (row["id"], row["member_name"], row["detail"]) == (event, "Maya", {"reason": "é"})
    assert row["at"] == "2026-11-24T12:00:00Z"


def test_that_the_log_was_taken_away_is_itself_recorded(client, maya):
    client.get("/admin/audit_log.csv?outcome=ok")
    html = client.get("/admin/audit_log?action=audit.exported").text
    assert len(shown(html)) == 1
    assert "exported the audit log" in html


def test_count_is_of_all_pages_on_each_of_them(client, maya, monkeypatch):
    monkeypatch.setattr(audit_pages, "PAGE_SIZE", 2)
    made = [happened(Actor.system(maya.organization_id)) for _ in range(3)]
    address = "/admin/audit_log?action=booking.listed"
    for query in ("", f"&before={made[1]}", f"&since=2026-11-01&before={made[1]}"):
        assert re.search(r'role="status">\s*3 events', client.get(address + query).text), query
    assert re.search(r'role="status">\s*0 events', client.get(f"{address}&outcome=denied").text)
    monkeypatch.setattr(audit_pages, "PAGE_SIZE", 3)
    assert re.search(r'role="status">\s*3 events', client.get(address).text)


def bars(html: str) -> dict[str, str | None]:
    """What each bar says, newest first, and the address that it leads to."""
    found = re.findall(
        r'<(?:a href="([^"]*)"[^>]*|span)>\s*<svg role="img"[^>]*>\s*<title>([^<]+)', html
    )
    return {title: unescape(link) or None for link, title in found}


def test_bars_count_the_organizations_own_days_and_narrow_to_one(client, maya, fake_clock):
    key, _ = factories.api_key(maya.organization)
    fake_clock.moment = datetime(2026, 11, 22, 23, 30, tzinfo=UTC)  # half past midnight in Berlin
    first = happened(by_key(key))
    happened(Actor.system(factories.organization().id))
    fake_clock.moment = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
    second, third = happened(by_key(key)), happened(Actor.of_member(maya, Origin()))
    client.sign_in(maya)

    drawn = bars(client.get("/admin/audit_log").text)
    assert len(drawn) == 30
    assert [title for title in drawn if drawn[title]] == ["24 Nov, 2 events", "23 Nov, 1 event"]
    assert drawn["22 Nov, 0 events"] is None
    narrowed = client.get(drawn["23 Nov, 1 event"]).text
    assert shown(narrowed) == [first]
    assert re.findall(r'aria-current="true"[^>]*>\s*<svg[^>]*>\s*<title>([^<]+)', narrowed) == [
        "23 Nov, 1 event"
    ]
    assert shown(client.get(bars(narrowed)["24 Nov, 2 events"]).text) == [third, second]


def test_bars_fit_the_filters_and_come_with_the_fragment(client, maya, fake_clock):
    one, _ = factories.api_key(maya.organization, "One")
    two, _ = factories.api_key(maya.organization, "Two")
    for key in (one, two):
        happened(by_key(key))
    query = f"/admin/audit_log?key={one.id}&since=2026-11-20"
    fragment = client.get(query, headers=HTMX).text
    assert re.search(rf'class="printed">[^<]*{re.escape(query).replace("&", "&amp;")}<', fragment)
    drawn = bars(fragment)
    assert next(iter(drawn)) == "24 Nov, 1 event"
    assert list(drawn)[-1] == "20 Nov, 0 events"
    assert f"key={one.id}" in drawn["24 Nov, 1 event"]
    months = bars(client.get("/admin/audit_log?since=2026-01-15").text)
    assert next(iter(months)) == "Nov 2026, 2 events"
    assert len(months) == 11
    for nothing in ("q=One", "since=2026-11-01&until=2026-11-10"):
        assert not bars(client.get(f"/admin/audit_log?{nothing}").text)


def test_clear_is_there_when_something_is_filtered(client, maya):
    happened(Actor.of_member(maya, Origin()))
    clear = '<a class="button quiet" href="/admin/audit_log">Clear</a>'
    for headers in ({}, HTMX):
        assert clear not in client.get("/admin/audit_log", headers=headers).text
        assert clear in client.get("/admin/audit_log?outcome=ok", headers=headers).text


def test_a_second_export_is_told_to_wait(client, maya):
    """Exports under way are in tests/test_traffic.py; this is what they hold meanwhile."""
    for held, status, told in (
        (alone(f"export-{maya.id}"), 429, "You are downloading the audit log already"),
        (audit_pages.export_turn, 503, "Somebody else is downloading an audit log"),
    ):
        with held:
            answer = client.get("/admin/audit_log.jsonl")
        assert (answer.status_code, told in answer.text) == (status, True)
        assert int(answer.headers["Retry-After"]) > 0
    assert exported() == 0, "nothing was taken away"
    for _ in range(2):
        assert client.get("/admin/audit_log.csv").status_code == 200


def exported() -> int:
    events = db.session.query(AuditEvent).filter_by(action="audit.exported")
    return events.count()


def test_an_export_that_is_taken_too_slowly_is_cut_off(client, maya, monkeypatch, caplog):
    monkeypatch.setattr(audit_pages, "PATIENCE", -1)
    with pytest.raises(ConnectionResetError):
        client.get("/admin/audit_log.jsonl")
    assert "takes it too slowly" in caplog.text
    monkeypatch.setattr(audit_pages, "PATIENCE", 0)
    monkeypatch.setattr(audit_pages, "SLOWEST", 1)
    assert client.get("/admin/audit_log.jsonl").status_code == 200, "who takes more may take longer"


def test_an_export_that_fails_lets_the_next_one_through(client, maya, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(audit_pages.seals, "seal", lambda: 1 / 0)
        assert client.get("/admin/audit_log.csv").status_code == 500
    assert client.get("/admin/audit_log.csv").status_code == 200
