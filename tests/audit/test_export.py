"""The log as it is taken away: whole, in batches, as CSV and as JSON lines."""

import csv
import io
import json
from collections.abc import Iterator, Sequence

import pytest
from flask import Flask
from sqlalchemy import event as listening

from convene_keys.audit import export
from convene_keys.audit.log import Actor, Origin, Target
from convene_keys.audit.queries import Filter
from convene_keys.db.session import db
from convene_keys.models import AuditEvent, Organization
from tests import factories
from tests.audit.conftest import fill, recorded
from tests.conftest import Clock


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
    fill(organization, 25)
    fill(factories.organization(), 5)
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
    fill(organization, 5, per_moment=1)
    fake_clock.advance(minutes=1)
    seen, system = 0, Actor.system(organization.id)
    for _ in export.export(db.session(), organization.id, Filter()):
        seen += 1
        assert seen <= 5, "it never ends"
        fake_clock.advance(seconds=1)
        recorded(system)
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
    event = recorded(Actor.system(organization.id), target=Target("x", 1, name), detail={"é": 1})
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
    event = recorded(actor, target=Target("x", text, text))
    row = dict(zip(*_csv([event]), strict=True))
    for column in ("user_agent", "target_id", "target_name"):
        assert row[column] == f"'{text}"


def test_csv_leaves_numbers_and_plain_text_alone(organization: Organization) -> None:
    event = recorded(Actor.system(organization.id), target=Target("x", 1, "a=b"))
    row = dict(zip(*_csv([event]), strict=True))
    assert row["target_name"] == "a=b"
    assert row["id"] == str(event.id)


def test_jsonl_is_a_json_object_a_line(organization: Organization) -> None:
    events = [
        recorded(Actor.system(organization.id), target=Target("x", 1, f"é\n\u2028 {index}"))
        for index in range(3)
    ]
    lines = list(export.jsonl_lines(iter(events)))
    assert [json.loads(line) for line in lines] == [export.as_dict(event) for event in events]
    assert all(line.endswith("\n") and line.count("\n") == 1 for line in lines)
    assert list(json.loads(lines[0])) == list(export.COLUMNS)
