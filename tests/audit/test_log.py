"""The audit log: recorded beside the change, filtered, paged, exported."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import event as listening
from sqlalchemy import func, select

from convene_keys import clock
from convene_keys.audit import export
from convene_keys.audit import log as audit_log
from convene_keys.audit import queries as audit_queries
from convene_keys.audit.actions import Action
from convene_keys.audit.log import Actor, Origin, Target, record
from convene_keys.audit.queries import Filter
from convene_keys.db.session import db, transaction
from convene_keys.errors import Malformed
from convene_keys.keys import tokens
from convene_keys.models import AuditEvent, Organization, Outcome
from tests import factories
from tests.conftest import Clock

ORIGIN = Origin("192.0.2.7", "curl/8", "r1")


@pytest.fixture
def organization(app: Flask) -> Organization:
    return factories.organization()


def _record(actor: Actor, action: Action = Action.BOOKING_LISTED, **more: Any) -> AuditEvent:
    with transaction() as session:
        return session.get_one(AuditEvent, record(session, actor, action, **more))


def _count() -> int:
    return db.session.scalar(select(func.count()).select_from(AuditEvent)) or 0


def _ids(organization: Organization, **wanted: Any) -> list[int]:
    found, _ = audit_queries.page(
        db.session(), organization.id, Filter(**wanted), before=None, limit=1_000
    )
    return [event.id for event in found]


def test_record_keeps_who_what_where_and_when(
    organization: Organization, fake_clock: Clock
) -> None:
    key, _ = factories.api_key(organization)
    event = _record(
        Actor.of_key(key, ORIGIN),
        Action.BOOKING_APPROVED,
        target=Target("booking", 123, "booking 123"),
        detail={"before": "pending"},
    )
    assert export.as_dict(event) == {
        "id": event.id,
        "at": "2026-11-24T12:00:00Z",
        "organization_id": organization.id,
        "actor": "key",
        "key_id": key.id,
        "key_name": "Claude on laptop",
        "member_id": None,
        "member_name": None,
        "action": "booking.approved",
        "target_type": "booking",
        "target_id": "123",
        "target_name": "booking 123",
        "outcome": "ok",
        "ip": "192.0.2.7",
        "user_agent": "curl/8",
        "request_id": "r1",
        "detail": {"before": "pending"},
    }


def test_actor_is_named_after_the_key_the_member_or_the_system(organization: Organization) -> None:
    key, _ = factories.api_key(organization, "Zapier")
    member = factories.member(organization, name="Noor")
    assert Actor.of_key(key, ORIGIN).name == "Zapier"
    assert Actor.of_member(member, ORIGIN).name == "Noor"
    assert Actor.of_member(member, ORIGIN).member_id == member.id
    assert Actor.system(organization.id).name == "the system"
    assert Actor.system(organization.id).origin == Origin()


def test_rollback_leaves_neither_the_change_nor_the_event(organization: Organization) -> None:
    def change() -> None:
        with transaction() as session:
            session.get_one(Organization, organization.id).name = "Other"
            record(session, Actor.system(organization.id), Action.SETTINGS_ORGANIZATION_CHANGED)
            raise RuntimeError("the power went")

    with pytest.raises(RuntimeError):
        change()
    assert _count() == 0
    assert db.session.get_one(Organization, organization.id).name == "Riverside Market"


def test_no_event_no_change(organization: Organization) -> None:
    """An event that the database refuses takes the change with it."""

    def change() -> None:
        with transaction() as session:
            session.get_one(Organization, organization.id).name = "Other"
            record(session, Actor.system(10**9), Action.SETTINGS_ORGANIZATION_CHANGED)

    with pytest.raises(Exception, match="(?i)foreign key"):
        change()
    assert db.session.get_one(Organization, organization.id).name == "Riverside Market"


def test_secrets_never_appear_in_any_column(organization: Organization) -> None:
    token = tokens.mint()
    origin = Origin("192.0.2.7", f"agent {token}", "r1")
    for actor in (
        Actor.system(organization.id, origin),
        Actor(audit_log.ActorKind.KEY, organization.id, origin, key_name=token),
        Actor(audit_log.ActorKind.MEMBER, organization.id, origin, member_name=token),
    ):
        event = _record(
            actor,
            target=Target("request", None, f"GET /{token}"),
            detail={"reason": f"in {token}", token: [{"deep": token}]},
        )
        row = json.dumps(export.as_dict(event), ensure_ascii=False)
        assert token not in row
        assert token[7:20] not in row
        assert tokens.hint(token) + "…" in row


def test_long_texts_are_cut_to_their_columns(organization: Organization) -> None:
    event = _record(
        Actor.system(organization.id, Origin(None, "a" * 1_000)),
        target=Target("request", None, "b" * 1_000),
    )
    assert event.user_agent == "a" * 256
    assert event.target_name == "b" * 200
    assert event.target_id is None


@pytest.fixture
def varied(organization: Organization, fake_clock: Clock) -> dict[str, int]:
    """Five events of each kind of actor, an hour apart, and one of another organization."""
    key, _ = factories.api_key(organization, "Claude 100%")
    member = factories.member(organization, name="Noor_1")
    other = factories.organization("Elsewhere")
    made = {}
    booking = Target("booking", 7, "booking 7")
    for name, actor, more in (
        ("key", Actor.of_key(key, ORIGIN), {"target": booking}),
        ("denied", Actor.of_key(key, Origin("2001:db8::1")), {"outcome": Outcome.DENIED}),
        ("member", Actor.of_member(member, Origin(None, None, "req9")), {}),
        ("system", Actor.system(organization.id), {"action": Action.KEY_EXPIRED}),
        ("other", Actor.system(other.id, ORIGIN), {"target": booking}),
    ):
        made[name] = _record(actor, **more).id
        fake_clock.advance(hours=1)
    return made | {"key_id": key.id, "member_id": member.id}


def test_filter_parts_narrow(organization: Organization, varied: dict[str, int]) -> None:
    noon = clock.now() - timedelta(hours=5)
    for wanted, expected in (
        ({}, ["system", "member", "denied", "key"]),
        ({"key": varied["key_id"]}, ["denied", "key"]),
        ({"key": 0}, []),
        ({"member": varied["member_id"]}, ["member"]),
        ({"action": "key.expired"}, ["system"]),
        ({"action": "no.such"}, []),
        ({"outcome": "denied"}, ["denied"]),
        ({"since": noon + timedelta(hours=1)}, ["system", "member", "denied"]),
        ({"until": noon + timedelta(hours=1)}, ["key"]),
        ({"since": noon, "until": noon}, []),
        ({"key": varied["key_id"], "outcome": "ok"}, ["key"]),
    ):
        assert _ids(organization, **wanted) == [varied[name] for name in expected], wanted


def test_search_looks_at_names_action_address_and_request(
    organization: Organization, varied: dict[str, int]
) -> None:
    for q, expected in (
        ("claude", ["denied", "key"]),
        ("100%", ["denied", "key"]),
        ("%", ["denied", "key"]),
        ("noor_", ["member"]),
        ("_", ["member"]),
        ("BOOKING 7", ["key"]),
        ("expired", ["system"]),
        ("192.0.2.7", ["key"]),
        ("192.0.2", []),
        ("2001:db8::1", ["denied"]),
        ("req9", ["member"]),
        ("nothing like it", []),
        ("null\0byte", []),
    ):
        assert _ids(organization, q=q) == [varied[name] for name in expected], q


def test_count_tells_how_many_and_stops_at_the_cap(
    organization: Organization, varied: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for cap, expected in ((4, (4, False)), (3, (3, True)), (1, (1, True))):
        monkeypatch.setattr(audit_queries, "COUNT_CAP", cap)
        assert audit_queries.count(db.session(), organization.id, Filter()) == expected
    assert audit_queries.count(db.session(), organization.id, Filter(outcome="failed")) == (
        0,
        False,
    )


def test_spans_are_counted_up_to_the_cap(
    organization: Organization, varied: dict[str, int], fake_clock: Clock
) -> None:
    """What happened at a span's beginning counts, what happened at its end counts in the next."""
    own = AuditEvent.organization_id == organization.id
    at = db.session.scalars(select(AuditEvent.at).where(own).order_by(AuditEvent.at)).all()
    hour = timedelta(hours=1)
    spans = [(at[0] - hour, at[0]), (at[0], at[-1]), (at[-1], at[-1] + hour)]

    def counts(cap: int, **wanted: Any) -> list[int]:
        return audit_queries.count_spans(
            db.session(), organization.id, Filter(**wanted), spans, cap
        )

    assert counts(9) == [0, len(at) - 1, 1]
    assert counts(2) == [0, 2, 1]
    assert counts(9, action="nothing") == [0, 0, 0]


def test_spans_of_many_keys_are_counted_by_one_query(
    organization: Organization, fake_clock: Clock
) -> None:
    busy, _ = factories.api_key(organization, "Busy")
    idle, _ = factories.api_key(organization, "Idle")
    foreign, _ = factories.api_key(factories.organization(), "Foreign")
    for key in (busy, busy, foreign):
        _record(Actor.of_key(key, ORIGIN))
    now, day = fake_clock(), timedelta(days=1)
    ids = [busy.id, idle.id, foreign.id]
    found = audit_queries.count_key_spans(
        db.session(), organization.id, ids, [(now - day, now), (now, now + day)], 9
    )
    assert found == {busy.id: [0, 2], idle.id: [0, 0], foreign.id: [0, 0]}


def _fill(organization: Organization, number: int, per_moment: int = 3) -> None:
    """Events of which several share a moment, so that the id has to tell them apart."""
    start = clock.now()
    with transaction() as session:
        session.add_all(
            AuditEvent(
                at=start + timedelta(seconds=index // per_moment),
                organization_id=organization.id,
                actor="system",
                action="booking.listed",
                outcome="ok" if index % 2 else "denied",
                detail={},
                mac=bytes(32),
            )
            for index in range(number)
        )


@pytest.mark.parametrize("wanted", [Filter(), Filter(outcome="denied")])
@pytest.mark.parametrize("limit", [1, 4, 100])
def test_pages_are_complete_and_do_not_overlap(
    organization: Organization, fake_clock: Clock, wanted: Filter, limit: int
) -> None:
    _fill(organization, 23)
    _fill(factories.organization(), 5)
    found: list[AuditEvent] = []
    before: int | None = None
    while True:
        events, before = audit_queries.page(
            db.session(), organization.id, wanted, before=before, limit=limit
        )
        assert 0 < len(events) <= limit
        found += events
        assert len(found) <= 23, "a page came twice"
        if before is None:
            break
        assert before == events[-1].id
        if len(found) == limit:
            fake_clock.advance(days=1)
            _record(Actor.system(organization.id))  # a new event moves no later page
    assert len(found) == (12 if wanted.outcome else 23)
    places = [(event.at, event.id) for event in found]
    assert places == sorted(places, reverse=True)
    assert len(set(places)) == len(places)


def test_unknown_or_foreign_cursor_is_refused(organization: Organization) -> None:
    foreign = _record(Actor.system(factories.organization().id))
    for cursor in (foreign.id, 0, -1, 10**9):
        with pytest.raises(Malformed) as info:
            audit_queries.page(db.session(), organization.id, Filter(), before=cursor, limit=5)
        assert info.value.code == "invalid_cursor"


@pytest.fixture
def batches(app: Flask) -> Iterator[list[int]]:
    """How many events each read loaded, in the order of the reads."""
    loaded: list[int] = []

    def count(_: object) -> None:
        loaded.append(0)

    def add(*_: object) -> None:
        loaded[-1] += 1

    listening.listen(db.session, "do_orm_execute", count)
    listening.listen(AuditEvent, "load", add)
    yield loaded
    listening.remove(db.session, "do_orm_execute", count)
    listening.remove(AuditEvent, "load", add)


def test_export_is_complete_oldest_first_and_in_batches(
    organization: Organization,
    fake_clock: Clock,
    batches: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(export, "_EXPORT_BATCH", 10)
    _fill(organization, 25)
    _fill(factories.organization(), 5)
    fake_clock.advance(hours=1)
    places = []
    exported = export.export(db.session(), organization.id, Filter())
    batches.clear()
    for event in exported:
        places.append((event.at, event.id))
        held = [row for row in db.session.identity_map.values() if row is not organization]
        assert len(held) <= 10, "earlier batches are let go"
    assert len(places) == 25
    assert places == sorted(places)
    assert batches == [10, 10, 5, 0]


def test_export_holds_no_transaction_while_a_batch_is_read(
    organization: Organization, fake_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events that come while a slow reader downloads are not part of it and nobody waits."""
    monkeypatch.setattr(export, "_EXPORT_BATCH", 2)
    _fill(organization, 5, per_moment=1)
    fake_clock.advance(minutes=1)
    seen, system = 0, Actor.system(organization.id)
    for _ in export.export(db.session(), organization.id, Filter()):
        seen += 1
        assert seen <= 5, "it never ends"
        fake_clock.advance(seconds=1)
        _record(system)
    assert seen == 5


def test_export_takes_the_filter(organization: Organization, varied: dict[str, int]) -> None:
    number = organization.id
    exported = export.export(db.session(), number, Filter(key=varied["key_id"]))
    assert [event.id for event in exported] == [varied["key"], varied["denied"]]
    assert list(export.export(db.session(), number, Filter(q="nothing"))) == []


def _csv(events: Sequence[AuditEvent]) -> list[list[str]]:
    return list(csv.reader(io.StringIO("".join(export.csv_lines(iter(events))), newline="")))


def test_csv_has_the_columns_and_a_row_an_event(organization: Organization) -> None:
    name = 'a "quoted", name\r\nover two lines'
    event = _record(Actor.system(organization.id), target=Target("x", 1, name), detail={"é": 1})
    head, row = _csv([event])
    assert tuple(head) == export.COLUMNS
    assert dict(zip(head, row, strict=True)) == {
        **{
            key: "" if value is None else str(value) for key, value in export.as_dict(event).items()
        },
        "detail": '{"é": 1}',
    }
    assert _csv([]) == [list(export.COLUMNS)]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠"])
def test_csv_runs_no_formula(organization: Organization, start: str) -> None:
    text = f"{start}HYPERLINK(1)"
    actor = Actor.system(organization.id, Origin(None, text))
    event = _record(actor, target=Target("x", text, text))
    row = dict(zip(*_csv([event]), strict=True))
    for column in ("user_agent", "target_id", "target_name"):
        assert row[column] == f"'{text}"


def test_csv_leaves_numbers_and_plain_text_alone(organization: Organization) -> None:
    event = _record(Actor.system(organization.id), target=Target("x", 1, "a=b"))
    row = dict(zip(*_csv([event]), strict=True))
    assert row["target_name"] == "a=b"
    assert row["id"] == str(event.id)


def test_jsonl_is_a_json_object_a_line(organization: Organization) -> None:
    events = [
        _record(Actor.system(organization.id), target=Target("x", 1, f"é\n\u2028 {index}"))
        for index in range(3)
    ]
    lines = list(export.jsonl_lines(iter(events)))
    assert [json.loads(line) for line in lines] == [export.as_dict(event) for event in events]
    assert all(line.endswith("\n") and line.count("\n") == 1 for line in lines)
    assert list(json.loads(lines[0])) == list(export.COLUMNS)
