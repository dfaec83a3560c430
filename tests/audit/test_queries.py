"""The log as it is read: filtered, counted, and page by page."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from convene_keys import clock
from convene_keys.audit import queries as audit_queries
from convene_keys.audit.log import Actor
from convene_keys.audit.queries import Count, Filter
from convene_keys.db.session import db
from convene_keys.errors import Malformed
from convene_keys.models import AuditEvent, Organization
from tests import factories
from tests.audit.conftest import ORIGIN, fill, recorded
from tests.conftest import Clock


def _ids(organization: Organization, **wanted: Any) -> list[int]:
    found = audit_queries.page(
        db.session(), organization.id, Filter(**wanted), before=None, limit=1_000
    )
    return [event.id for event in found.events]


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


def test_count_tells_how_many_and_stops_at_the_cap(
    organization: Organization, varied: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for cap, expected in ((4, Count(4)), (3, Count(3, capped=True)), (1, Count(1, capped=True))):
        monkeypatch.setattr(audit_queries, "COUNT_CAP", cap)
        assert audit_queries.count(db.session(), organization.id, Filter()) == expected
    assert audit_queries.count(db.session(), organization.id, Filter(outcome="failed")) == Count(0)


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
        recorded(Actor.of_key(key, ORIGIN))
    now, day = fake_clock(), timedelta(days=1)
    ids = [busy.id, idle.id, foreign.id]
    found = audit_queries.count_key_spans(
        db.session(), organization.id, ids, [(now - day, now), (now, now + day)], 9
    )
    assert found == {busy.id: [0, 2], idle.id: [0, 0], foreign.id: [0, 0]}


@pytest.mark.parametrize("wanted", [Filter(), Filter(outcome="denied")])
@pytest.mark.parametrize("limit", [1, 4, 100])
def test_pages_are_complete_and_do_not_overlap(
    organization: Organization, fake_clock: Clock, wanted: Filter, limit: int
) -> None:
    fill(organization, 23)
    fill(factories.organization(), 5)
    found: list[AuditEvent] = []
    before: int | None = None
    while True:
        page = audit_queries.page(db.session(), organization.id, wanted, before=before, limit=limit)
        events, before = page.events, page.before
        assert 0 < len(events) <= limit
        found += events
        assert len(found) <= 23, "a page came twice"
        if before is None:
            break
        assert before == events[-1].id
        if len(found) == limit:
            fake_clock.advance(days=1)
            recorded(Actor.system(organization.id))  # a new event moves no later page
    assert len(found) == (12 if wanted.outcome else 23)
    places = [(event.at, event.id) for event in found]
    assert places == sorted(places, reverse=True)
    assert len(set(places)) == len(places)


def test_unknown_or_foreign_cursor_is_refused(organization: Organization) -> None:
    foreign = recorded(Actor.system(factories.organization().id))
    for cursor in (foreign.id, 0, -1, 10**9):
        with pytest.raises(Malformed) as info:
            audit_queries.page(db.session(), organization.id, Filter(), before=cursor, limit=5)
        assert info.value.code == "invalid_cursor"
