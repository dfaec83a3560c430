"""How times are written on every page that lists something."""

import re
from datetime import UTC, datetime, timedelta

import pytest

from convene_keys.audit.actions import Action
from convene_keys.audit.log import Actor, Origin, record
from convene_keys.db.session import db, transaction
from convene_keys.models import ApiKey, Member, Organization
from convene_keys.web.formats import html_time
from tests import factories
from tests.conftest import Browser, Clock

pytestmark = pytest.mark.on_sqlite

LISTS = (
    "/admin/api_keys",
    "/admin/api_keys/{key}",
    "/admin/api_keys/{key}/leak",
    "/admin/audit_log",
    "/admin/bookings",
    "/admin/applications",
    "/admin/team",
    "/admin/checkup",
    "/admin/settings/account",
)
# HTML, "valid date string" and "valid global date and time string": at most three digits of a second.
VALID = re.compile(r"\d{4}-\d\d-\d\d(T\d\d:\d\d:\d\d(\.\d{1,3})?Z)?")


@pytest.fixture
def used(client: Browser, maya: Member, key: tuple[ApiKey, str], fake_clock: Clock) -> ApiKey:
    """A key that was used at a moment with microseconds; Maya is signed in."""
    fake_clock.moment += timedelta(microseconds=123_456)
    made, _ = factories.api_key(maya.organization, "Script", last_used_at=fake_clock.moment)
    with transaction() as session:
        record(session, Actor.of_key(made, Origin()), Action.BOOKING_LISTED)
    client.sign_in(maya)
    return made


def test_times_are_valid_html(client: Browser, used: ApiKey) -> None:
    found = {
        text
        for path in LISTS
        for text in re.findall(r'datetime="([^"]*)"', client.get(path.format(key=used.id)).text)
    }
    assert any("." in text for text in found)
    assert [text for text in sorted(found) if not VALID.fullmatch(text)] == []


@pytest.mark.parametrize(
    ("microseconds", "text"), [(0, "12:00:00Z"), (123_999, "12:00:00.123Z"), (1, "12:00:00.000Z")]
)
def test_html_time_has_three_digits_at_most(microseconds: int, text: str) -> None:
    moment = datetime(2026, 11, 24, 12, 0, 0, microseconds, tzinfo=UTC)
    assert html_time(moment) == f"2026-11-24T{text}"


@pytest.mark.parametrize(
    ("timezone", "words"),
    [
        ("Europe/Stockholm", "Times are in Europe/Stockholm (UTC+1)."),
        ("America/New_York", "Times are in America/New York (UTC−5)."),
        ("Asia/Kolkata", "Times are in Asia/Kolkata (UTC+5:30)."),
        ("UTC", "Times are in UTC."),
    ],
)
def test_each_list_says_which_zone_it_shows(
    client: Browser, used: ApiKey, organization: Organization, timezone: str, words: str
) -> None:
    organization.timezone = timezone
    db.session.commit()
    for path in LISTS:
        text = re.sub(r"<[^>]+>", "", client.get(path.format(key=used.id)).text)
        assert words in text, path


def test_pages_for_strangers_have_no_zone(client: Browser) -> None:
    assert "Times are in" not in client.get("/login").text
