"""The check-up: what makes each finding appear and go, to the second; and what mends it."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from convene_keys import clock
from convene_keys.accounts import members, organizations
from convene_keys.audit.log import Actor, Origin, rfc3339
from convene_keys.checkup import findings as checkup_findings
from convene_keys.checkup.advice import ADVICE, MAKERS_MAX, Kind
from convene_keys.db.session import db
from convene_keys.errors import Invalid, NotFound
from convene_keys.keys import lifecycle
from convene_keys.models import ApiKey, AuditEvent, KeyUse, Member, Organization, Role, Tool
from convene_keys.operations import runner, table
from tests import factories
from tests.conftest import Clock
from tests.databases import PEPPER

PEPPERS = [PEPPER]
SECOND, DAY = timedelta(seconds=1), timedelta(days=1)
HOME, MARKET = "198.51.100.1", "203.0.113.2"
CLAUDE = "claude-desktop/1.0"
# A key of which nothing is to be said.
GOOD: dict[str, Any] = {"name": "Maya’s laptop", "tool": "claude", "scope": "read"}


@pytest.fixture
def of(organization: Organization) -> Organization:
    return organization


@pytest.fixture
def maya(of: Organization) -> Member:
    return factories.member(of)


def good(of: Organization, maya: Member, **values: Any) -> tuple[ApiKey, str]:
    """A key that keeps all the habits, but for `values`."""
    now = clock.now()
    made = values.pop("made", now)
    used = {"last_used_at": now, "last_used_ip": HOME, "last_used_user_agent": CLAUDE}
    values = {**GOOD, **used, "expires_at": now + 365 * DAY, "created_at": made, **values}
    return factories.api_key(of, creator=maya, **values)


def found(of: Organization) -> dict[str, list[str]]:
    """The names that each kind of finding has."""
    db.session.rollback()
    all_of: dict[str, list[str]] = {}
    for finding in checkup_findings.run(db.session(), of.id).findings:
        all_of.setdefault(finding.kind.value, []).extend(one.name for one in finding.concerned)
    db.session.rollback()
    return all_of


def call(token: str, ip: str, user_agent: str = CLAUDE, name: str = "whoami", **given: Any) -> None:
    operation = table.BY_NAME[name]
    origin = Origin(ip, user_agent)
    runner.run(operation, factories.caller(token, origin), lambda: operation.from_json(given))


NAME = GOOD["name"]


def test_an_organization_without_keys_and_one_that_keeps_all_habits_are_all_good(
    of: Organization, maya: Member
) -> None:
    assert checkup_findings.run(db.session(), of.id) == checkup_findings.CheckUp(0, [])
    good(of, maya)
    look = checkup_findings.run(db.session(), of.id)
    assert look == checkup_findings.CheckUp(1, [])
    assert tuple(look.kept) == ADVICE
    assert len(ADVICE) == 11


def test_each_finding_counts_against_one_habit(of: Organization, maya: Member) -> None:
    good(of, maya, expires_at=None)
    look = checkup_findings.run(db.session(), of.id)
    assert set(ADVICE) - set(look.kept) == {Kind.ENDLESS.advice.habit}
    assert [finding.title for finding in look.findings] == ["1 key has no end date"]
    good(of, maya, name="Otto’s laptop", expires_at=None)
    (finding,) = checkup_findings.run(db.session(), of.id).findings
    assert finding.title == "2 keys have no end date"
    assert [one.name for one in finding.concerned] == [NAME, "Otto’s laptop"]


@pytest.mark.parametrize(
    ("months", "made", "soon", "due"),
    [
        (6, (2026, 1, 31), (2026, 4, 30), (2026, 7, 31)),
        (6, (2025, 8, 31), (2025, 11, 30), (2026, 2, 28)),
        (1, (2026, 1, 31), (2026, 2, 15), (2026, 2, 28)),
        (3, (2026, 1, 10), (2026, 2, 25), (2026, 4, 10)),
        (24, (2024, 2, 29), (2025, 2, 28), (2026, 2, 28)),
    ],
)
def test_rotation_is_due_by_the_calendar(
    of: Organization,
    maya: Member,
    fake_clock: Clock,
    months: int,
    made: tuple[int, int, int],
    soon: tuple[int, int, int],
    due: tuple[int, int, int],
) -> None:
    of.rotate_months = months
    db.session.commit()
    fake_clock.moment = datetime(*made, 8, 30, 5, tzinfo=UTC)
    key, _ = good(of, maya)
    assert key.rotate_by == datetime(*due, tzinfo=UTC).date()
    for moment, expected in (
        (datetime(*soon, 8, 30, 5, tzinfo=UTC) - SECOND, None),
        (datetime(*soon, 8, 30, 5, tzinfo=UTC), "due-soon"),
        (datetime(*due, 8, 30, 5, tzinfo=UTC) - SECOND, "due-soon"),
        (datetime(*due, 8, 30, 5, tzinfo=UTC), "due"),
    ):
        fake_clock.moment = moment
        key = db.session.get_one(ApiKey, key.id)
        key.last_used_at, key.expires_at = moment, moment + DAY
        db.session.commit()
        assert found(of) == ({expected: [NAME]} if expected else {})


def test_rotation_is_no_longer_due_once_there_is_a_successor_or_more_time(
    of: Organization, maya: Member, fake_clock: Clock
) -> None:
    key, _ = good(of, maya, made=clock.months_after(fake_clock(), -7))
    assert found(of) == {"due": [NAME]}
    of.rotate_months = 15
    db.session.commit()
    assert found(of) == {}
    of.rotate_months = 6
    key.released_at = fake_clock()
    db.session.commit()
    good(of, maya, predecessor_id=key.id)
    assert found(of) == {}, "neither the old one nor the new one"


@pytest.mark.parametrize("change", ["disabled", "demoted"])
def test_key_is_older_than_a_change_in_the_team(
    of: Organization, maya: Member, fake_clock: Clock, change: str
) -> None:
    tomasz = factories.member(of, "manager", "Tomasz")
    ines = factories.member(of, "viewer", "Inès")
    actor = Actor.of_member(maya, Origin())
    good(of, maya)
    fake_clock.advance(seconds=1)
    members.change_member(actor, tomasz.id, name="Tomasz A", role=Role.ADMIN)
    members.set_disabled(actor, ines.id, disabled=True)
    assert found(of) == {}, "nobody who could make keys left"
    if change == "disabled":
        members.set_disabled(actor, tomasz.id, disabled=True)
    else:
        members.change_member(actor, tomasz.id, name="Tomasz A", role=Role.VIEWER)
    good(of, maya, name="Made at that very moment")
    assert found(of) == {"team-changed": [NAME]}
    (finding,) = checkup_findings.run(db.session(), of.id).findings
    assert (finding.who, finding.at) == ("Tomasz A", fake_clock())
    db.session.rollback()
    if change == "disabled":
        members.set_disabled(actor, tomasz.id, disabled=False)
    else:
        members.change_member(actor, tomasz.id, name="Tomasz A", role=Role.MANAGER)
    assert found(of) == {}, "they are back"


def test_each_change_in_the_team_is_a_finding_and_rotation_settles_it(
    of: Organization, maya: Member, fake_clock: Clock
) -> None:
    actor = Actor.of_member(maya, Origin())
    key, _ = good(of, maya)
    for name in ("Otto", "Ada"):
        fake_clock.advance(days=1)
        member = factories.member(of, "manager", name)
        members.set_disabled(actor, member.id, disabled=True)
    findings = checkup_findings.run(db.session(), of.id).findings
    assert [finding.who for finding in findings] == ["Ada", "Otto"]
    db.session.rollback()
    key.released_at = fake_clock()
    db.session.commit()
    good(of, maya, predecessor_id=key.id)
    assert found(of) == {}


@pytest.mark.parametrize("change", ["disabled", "demoted"])
def test_key_was_made_by_someone_who_left(of: Organization, maya: Member, change: str) -> None:
    actor = Actor.of_member(maya, Origin())
    tomasz = factories.member(of, "manager", "Tomasz")
    key, _ = good(of, tomasz, expires_at=None, name="test")
    assert "maker-gone" not in found(of)
    if change == "disabled":
        members.set_disabled(actor, tomasz.id, disabled=True)
    else:
        members.change_member(actor, tomasz.id, name="Tomasz", role=Role.VIEWER)
    assert found(of) == {"maker-gone": ["test"]}, "and nothing else is said of it"
    lifecycle.revoke(actor, key.id)
    assert found(of) == {}


def test_key_that_nobody_in_particular_made_has_no_maker_to_leave(of: Organization) -> None:
    factories.api_key(of, **GOOD, expires_at=clock.now() + DAY)
    assert found(of) == {}


def test_key_is_shared_by_two_places(of: Organization, maya: Member, fake_clock: Clock) -> None:
    _, token = good(of, maya, last_used_at=None)
    call(token, HOME)
    fake_clock.advance(minutes=30)
    call(token, MARKET)
    assert found(of) == {}, "carried from one to the other"
    fake_clock.advance(minutes=30, seconds=1)
    call(token, HOME)
    assert found(of) == {}, "and back, after more than an hour"
    fake_clock.advance(minutes=29, seconds=59)
    call(token, MARKET)
    assert found(of) == {"shared": [NAME]}, "back within the hour, to the second"
    (finding,) = checkup_findings.run(db.session(), of.id).findings
    assert finding.concerned[0].seen == (HOME, MARKET)
    assert finding.concerned[0].since == fake_clock()
    db.session.rollback()
    fake_clock.advance(days=7, seconds=-1)
    assert found(of) == {"shared": [NAME]}
    fake_clock.advance(seconds=1)
    assert found(of) == {}


def test_key_is_shared_by_two_kinds_of_client(
    of: Organization, maya: Member, fake_clock: Clock
) -> None:
    _, token = good(of, maya, last_used_at=None, tool="other")
    for agent in (CLAUDE, "curl/8.1", "claude-desktop/2.0"):
        call(token, HOME, agent)
    (finding,) = checkup_findings.run(db.session(), of.id).findings
    assert (finding.kind, finding.concerned[0].seen) == (Kind.SHARED, ("claude-desktop", "curl"))


def test_another_version_of_the_same_client_is_no_other_one(
    of: Organization, maya: Member, fake_clock: Clock
) -> None:
    _, token = good(of, maya, last_used_at=None)
    for version in (1, 2, 1, 2):
        call(token, "2001:db8::1", f"claude-desktop/{version}")
        call(token, "2001:db8::ffff", f"claude-desktop/{version}")
    assert found(of) == {}
    assert db.session.query(KeyUse).count() == 1, "and it is one place"


def test_cloud_is_one_place(of: Organization, maya: Member, fake_clock: Clock) -> None:
    _, token = good(of, maya, last_used_at=None, tool="chatgpt")
    for ip in (HOME, MARKET) * 2:
        call(token, ip, "Mozilla/5.0 AppleWebKit/537.36; compatible; ChatGPT-User/1.0; +https://x")
    assert found(of) == {}
    for agent in ("curl/8", "ChatGPT-User/1.0"):
        call(token, HOME, agent)
    assert found(of) == {"shared": [NAME]}


AGENTS = {
    CLAUDE: "claude",
    "convene-keys-extension/0.2": "claude",
    "ChatGPT-User/1.0": "chatgpt",
    "python-requests/2.32": "developer",
    "curl/8.1": "developer",
    "node": None,
    "market-website/2.1 curl": None,
    "Mozilla/5.0 (X11) Firefox/140.0": None,
    None: None,
}


@pytest.mark.parametrize("tool", list(Tool))
def test_user_agent_contradicts_the_tool(of: Organization, maya: Member, tool: str) -> None:
    key, _ = good(of, maya, tool=tool)
    for agent, told in AGENTS.items():
        key.last_used_user_agent = agent
        db.session.commit()
        contradicted = told is not None and tool not in (told, "other")
        assert found(of) == ({"contradicted": [NAME]} if contradicted else {}), agent
    key.last_used_user_agent = "Something else"
    db.session.commit()
    assert found(of) == {}


def test_key_is_idle(of: Organization, maya: Member, fake_clock: Clock) -> None:
    key, _ = good(of, maya)
    of.rotate_months = 24
    db.session.commit()
    fake_clock.advance(days=90, seconds=-1)
    assert found(of) == {}
    fake_clock.advance(seconds=1)
    assert found(of) == {"idle": [NAME]}
    key.last_used_at = fake_clock()
    db.session.commit()
    assert found(of) == {}


def test_key_was_never_used(of: Organization, maya: Member, fake_clock: Clock) -> None:
    _, token = good(of, maya, last_used_at=None)
    fake_clock.advance(days=14, seconds=-1)
    assert found(of) == {}
    fake_clock.advance(seconds=1)
    assert found(of) == {"unused": [NAME]}
    call(token, HOME)
    assert found(of) == {}


def test_key_may_change_things_but_only_reads(
    of: Organization, maya: Member, fake_clock: Clock
) -> None:
    of.rotate_months = 24
    db.session.commit()
    key, token = good(of, maya, last_used_at=None, scope="read_write")
    call(token, HOME)
    fake_clock.advance(days=30, seconds=-1)
    call(token, HOME)
    assert found(of) == {}
    fake_clock.advance(seconds=1)
    assert found(of) == {"only-reads": [NAME]}
    call(token, HOME, name="approve_booking", id=1)
    assert found(of) == {}
    assert db.session.get_one(ApiKey, key.id).last_changed_at == fake_clock()
    fake_clock.advance(days=89)
    call(token, HOME)
    fake_clock.advance(days=1, seconds=-1)
    assert found(of) == {}
    fake_clock.advance(seconds=1)
    assert found(of) == {"only-reads": [NAME]}
    fake_clock.advance(days=89)
    assert found(of) == {"idle": [NAME]}, "then nothing is known of what it does"


def test_a_change_that_failed_is_none_and_one_that_succeeded_is_noted_once_a_day(
    of: Organization, maya: Member, fake_clock: Clock
) -> None:
    key, token = good(of, maya, last_used_at=None, scope="read_write")

    def changed() -> datetime | None:
        db.session.rollback()
        return db.session.get_one(ApiKey, key.id).last_changed_at

    with pytest.raises(NotFound):
        call(token, HOME, name="approve_booking", id=99)
    assert changed() is None
    call(token, HOME, name="approve_booking", id=1)
    first = fake_clock()
    assert changed() == first
    fake_clock.advance(days=1, seconds=-1)
    call(token, HOME, name="approve_booking", id=2)
    assert changed() == first
    fake_clock.advance(seconds=1)
    call(token, HOME, name="approve_booking", id=3)
    assert changed() == fake_clock()


@pytest.mark.on_sqlite
@pytest.mark.parametrize(
    "name",
    [
        "test",
        "Key",
        "API key",
        "api-key 2",
        "New key!",
        "asdf",
        "key 1",
        "Claude",
        "ChatGPT",
        "TEST_2",
    ]
    + ["x", "ab", "7", "2026", "12-34", "🔑🔑🔑", "ｔｅｓｔ", "My Claude key"],
)
def test_vague_name(of: Organization, maya: Member, name: str) -> None:
    key, _ = good(of, maya, name=name)
    assert found(of) == {"vague": [name]}
    lifecycle.rename(Actor.of_member(maya, Origin()), key.id, f"{name} at the gate")
    assert found(of) == {}


def test_key_has_no_end_date(of: Organization, maya: Member) -> None:
    key, _ = good(of, maya, expires_at=None)
    assert found(of) == {"endless": [NAME]}
    assert checkup_findings.apply_fix(Actor.of_member(maya, Origin()), Kind.ENDLESS, [key.id]) == (
        [NAME],
        [],
    )
    assert found(of) == {}


def test_too_many_members_may_create_keys(of: Organization, maya: Member) -> None:
    for number in range(MAKERS_MAX - 1):
        factories.member(of, "manager", f"Manager {number}")
    factories.member(of, "viewer", "Viewer")
    assert found(of) == {}
    one_more = factories.member(of, "manager", "Zoë")
    assert len(found(of)["makers"]) == MAKERS_MAX + 1
    of.key_makers = "admins"
    db.session.commit()
    assert found(of) == {}
    of.key_makers = "managers"
    db.session.commit()
    assert "makers" in found(of)
    members.set_disabled(Actor.of_member(maya, Origin()), one_more.id, disabled=True)
    assert found(of) == {}


def test_keys_that_ended_and_other_organizations_are_not_looked_at(
    of: Organization, maya: Member, fake_clock: Clock
) -> None:
    bad = {"name": "test", "last_used_at": None, "made": fake_clock() - 400 * DAY}
    good(of, maya, **bad, revoked_at=fake_clock(), released_at=fake_clock())
    good(of, maya, **bad, expires_at=fake_clock(), released_at=fake_clock())
    other = factories.organization("Other")
    good(other, factories.member(other), **bad)
    assert found(of) == {}
    assert set(found(other)) == {"due", "unused", "vague"}


# What mends it -----------------------------------------------------------------------------------


def events(action: str) -> list[AuditEvent]:
    db.session.rollback()
    return db.session.query(AuditEvent).filter_by(action=action).order_by(AuditEvent.id).all()


def test_mend_revokes_those_still_concerned_and_tells_of_the_rest(
    of: Organization, maya: Member, fake_clock: Clock
) -> None:
    actor = Actor.of_member(maya, Origin())
    made = fake_clock() - 20 * DAY
    idle, _ = good(of, maya, name="Idle", last_used_at=None, made=made)
    busy, token = good(of, maya, name="Busy", last_used_at=None, made=made)
    call(token, HOME)
    assert checkup_findings.apply_fix(actor, Kind.UNUSED, [idle.id, busy.id]) == (
        ["Idle"],
        ["Busy"],
    )
    (event,) = events("key.revoked")
    assert (event.target_name, event.detail) == (
        "Idle",
        {"reason": "Check-up: the key was never used"},
    )
    assert db.session.get_one(ApiKey, busy.id).works
    assert checkup_findings.apply_fix(actor, Kind.UNUSED, [idle.id]) == ([], ["Idle"])
    assert len(events("key.revoked")) == 1


def test_mend_makes_keys_read_only(of: Organization, maya: Member, fake_clock: Clock) -> None:
    key, token = good(of, maya, last_used_at=None, scope="read_write")
    call(token, HOME)
    fake_clock.advance(days=31)
    assert checkup_findings.apply_fix(
        Actor.of_member(maya, Origin()), Kind.ONLY_READS, [key.id]
    ) == ([NAME], [])
    assert db.session.get_one(ApiKey, key.id).scope == "read"
    (event,) = events("key.narrowed")
    assert (event.target_name, event.detail) == (NAME, {"before": "read_write", "after": "read"})
    with pytest.raises(Exception, match="may only read"):
        call(token, HOME, name="approve_booking", id=1)


def test_mend_gives_an_end_date_at_which_the_key_stops(
    of: Organization, maya: Member, fake_clock: Clock
) -> None:
    key, token = good(of, maya, expires_at=None)
    checkup_findings.apply_fix(Actor.of_member(maya, Origin()), Kind.ENDLESS, [key.id])
    (event,) = events("key.expiry_set")
    ends = db.session.get_one(ApiKey, key.id).expires_at
    assert event.detail == {"after": rfc3339(ends)}
    fake_clock.moment = ends - SECOND
    call(token, HOME)
    fake_clock.advance(seconds=1)
    with pytest.raises(Exception, match="expired"):
        call(token, HOME)


def test_mend_touches_nothing_when_one_key_is_somebody_elses_or_none(
    of: Organization, maya: Member
) -> None:
    actor = Actor.of_member(maya, Origin())
    mine, _ = good(of, maya, expires_at=None)
    other = factories.organization("Other")
    theirs, _ = good(other, factories.member(other), expires_at=None)
    for bad in (theirs.id, 999_999):
        with pytest.raises(NotFound):
            checkup_findings.apply_fix(actor, Kind.ENDLESS, [mine.id, bad])
    with pytest.raises(NotFound):
        checkup_findings.apply_fix(actor, Kind.DUE, [mine.id])
    db.session.expire_all()
    assert db.session.get_one(ApiKey, mine.id).expires_at is None
    assert db.session.get_one(ApiKey, theirs.id).expires_at is None
    assert events("key.expiry_set") == []


@pytest.mark.parametrize("months", [0, 25, -1])
def test_rotation_is_set_to_1_to_24_months(of: Organization, maya: Member, months: int) -> None:
    with pytest.raises(Invalid) as info:
        organizations.change_organization(
            Actor.of_member(maya, Origin()),
            name="X",
            timezone="UTC",
            status=of.status,
            key_makers=of.key_makers,
            rotate_months=months,
        )
    assert [error.field for error in info.value.errors] == ["rotate_months"]
