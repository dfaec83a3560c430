"""The check-up's pages: what they say, who may act, and what one confirmation does."""

import re
from datetime import timedelta

import pytest

from convene_keys import clock
from convene_keys.checkup import findings
from convene_keys.checkup.advice import Kind
from convene_keys.db.session import db
from convene_keys.models import ApiKey, AuditEvent, Member
from tests import factories
from tests.conftest import Browser, Clock

pytestmark = pytest.mark.on_sqlite

HTMX = {"HX-Request": "true"}
DAY = timedelta(days=1)


@pytest.fixture
def maya(client: Browser, fake_clock: Clock) -> Member:
    """An admin, signed in at noon of the test's day."""
    member = factories.member(factories.organization())
    client.sign_in(member)
    return member


def unused(of: Member, *names: str) -> list[int]:
    """Keys that were made three weeks ago and never used, with all else in order."""
    now = clock.now()
    values = {"created_at": now - 21 * DAY, "expires_at": now + 365 * DAY, "scope": "read"}
    return [factories.api_key(of.organization, n, creator=of, **values)[0].id for n in names]


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", html))


def badge(client: Browser) -> str:
    """What the navigation says of the check-up, to a screen reader."""
    found = re.search(
        r'href="/admin/checkup"[^>]*>(.*?)</a>', client.get("/admin/team").text, re.DOTALL
    )
    assert found
    return text_of(found[1]).strip()


def actions() -> list[tuple[str, str]]:
    db.session.rollback()
    events = db.session.query(AuditEvent).order_by(AuditEvent.id)
    return [(event.action, event.target_name) for event in events]


def test_all_good_with_and_without_keys(client: Browser, maya: Member) -> None:
    page = client.get("/admin/checkup").text
    assert "All good" in page
    assert "There are no keys yet" in page
    (key_id,) = unused(maya, "Till")
    db.session.get_one(ApiKey, key_id).last_used_at = clock.now()
    db.session.commit()
    page = client.get("/admin/checkup").text
    assert "All good" in page
    assert "keeps to all 11 habits" in page
    assert badge(client) == "Check-up"


def test_a_finding_says_what_why_and_what_to_do(client: Browser, maya: Member) -> None:
    first, second = unused(maya, "Till", "Gate")
    page = client.get("/admin/checkup").text
    said = text_of(page)
    assert "10 of 11 habits kept" in said
    assert "To reach “All good”: no keys that were never used." in said
    assert "2 keys were never used" in said
    assert Kind.UNUSED.advice.why in said
    for key_id, name in ((first, "Till"), (second, "Gate")):
        assert f'href="/admin/api_keys/{key_id}"><bdi>{name}</bdi>' in page
    assert 'href="/admin/checkup/unused"' in page
    assert badge(client) == "Check-up, 1 finding"


def test_keys_to_be_rotated_or_renamed_link_there(client: Browser, maya: Member) -> None:
    (key_id,) = unused(maya, "test")
    key = db.session.get_one(ApiKey, key_id)
    key.created_at, key.last_used_at = clock.now() - 200 * DAY, clock.now()
    db.session.commit()
    page = client.get("/admin/checkup").text
    assert re.search(rf'href="/admin/api_keys/{key_id}/rotate"\s+aria-label="Rotate test"', page)
    assert re.search(rf'href="/admin/api_keys/{key_id}#rename"\s+aria-label="Rename test"', page)
    assert badge(client) == "Check-up, 2 findings"


def test_one_confirmation_lists_all_and_revokes_those_chosen(client: Browser, maya: Member) -> None:
    ids = unused(maya, "Till", "Gate", "Stall")
    page = client.get("/admin/checkup/unused").text
    assert re.findall(r'name="key"\s+value="(\d+)"\s*checked', page) == [
        str(ids[n]) for n in (1, 2, 0)
    ]
    answer = client.post("/admin/checkup/unused", data={"key": [ids[0], ids[1]]})
    assert (answer.status_code, answer.location) == (303, "/admin/checkup")
    assert actions() == [("key.revoked", "Till"), ("key.revoked", "Gate")]
    assert "2 keys were revoked." in client.get("/admin/checkup").text
    assert not db.session.get_one(ApiKey, ids[0]).works
    assert db.session.get_one(ApiKey, ids[2]).works


def test_dialog_does_the_same(client: Browser, maya: Member) -> None:
    (key_id,) = unused(maya, "Till")
    dialog = client.get("/admin/checkup/unused", headers=HTMX).text
    assert dialog.lstrip().startswith("<dialog")
    assert "<html" not in dialog
    answer = client.post("/admin/checkup/unused", data={"key": key_id}, headers=HTMX)
    assert answer.headers["HX-Redirect"] == "/admin/checkup"
    assert actions() == [("key.revoked", "Till")]


def test_what_changed_meanwhile_is_left_alone_and_told(client: Browser, maya: Member) -> None:
    first, second = unused(maya, "Till", "Gate")
    db.session.get_one(ApiKey, second).last_used_at = clock.now()
    db.session.commit()
    client.post("/admin/checkup/unused", data={"key": [first, second]})
    assert actions() == [("key.revoked", "Till")]
    said = text_of(client.get("/admin/checkup").text)
    assert "Till was revoked. Gate was left alone: things have changed meanwhile." in said
    assert "no key is concerned any more" in client.get("/admin/checkup/unused").text


@pytest.mark.parametrize("bad", ["theirs", "999999", "0", "-1", "x", "٣", "9" * 30, ""])
def test_another_organizations_key_is_not_found_and_nothing_changes(
    client: Browser, maya: Member, bad: str
) -> None:
    (mine,) = unused(maya, "Till")
    (theirs,) = unused(factories.member(factories.organization("Elsewhere")), "Till")
    chosen = [mine, str(theirs) if bad == "theirs" else bad]
    answer = client.post("/admin/checkup/unused", data={"key": chosen})
    assert answer.status_code == 404
    assert actions() == []
    assert db.session.get_one(ApiKey, theirs).works
    assert db.session.get_one(ApiKey, mine).works


def test_nothing_chosen_is_said(client: Browser, maya: Member) -> None:
    unused(maya, "Till")
    answer = client.post("/admin/checkup/unused")
    assert answer.status_code == 422
    assert "Please choose at least one key." in answer.text
    assert actions() == []


@pytest.mark.parametrize("kind", ["due", "vague", "shared", "nonsense"])
def test_what_has_no_remedy_for_all_has_no_page(client: Browser, maya: Member, kind: str) -> None:
    assert client.get(f"/admin/checkup/{kind}").status_code == 404
    assert client.post(f"/admin/checkup/{kind}", data={"key": "1"}).status_code == 404


def test_viewer_sees_findings_without_buttons(client: Browser, maya: Member) -> None:
    (key_id,) = unused(maya, "test")
    client.sign_in(factories.member(maya.organization, "viewer", "Inès"))
    page = client.get("/admin/checkup").text
    assert "1 key was never used" in page
    assert "/admin/checkup/unused" not in page
    assert "#rename" not in page
    assert client.post("/admin/checkup/unused", data={"key": key_id}).status_code == 403
    assert actions() == []


def test_names_are_shown_as_text(client: Browser, maya: Member) -> None:
    unused(maya, "<script>alert(1)</script>")
    for path in ("/admin/checkup", "/admin/checkup/unused"):
        page = client.get(path).text
        assert "<script>alert" not in page
        assert "&lt;script&gt;alert" in page


def test_count_is_as_it_is_for_few_keys_and_at_most_a_minute_old_for_many(
    client: Browser, maya: Member, fake_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []
    look = findings.run

    def counted(*arguments: object) -> findings.CheckUp:
        looked.append(1)
        return look(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(findings, "run", counted)
    (first,) = unused(maya, "Till")
    for _ in range(2):
        assert badge(client) == "Check-up, 1 finding"
    assert len(looked) == 2
    unused(maya, *(f"Stall {number}" for number in range(99)))
    assert badge(client) == "Check-up, 1 finding"
    looked.clear()
    factories.api_key(maya.organization, "Endless", creator=maya, last_used_at=fake_clock())
    fake_clock.advance(seconds=59)
    assert badge(client) == "Check-up, 1 finding"
    assert looked == []
    fake_clock.advance(seconds=1)
    assert badge(client) == "Check-up, 2 findings"
    assert len(looked) == 1
    answer = client.get("/admin/checkup").text
    assert len(looked) == 2, "the page itself looks anew, and once"
    assert "2<span" in answer
    client.post("/admin/checkup/unused", data={"key": first})
    assert badge(client) == "Check-up, 2 findings"
