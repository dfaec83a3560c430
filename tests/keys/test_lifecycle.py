"""API keys: their whole life, and how one is told from another."""

from datetime import timedelta
from threading import Barrier, Thread
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError

from convene_keys import clock, config
from convene_keys.audit import log as audit_log
from convene_keys.audit.actions import Action
from convene_keys.audit.log import Actor, Origin
from convene_keys.db.session import db, raw_connection, transaction, write
from convene_keys.errors import Invalid, NotFound, Unauthenticated
from convene_keys.keys import authentication, lifecycle, tokens
from convene_keys.keys import queries as key_queries
from convene_keys.models import ApiKey, AuditEvent, KeyStatus, Member, Organization, Scope, Tool
from tests import factories
from tests.conftest import Clock
from tests.databases import PEPPER

ORIGIN = Origin("192.0.2.7", "curl/8", "r1")
PEPPERS = [PEPPER]


@pytest.fixture
def organization(app: Flask) -> Organization:
    return factories.organization()


@pytest.fixture
def maya(organization: Organization) -> Member:
    return factories.member(organization)


@pytest.fixture
def actor(maya: Member) -> Actor:
    return Actor.of_member(maya, ORIGIN)


def _create(actor: Actor, name: str = "Claude on laptop", **more: Any) -> tuple[ApiKey, str]:
    values = {
        "name": name,
        "tool": Tool.CLAUDE,
        "scope": Scope.READ_WRITE,
        "expires_in_days": None,
        "peppers": PEPPERS,
        "created_by_id": actor.member_id,
    }
    return lifecycle.create(actor, **{**values, **more})


def _events(*actions: Action) -> list[AuditEvent]:
    db.session.rollback()  # SQLite: see what others committed since
    query = select(AuditEvent).order_by(AuditEvent.id)
    events = db.session.scalars(query).all()
    return [event for event in events if not actions or event.action in actions]


def _names(page: key_queries.KeyPage) -> list[str]:
    return [key.name for key in page.keys]


def test_create_gives_the_row_and_its_secret_once(actor: Actor, fake_clock: Clock) -> None:
    key, token = _create(actor, "  Claude on   laptop ")
    assert tokens.is_well_formed(token)
    assert (key.name, key.tool, key.scope) == ("Claude on laptop", "claude", "read_write")
    assert key.hint == token[:11]
    assert key.digest == tokens.digest(token, PEPPER)
    assert key.pepper_id == config.pepper_id(PEPPER)
    assert key.created_at == clock.now()
    assert key.created_by_name == "Maya"
    assert key.status is KeyStatus.ACTIVE
    assert key.works
    (event,) = _events()
    assert (event.action, event.target_name, event.member_name, event.target_id) == (
        "key.created",
        "Claude on laptop",
        "Maya",
        str(key.id),
    )
    assert event.detail == {"scope": "read_write", "tool": "claude", "hint": key.hint}


def test_secret_is_nowhere_in_the_database(actor: Actor) -> None:
    _, token = _create(actor)
    for table in ("api_key", "audit_event"):
        for row in db.session.execute(text(f"SELECT * FROM {table}")):  # noqa: S608
            assert token not in repr(tuple(row))
            assert token[7:-6] not in repr(tuple(row))


@pytest.mark.parametrize("days", [0, -1, 3_651])
def test_create_refuses_an_expiry_out_of_range(actor: Actor, days: int) -> None:
    with pytest.raises(Invalid) as info:
        _create(actor, expires_in_days=days)
    assert [error.field for error in info.value.errors] == ["expires_in_days"]
    assert _events() == []


@pytest.mark.parametrize("name", ["", " ", "x" * 101, "x" * 10_000, "a\0b", "a\u202eb", "a\nb"])
def test_create_and_rename_refuse_a_bad_name(actor: Actor, name: str) -> None:
    key, _ = _create(actor)
    for attempt in (lambda: _create(actor, name), lambda: lifecycle.rename(actor, key.id, name)):
        with pytest.raises(Invalid) as info:
            attempt()
        assert [error.field for error in info.value.errors] == ["name"]
    assert len(_events()) == 1


def test_create_and_rename_refuse_a_name_that_is_taken(actor: Actor) -> None:
    _create(actor, "Straße")
    other, _ = _create(actor, "Other")
    for attempt in (
        lambda: _create(actor, "STRASSE"),
        lambda: lifecycle.rename(actor, other.id, "strasse"),
    ):
        with pytest.raises(Invalid, match="Another active key has this name") as info:
            attempt()
        assert info.value.errors[0].field == "name"
    assert [event.action for event in _events()] == ["key.created", "key.created"]
    assert db.session.get_one(ApiKey, other.id).name == "Other"


def test_key_of_no_organization_is_no_matter_of_its_name(app: Flask) -> None:
    with pytest.raises(IntegrityError):
        _create(Actor.system(10**9))


def test_name_is_free_in_another_organization_and_after_a_revoke(actor: Actor) -> None:
    first, _ = _create(actor)
    _create(Actor.system(factories.organization().id))
    lifecycle.revoke(actor, first.id)
    assert _create(actor)[0].name == first.name


def test_key_as_a_name_is_kept_as_its_hint_only(actor: Actor) -> None:
    token = tokens.mint()
    key, _ = _create(actor, f"my {token}")
    assert key.name == f"my {tokens.hint(token)}…"
    assert lifecycle.rename(actor, key.id, token).name == f"{tokens.hint(token)}…"


def test_same_name_created_at_the_same_moment_is_taken_once(app: Flask, actor: Actor) -> None:
    barrier, outcomes = Barrier(4), []

    def attempt() -> None:
        with app.app_context():
            barrier.wait()
            try:
                _create(actor)
                outcomes.append("made")
            except Invalid:
                outcomes.append("taken")

    threads = [Thread(target=attempt) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["made", "taken", "taken", "taken"]
    assert len(_events(Action.KEY_CREATED)) == 1


def test_rename_records_the_name_before(actor: Actor) -> None:
    key, _ = _create(actor)
    assert lifecycle.rename(actor, key.id, "Zapier").name == "Zapier"
    assert lifecycle.rename(actor, key.id, "Zapier").name == "Zapier"
    assert lifecycle.rename(actor, key.id, "ZAPIER").name_folded == "zapier"
    first, second = _events(Action.KEY_RENAMED)
    assert (first.target_name, first.detail) == ("Zapier", {"before": "Claude on laptop"})
    assert (second.target_name, second.detail) == ("ZAPIER", {"before": "Zapier"})


def test_verbs_find_nothing_in_another_organization(actor: Actor) -> None:
    foreign, _ = factories.api_key(factories.organization())
    for number in (foreign.id, 0, 10**9, 10**30):
        for attempt in (lifecycle.revoke, lambda a, i: lifecycle.rename(a, i, "Mine")):
            with pytest.raises(NotFound, match="no such key"):
                attempt(actor, number)
    assert _events() == []
    assert db.session.get_one(ApiKey, foreign.id).revoked_at is None


def test_revoke_records_who_and_why(actor: Actor, fake_clock: Clock) -> None:
    key, _ = _create(actor)
    token = tokens.mint()
    key = lifecycle.revoke(actor, key.id, f" lost the laptop, {token} ")
    reason = f"lost the laptop, {tokens.hint(token)}…"
    assert (key.revoked_at, key.released_at) == (clock.now(), clock.now())
    assert (key.revoked_by_name, key.revoke_reason) == ("Maya", reason)
    assert key.status is KeyStatus.REVOKED
    assert not key.works
    (event,) = _events(Action.KEY_REVOKED)
    assert (event.target_name, event.detail) == (key.name, {"reason": reason})


def test_revoke_twice_keeps_the_first_time(actor: Actor, fake_clock: Clock) -> None:
    key, _ = _create(actor)
    lifecycle.revoke(actor, key.id)
    first = clock.now()
    fake_clock.advance(hours=1)
    again = lifecycle.revoke(Actor.system(actor.organization_id), key.id, "again")
    assert (again.revoked_at, again.revoked_by_name, again.revoke_reason) == (first, "Maya", None)
    assert len(_events(Action.KEY_REVOKED)) == 1


@pytest.mark.parametrize("reason", ["x" * 301, "a\0b", "two\nlines"])
def test_revoke_refuses_a_bad_reason(actor: Actor, reason: str) -> None:
    key, _ = _create(actor)
    with pytest.raises(Invalid) as info:
        lifecycle.revoke(actor, key.id, reason)
    assert info.value.errors[0].field == "reason"
    assert db.session.get_one(ApiKey, key.id).works


def test_status_follows_the_clock(actor: Actor, fake_clock: Clock) -> None:
    key, _ = _create(actor, expires_in_days=30)
    seen = [key.status]
    for step in (
        {"days": 15, "hours": 23},
        {"hours": 1},
        {"days": 14, "seconds": -1},
        {"seconds": 1},
    ):
        fake_clock.advance(**step)
        seen.append(key.status)
    assert seen == ["active", "active", "expiring", "expiring", "expired"]
    assert key.rotate_by == clock.months_after(key.created_at, 6).date()


def test_expired_key_gives_up_its_name(actor: Actor, fake_clock: Clock) -> None:
    first, _ = _create(actor, expires_in_days=1)
    other, _ = _create(actor, "Other", expires_in_days=2)
    fake_clock.advance(days=1)
    second, _ = _create(actor)
    assert db.session.get_one(ApiKey, first.id).released_at == first.expires_at
    fake_clock.advance(days=1)
    assert lifecycle.rename(actor, second.id, "OTHER").name == "OTHER"
    expired = _events(Action.KEY_EXPIRED)
    assert [(event.actor, event.target_id) for event in expired] == [
        ("system", str(first.id)),
        ("system", str(other.id)),
    ]
    revoked = lifecycle.revoke(actor, first.id)
    assert revoked.released_at == revoked.expires_at


# Lists ---------------------------------------------------------------------------------------


@pytest.fixture
def shelf(organization: Organization, maya: Member, fake_clock: Clock) -> Organization:
    """Keys in every state, an hour apart, and one elsewhere."""
    now = clock.now()
    for name, more in (
        ("Bravo", {"last_used_at": now - timedelta(days=2)}),
        ("alpha 50%", {"last_used_at": now - timedelta(days=1)}),
        ("Charlie", {"expires_at": now + timedelta(days=3)}),
        ("Delta", {"revoked_at": now, "released_at": now}),
        ("Echo", {"expires_at": now - timedelta(days=1)}),
        ("Élan_", {"expires_at": now + timedelta(days=30)}),
    ):
        factories.api_key(organization, name, creator=maya, created_at=clock.now(), **more)
        fake_clock.advance(hours=1)
    factories.api_key(factories.organization(), "Elsewhere")
    return organization


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("active", ["Élan_", "Charlie", "alpha 50%", "Bravo"]),
        ("expiring", ["Charlie"]),
        ("revoked", ["Echo", "Delta"]),
        ("all", ["Élan_", "Echo", "Delta", "Charlie", "alpha 50%", "Bravo"]),
    ],
)
def test_list_by_status(shelf: Organization, status: str, expected: list[str]) -> None:
    page = key_queries.list_keys(db.session(), shelf.id, status=status)
    assert _names(page) == expected
    assert (page.total, page.page, page.pages) == (len(expected), 1, 1)


@pytest.mark.parametrize(
    ("sort", "descending", "expected"),
    [
        ("name", False, ["alpha 50%", "Bravo", "Charlie", "Élan_"]),
        ("name", True, ["Élan_", "Charlie", "Bravo", "alpha 50%"]),
        ("created", False, ["Bravo", "alpha 50%", "Charlie", "Élan_"]),
        ("last_used", True, ["alpha 50%", "Bravo", "Élan_", "Charlie"]),
        ("last_used", False, ["Charlie", "Élan_", "Bravo", "alpha 50%"]),
    ],
)
def test_list_sorted(shelf: Organization, sort: str, descending: bool, expected: list[str]) -> None:
    page = key_queries.list_keys(db.session(), shelf.id, sort=sort, descending=descending)
    assert _names(page) == expected


@pytest.mark.parametrize(
    ("q", "expected"),
    [
        ("ALPHA", ["alpha 50%"]),
        ("%", ["alpha 50%"]),
        ("_", ["Élan_"]),
        ("E\u0301LAN", ["Élan_"]),
        ("elsewhere", []),
        ("x" * 10_000, []),
    ],
)
def test_list_searched_by_name(shelf: Organization, q: str, expected: list[str]) -> None:
    assert _names(key_queries.list_keys(db.session(), shelf.id, q=q)) == expected


def test_list_search_with_odd_characters_fails_no_database(shelf: Organization) -> None:
    for q in ("\0", "a\0", "\ud800"):
        assert key_queries.list_keys(db.session(), shelf.id, q=q).page == 1


def test_list_in_pages(shelf: Organization) -> None:
    found = []
    for number in (1, 2, 3):
        page = key_queries.list_keys(db.session(), shelf.id, status="all", page=number, page_size=2)
        assert (page.page, page.pages, page.total) == (number, 3, 6)
        found += _names(page)
    assert len(set(found)) == 6
    for number, nearest in ((99, 3), (0, 1), (-5, 1)):
        page = key_queries.list_keys(db.session(), shelf.id, status="all", page=number, page_size=2)
        assert page.page == nearest
        assert len(page.keys) == 2
    empty = key_queries.list_keys(db.session(), factories.organization().id)
    assert (empty.keys, empty.total, empty.pages) == ([], 0, 1)


def test_choices_tell_which_keys_have_ended(shelf: Organization) -> None:
    found = [(key.name, key.ended) for key in key_queries.choices(db.session(), shelf.id)[0]]
    assert found == [
        ("alpha 50%", False),
        ("Bravo", False),
        ("Charlie", False),
        ("Delta", True),
        ("Echo", True),
        ("Élan_", False),
    ]


def test_choices_of_many_keys_are_those_used_last_and_the_chosen_one(
    shelf: Organization, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_queries, "CHOICES", 1)
    chosen = db.session.query(ApiKey).filter_by(name="Élan_").one().id
    for key_id, names in ((None, ["alpha 50%"]), (chosen, ["alpha 50%", "Élan_"])):
        found, more = key_queries.choices(db.session(), shelf.id, key_id)
        assert [key.name for key in found] == names
        assert more
    monkeypatch.setattr(key_queries, "CHOICES", 6)
    assert key_queries.choices(db.session(), shelf.id)[1] is False


def test_what_the_list_says_beside_its_rows(shelf: Organization) -> None:
    assert key_queries.expiring(db.session(), shelf.id) == 1
    assert key_queries.any_ever(db.session(), shelf.id)
    empty = factories.organization()
    assert key_queries.expiring(db.session(), empty.id) == 0
    assert not key_queries.any_ever(db.session(), empty.id)


def test_names_lists_every_key_there_ever_was(shelf: Organization) -> None:
    assert [key.name for key in key_queries.list_all(db.session(), shelf.id)] == [
        "alpha 50%",
        "Bravo",
        "Charlie",
        "Delta",
        "Echo",
        "Élan_",
    ]


def test_key_without_a_creator_is_the_command_lines(organization: Organization) -> None:
    assert factories.api_key(organization)[0].created_by_name == "the command line"


# Whose key is it -----------------------------------------------------------------------------


def test_find_tells_whose_key_it_is(organization: Organization) -> None:
    key, token = factories.api_key(organization)
    assert authentication.authenticate(raw_connection(db.session()), token, PEPPERS).id == key.id
    with pytest.raises(Unauthenticated) as info:
        authentication.authenticate(raw_connection(db.session()), tokens.mint(), PEPPERS)
    assert info.value.code == "key_unknown"


def test_old_pepper_is_good_for_keys_made_under_it_only(organization: Organization) -> None:
    newest = "a newer pepper of at least 32 characters"
    row, token = factories.api_key(organization)
    row.pepper_id = config.pepper_id(newest)
    db.session.commit()
    with pytest.raises(Unauthenticated):
        authentication.authenticate(raw_connection(db.session()), token, [newest, PEPPER])


def test_use_moves_a_key_to_the_newest_pepper(organization: Organization) -> None:
    key, token = factories.api_key(organization)
    newest = "a newer pepper of at least 32 characters"
    with transaction() as session:
        found = authentication.authenticate(raw_connection(session), token, [newest, PEPPER])
        assert found.id == key.id
        write(session, authentication.usage_updates(found, token, ORIGIN, [newest, PEPPER]))
    db.session.refresh(key)
    assert key.pepper_id == config.pepper_id(newest)
    assert key.digest == tokens.digest(token, newest)
    assert authentication.authenticate(raw_connection(db.session()), token, [newest]).id == key.id
    with pytest.raises(Unauthenticated):
        authentication.authenticate(raw_connection(db.session()), token, PEPPERS)


def test_refusal_tells_why(organization: Organization, fake_clock: Clock) -> None:
    now = clock.now()
    _, working = factories.api_key(organization, "A", expires_at=now + timedelta(seconds=1))
    _, expired = factories.api_key(organization, "B", expires_at=now)
    _, revoked = factories.api_key(
        organization, "C", expires_at=now, revoked_at=now, released_at=now
    )
    assert (
        authentication.refusal(
            authentication.authenticate(raw_connection(db.session()), working, PEPPERS)
        )
        is None
    )
    for token, code in ((expired, "key_expired"), (revoked, "key_revoked")):
        problem = authentication.refusal(
            authentication.authenticate(raw_connection(db.session()), token, PEPPERS)
        )
        assert problem is not None
        assert (problem.status, problem.code) == (401, code)


def _use(key: ApiKey, token: str, origin: Origin) -> bool:
    """Note a use as the runner does; whether anything was to be written."""
    with transaction() as session:
        notes = authentication.usage_updates(
            authentication.authenticate(raw_connection(session), token, PEPPERS),
            token,
            origin,
            PEPPERS,
        )
        write(session, notes)
    db.session.refresh(key)
    return bool(notes)


def test_use_is_noted_with_time_address_and_tool(
    organization: Organization, fake_clock: Clock
) -> None:
    key, token = factories.api_key(organization)
    _use(key, token, Origin("2001:db8::1", f"bot {token} " + "x" * 500))
    assert (key.last_used_at, key.last_used_ip) == (clock.now(), "2001:db8::1")
    assert key.last_used_user_agent is not None
    assert token not in key.last_used_user_agent
    assert key.last_used_user_agent.startswith(f"bot {tokens.hint(token)}… xxx")
    assert len(key.last_used_user_agent) == 256
    _use(key, token, Origin())
    assert (key.last_used_ip, key.last_used_user_agent) == (None, None)


def test_use_is_noted_once_a_minute_but_a_new_place_or_tool_at_once(
    organization: Organization, fake_clock: Clock
) -> None:
    key, token = factories.api_key(organization)
    here, first = Origin("192.0.2.1", "curl/8"), clock.now()
    assert _use(key, token, here)
    fake_clock.advance(seconds=59)
    assert not _use(key, token, here)
    assert key.last_used_at == first
    assert _use(key, token, Origin("192.0.2.2", "curl/8"))
    assert _use(key, token, Origin("192.0.2.2", "wget/1"))
    assert (key.last_used_at, key.last_used_ip) == (clock.now(), "192.0.2.2")
    fake_clock.advance(seconds=60)
    assert _use(key, token, Origin("192.0.2.2", "wget/1"))
    assert key.last_used_at == clock.now()


def _refuse(key_id: int, code: str = "key_revoked") -> None:
    with transaction() as session:
        of = session.get_one(ApiKey, key_id).organization_id
        authentication.record_refusal(session, of, key_id, ORIGIN, code)


def test_refusal_is_recorded_at_most_once_a_minute_with_a_count(
    organization: Organization, fake_clock: Clock
) -> None:
    key, _ = factories.api_key(organization, revoked_at=clock.now(), released_at=clock.now())
    other, _ = factories.api_key(organization, "B", revoked_at=clock.now(), released_at=clock.now())
    _refuse(key.id)
    for _ in range(3):
        fake_clock.advance(seconds=19)
        _refuse(key.id)
    _refuse(other.id)
    fake_clock.advance(seconds=3)
    _refuse(key.id)
    events = _events(Action.KEY_REFUSED)
    assert [(event.key_id, event.detail["count"], event.outcome) for event in events] == [
        (key.id, 1, "denied"),
        (other.id, 1, "denied"),
        (key.id, 4, "denied"),
    ]
    assert events[0].detail == {"count": 1, "code": "key_revoked"}
    assert (events[0].key_name, events[0].ip) == ("Claude on laptop", "192.0.2.7")
    db.session.refresh(key)
    assert (key.refused_count, key.refused_at) == (5, clock.now())


def test_refusals_at_the_same_moment_are_all_counted(
    app: Flask, organization: Organization, fake_clock: Clock
) -> None:
    key, _ = factories.api_key(organization, revoked_at=clock.now(), released_at=clock.now())
    key_id, barrier = key.id, Barrier(4)

    def attempt() -> None:
        with app.app_context():
            barrier.wait()
            for _ in range(3):
                _refuse(key_id)

    threads = [Thread(target=attempt) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    db.session.rollback()
    assert key.refused_count == 12
    assert [event.detail["count"] for event in _events(Action.KEY_REFUSED)] == [1]


def test_first_refusal_of_an_expired_key_notes_that_it_expired(
    organization: Organization, fake_clock: Clock
) -> None:
    key, _ = factories.api_key(organization, expires_at=clock.now())
    _refuse(key.id, "key_expired")
    fake_clock.advance(minutes=2)
    _refuse(key.id, "key_expired")
    actions = [event.action for event in _events()]
    assert actions == ["key.expired", "key.refused", "key.refused"]
    assert db.session.get_one(ApiKey, key.id).released_at == key.expires_at


def test_events_keep_the_name_the_key_had(actor: Actor) -> None:
    key, _ = _create(actor, "Before")
    with transaction() as session:
        audit_log.record(session, Actor.of_key(key, ORIGIN), Action.BOOKING_LISTED)
    lifecycle.rename(actor, key.id, "After")
    (event,) = _events(Action.BOOKING_LISTED)
    assert (event.key_id, event.key_name) == (key.id, "Before")
