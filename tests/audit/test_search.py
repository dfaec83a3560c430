"""What is typed into the log's search, and what is found where several parts have to be met."""

import random
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from convene_keys import clock
from convene_keys.audit import log as audit_log
from convene_keys.audit import queries as audit_queries
from convene_keys.audit import search
from convene_keys.audit.actions import Action
from convene_keys.audit.log import Actor, Origin, Target
from convene_keys.audit.queries import Count, Filter
from convene_keys.db.session import db, transaction
from convene_keys.keys import lifecycle
from convene_keys.models import AuditEvent, Organization, Outcome
from tests import factories
from tests.audit.conftest import ORIGIN, recorded
from tests.conftest import Clock

CONDITIONS = {
    "key": lambda event, value: event.key_id == value,
    "action": lambda event, value: event.action == value,
    "outcome": lambda event, value: event.outcome == value,
    "member": lambda event, value: event.member_id == value,
    "since": lambda event, value: event.at >= value,
    "until": lambda event, value: event.at < value,
    "q": lambda event, value: (
        value
        in (f"{event.target_type} {event.target_id}", event.ip, event.key_name, event.member_name)
    ),
}


def _found(organization: Organization, q: str) -> list[int]:
    page = audit_queries.page(db.session(), organization.id, Filter(q=q), before=None, limit=1_000)
    assert page.looked_to is None
    return [event.id for event in page.events]


def test_search_finds_what_names_numbers_actions_addresses_and_requests_mean(
    organization: Organization, fake_clock: Clock
) -> None:
    key, _ = factories.api_key(organization, "Claude 100%")
    till, _ = factories.api_key(organization, "Straßen-Kasse_7")
    member = factories.member(organization, name="Noor_1")
    request_id = audit_log.new_request_id()
    by_key, by_till = Actor.of_key(key, ORIGIN), Actor.of_key(till, Origin("2001:db8::1"))
    by_member = Actor.of_member(member, Origin(None, None, request_id))
    host = Actor.system(organization.id)
    made = {}
    for name, actor, action, more in (
        ("booking", by_key, Action.BOOKING_APPROVED, {"target": Target("booking", 7, "booking 7")}),
        ("date", by_key, Action.MARKET_DATE_VIEWED, {"target": _thing("market_date", 7)}),
        ("denied", by_till, Action.VENDOR_LISTED, {"outcome": Outcome.DENIED}),
        ("member", by_member, Action.SETTINGS_BILLING_CHANGED, {}),
        ("revoked", by_member, Action.KEY_REVOKED, {"target": lifecycle.target(key)}),
        ("other", host, Action.BOOKING_VIEWED, {"target": _thing("booking", 70)}),
        ("path", by_key, Action.PROXY_REQUEST, {"target": Target("request", None, "GET /Kasse%")}),
        ("name", host, Action.MEMBER_ADDED, {"target": Target("member", member.id, "Noor_1")}),
    ):
        made[name] = recorded(actor, action, **more).id
        fake_clock.advance(minutes=1)
    elsewhere = factories.organization("Elsewhere")
    _, theirs = factories.api_key(elsewhere, "Claude"), factories.member(elsewhere, name="Noor")
    recorded(Actor.of_member(theirs, ORIGIN), Action.BOOKING_VIEWED, target=_thing("booking", 7))
    for q, expected in (
        ("claude", "path revoked date booking"),
        ("CLAUDE 100%", "path revoked date booking"),
        ("%", "path revoked date booking"),
        ("STRASSEN", "denied"),
        ("noor", "name revoked member"),
        ("noor_", "name revoked member"),
        ("booking 7", "booking"),
        ("  Booking   #7 ", "booking"),
        ("market date 7", "date"),
        ("7", "denied date booking"),  # the key has it in its name
        ("007", "date booking"),
        ("vendor 7", ""),
        ("key 7", ""),  # nobody is shown that number
        ("approved", "booking"),
        ("market_date", "date"),
        ("looked at a booking", "other"),
        ("192.0.2.7", "path date booking"),
        ("192.0.2", ""),
        ("2001:DB8:0::1", "denied"),
        (request_id, "revoked member"),
        (request_id.upper(), "revoked member"),
        (audit_log.new_request_id(), ""),
        ("/kasse%", "path"),
        ("get /Kasse", "path"),
        ("post /kasse", ""),
        ("/k_sse", ""),
        ("nothing like it", ""),
        ("Noor\0_1", "name revoked member"),
        ("\u200b", ""),
        ("9" * 18, ""),
    ):
        found = _found(organization, q)
        assert found == [made[name] for name in expected.split()], q
        assert audit_queries.count(db.session(), organization.id, Filter(q=q)) == Count(len(found))


def _thing(kind: str, number: int) -> Target:
    return Target(kind, number, f"{kind.replace('_', ' ')} {number}")


def test_a_key_is_found_by_a_name_that_it_had(organization: Organization) -> None:
    maya = factories.member(organization)
    key, _ = factories.api_key(organization, "Old Émile", creator=maya)
    lifecycle.rename(Actor.of_member(maya, ORIGIN), key.id, "Something else")
    called = recorded(Actor.of_key(key, ORIGIN)).id
    for name in ("old é", "something"):
        assert called in _found(organization, name), name


def test_an_id_of_a_request_from_before_is_found_too(organization: Organization) -> None:
    old = recorded(Actor.system(organization.id, Origin(request_id="59f04e7c2bd81a36"))).id
    assert _found(organization, "59F04E7C2BD81A36") == [old]
    assert _found(organization, "59f04e7c2bd81a37") == []


def test_ids_of_requests_sort_by_time_and_tell_it(fake_clock: Clock) -> None:
    ids = []
    for _ in range(3):
        ids.append(audit_log.new_request_id())
        began = audit_log.moment_of(ids[-1])
        assert began is not None
        assert abs(began - clock.now()) < timedelta(milliseconds=1)
        fake_clock.advance(seconds=0.001)
    assert ids == sorted(set(ids))
    assert len({audit_log.new_request_id() for _ in range(1_000)}) == 1_000
    for text in ("", "7", "!" * 16, ids[0][:8], ids[0] * 2, "é" * 16, "0" * 16, "v" * 16):
        assert audit_log.moment_of(text) is None, text


def test_what_very_many_have_in_their_names_is_found(organization: Organization) -> None:
    keys = [factories.api_key(organization, f"Stall {n}")[0] for n in range(search.WAYS_MAX + 1)]
    maya = factories.member(organization)
    with transaction() as session:
        made = [
            audit_log.record(session, Actor.of_key(key, ORIGIN), Action.BOOKING_LISTED)
            for key in keys
        ]
        by_maya = Actor.of_member(maya, ORIGIN)
        made.append(
            audit_log.record(session, by_maya, Action.KEY_REVOKED, lifecycle.target(keys[9]))
        )
        audit_log.record(session, by_maya, Action.BOOKING_LISTED)
    assert _found(organization, "stall") == made[::-1]


@pytest.mark.parametrize("stretch", [1, 3, 1_000])
def test_several_parts_find_what_looking_at_each_event_finds(
    organization: Organization,
    fake_clock: Clock,
    stretch: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(audit_queries, "STRETCH_FIRST", stretch)
    monkeypatch.setattr(audit_queries, "STRETCH", stretch)
    monkeypatch.setattr(audit_queries, "LOOK_MAX", 0 if stretch == 1 else 60)
    choose = random.Random(7)  # noqa: S311
    events = _random_log(organization, fake_clock, choose)
    paused = several = 0
    for _ in range(60):
        wanted = _random_filter(events, choose)
        expected = [
            event.id
            for event in events
            if all(CONDITIONS[name](event, value) for name, value in wanted.items())
        ]
        found, before = [], None
        while True:
            page = audit_queries.page(
                db.session(), organization.id, Filter(**wanted), before=before, limit=4
            )
            found += [event.id for event in page.events]
            paused += page.looked_to is not None
            before = page.before
            if before is None:
                break
            assert page.looked_to is not None or len(page.events) == 4
        assert found == expected, wanted
        several += len(wanted) > 1
        counted = audit_queries.count(db.session(), organization.id, Filter(**wanted))
        if counted.unfinished:
            assert counted.number <= len(expected)
        else:
            assert counted == Count(len(expected))
    assert several > 30
    assert (paused > 0) == (stretch == 1)


def test_the_part_with_the_fewest_events_leads(
    organization: Organization, fake_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_queries, "STRETCH_FIRST", 4)
    monkeypatch.setattr(audit_queries, "LOOK_MAX", 0)
    rare, _ = factories.api_key(organization, "Rare stall")
    common, _ = factories.api_key(organization, "Common stall")
    sought = recorded(Actor.of_key(rare, ORIGIN)).id
    for _ in range(9):
        fake_clock.advance(minutes=1)
        recorded(Actor.of_key(common, ORIGIN))

    def page(**wanted: Any) -> audit_queries.Page:
        return audit_queries.page(
            db.session(), organization.id, Filter(**wanted), before=None, limit=5
        )

    found = page(key=rare.id, action=Action.BOOKING_LISTED)
    assert [event.id for event in found.events] == [sought]
    assert found.looked_to is None
    # Of what has four ways, no more than a quarter of a stretch is looked through on each.
    recorded(Actor.of_key(rare, ORIGIN), Action.BOOKING_VIEWED)
    newest = recorded(Actor.of_key(rare, ORIGIN), Action.VENDOR_LISTED)
    found = page(q="stall", outcome="ok")
    assert ([event.id for event in found.events], found.looked_to) == ([newest.id], newest.at)


def _random_log(
    organization: Organization, fake_clock: Clock, choose: random.Random
) -> list[AuditEvent]:
    keys = [factories.api_key(organization, name)[0] for name in ("Anna", "Bela")]
    members = [factories.member(organization, name=name) for name in ("Chris", "Dora")]
    with transaction() as session:
        for number in range(80):
            actor = choose.choice([*map(_by_key, keys), *map(_by_member, members)])
            action = choose.choice([Action.BOOKING_VIEWED, Action.VENDOR_LISTED])
            target = choose.choice([None, _thing("booking", 1), _thing("vendor", 1)])
            audit_log.record(session, actor, action, target, choose.choice(list(Outcome)))
            fake_clock.advance(seconds=number % 3 // 2)  # three have the same time
    rows = select(AuditEvent).where(AuditEvent.organization_id == organization.id)
    newest = rows.order_by(AuditEvent.at.desc(), AuditEvent.id.desc())
    return list(db.session.scalars(newest))


def _by_key(key: Any) -> Actor:
    return Actor.of_key(key, ORIGIN)


def _by_member(member: Any) -> Actor:
    return Actor.of_member(member, Origin("203.0.113.9"))


def _random_filter(events: list[AuditEvent], choose: random.Random) -> dict[str, Any]:
    """Some parts, each as in some event, so that most of them have something in common or nothing."""

    def moment() -> datetime:
        return choose.choice(events).at

    parts: dict[str, Any] = {
        "key": choose.choice([e.key_id for e in events if e.key_id]),
        "member": choose.choice([e.member_id for e in events if e.member_id]),
        "action": choose.choice(events).action,
        "outcome": choose.choice(events).outcome,
        "since": moment(),
        "until": moment(),
        "q": choose.choice(["booking 1", "vendor 1", "Anna", "Dora", ORIGIN.ip, "203.0.113.9"]),
    }
    return {name: parts[name] for name in choose.sample(sorted(parts), choose.randint(0, 4))}


def test_days_are_counted_where_several_parts_have_to_be_met(
    organization: Organization, fake_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, _ = factories.api_key(organization)
    began, hour = fake_clock(), timedelta(hours=1)
    for _ in range(3):
        recorded(Actor.system(organization.id))
        recorded(Actor.of_key(key, ORIGIN), outcome=Outcome.DENIED)
        recorded(Actor.of_key(key, ORIGIN))
        fake_clock.advance(minutes=40)
    spans = [(began + hour * n, began + hour * (n + 1)) for n in (1, 0, 2)]
    wanted = Filter(key=key.id, outcome="ok")

    def counts(cap: int) -> list[int]:
        return audit_queries.count_spans(db.session(), organization.id, wanted, spans, cap)

    assert counts(9) == [1, 2, 0]
    assert counts(1) == [1, 1, 0]
    monkeypatch.setattr(audit_queries, "STRETCH_FIRST", 1)
    monkeypatch.setattr(audit_queries, "LOOK_MAX", 0)
    assert counts(9) == [0, 0, 0]
