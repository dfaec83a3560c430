"""What a long list costs: its queries walk an index, and neither read nor sort the rest."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import event, text
from sqlalchemy.orm import Session

from convene_keys import clock
from convene_keys.audit import export, seals, verification
from convene_keys.audit import queries as audit_queries
from convene_keys.audit.actions import Action
from convene_keys.audit.log import Actor, new_request_id, record
from convene_keys.audit.queries import Filter
from convene_keys.checkup import findings
from convene_keys.db.session import db, transaction
from convene_keys.keys import queries as key_queries
from tests import factories

NOW = clock.now()
DAYS = [(NOW - timedelta(days=1), NOW), (NOW, NOW + timedelta(days=1))]
READS: dict[str, Callable[[Session, int, int], Any]] = {
    "audit log": lambda s, of, last: audit_queries.page(s, of, Filter(), before=None, limit=50),
    "audit log, older": lambda s, of, last: audit_queries.page(
        s, of, Filter(), before=last, limit=50
    ),
    "of a key": lambda s, of, last: audit_queries.page(s, of, Filter(key=1), before=None, limit=50),
    "of a key, older": lambda s, of, last: audit_queries.page(
        s, of, Filter(key=1), before=last, limit=50
    ),
    "of an action": lambda s, of, last: audit_queries.page(
        s, of, Filter(action="key.created"), before=None, limit=50
    ),
    "of a member": lambda s, of, last: audit_queries.page(
        s, of, Filter(member=1), before=None, limit=50
    ),
    "of a member, older": lambda s, of, last: audit_queries.page(
        s, of, Filter(member=1), before=last, limit=50
    ),
    "of an outcome": lambda s, of, last: audit_queries.page(
        s, of, Filter(outcome="denied"), before=None, limit=50
    ),
    "of an outcome, older": lambda s, of, last: audit_queries.page(
        s, of, Filter(outcome="denied"), before=last, limit=50
    ),
    "what went well": lambda s, of, last: audit_queries.page(
        s, of, Filter(outcome="ok"), before=None, limit=50
    ),
    "count": lambda s, of, last: audit_queries.count(s, of, Filter()),
    "count of a key": lambda s, of, last: audit_queries.count(s, of, Filter(key=1)),
    "days": lambda s, of, last: audit_queries.count_spans(s, of, Filter(), DAYS, 9),
    "days of a key": lambda s, of, last: audit_queries.count_spans(s, of, Filter(key=1), DAYS, 9),
    "days of many keys": lambda s, of, last: audit_queries.count_key_spans(s, of, [1, 2], DAYS, 9),
    "export": lambda s, of, last: list(export.export(s, of, Filter(key=1))),
    "seal": lambda s, of, last: verification.glance(s, of),
    "keys": lambda s, of, last: key_queries.list_keys(s, of),
    "keys by name": lambda s, of, last: key_queries.list_keys(s, of, sort="name", descending=False),
    "first of a key": lambda s, of, last: audit_queries.first(s, of, Filter(key=1)),
    "newest key": lambda s, of, last: key_queries.newest(s, of),
    "keys, all": lambda s, of, last: key_queries.list_keys(s, of, status="all"),
    "keys that expire": lambda s, of, last: key_queries.expiring(s, of),
    "check-up": lambda s, of, last: findings.run(s, of),
}


@pytest.fixture
def organization_id(app: Flask) -> int:
    organization = factories.organization()
    factories.api_key(organization, expires_at=clock.now() + timedelta(days=1))
    with transaction() as session:
        record(session, Actor.system(organization.id), Action.SAMPLE_DATA_MADE)
    seals.seal()
    return organization.id


@pytest.fixture
def asked(app: Flask) -> Iterator[list[tuple[str, Any]]]:
    """Each statement that is sent to the database, with its parameters."""
    statements: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        statements.append((statement, parameters))

    event.listen(db.engine, "before_cursor_execute", note)
    yield statements
    event.remove(db.engine, "before_cursor_execute", note)


@pytest.mark.parametrize("read", READS.values(), ids=READS.keys())
def test_reads_along_an_index(
    organization_id: int, asked: list[tuple[str, Any]], read: Callable[..., Any]
) -> None:
    session = db.session()
    last = session.scalar(text("SELECT max(id) FROM audit_event"))
    asked.clear()
    read(session, organization_id, last)
    session.rollback()
    selects = [each for each in asked if each[0].lstrip().startswith(("SELECT", "WITH"))]
    assert selects
    for statement, parameters in selects:
        plan = _plan(statement, parameters)
        for bad in ("Seq Scan on audit", "Seq Scan on api_key", "Sort", "SCAN a", "TEMP B-TREE"):
            assert bad not in plan.replace("SCAN anon_1", ""), f"{statement}\n{plan}"


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        (Filter(member=1), "member_id"),
        (Filter(outcome="denied"), "outcome"),
        (Filter(outcome="failed"), "outcome"),
    ],
)
def test_an_index_of_some_rows_serves_who_seeks_those(
    organization_id: int, asked: list[tuple[str, Any]], wanted: Filter, index: str
) -> None:
    for statements in _of_page_and_count(organization_id, asked, wanted):
        statement, parameters = statements[0]
        assert f"organization_id_{index}_at_id" in _plan(statement, parameters)


@pytest.mark.parametrize(
    "wanted",
    [
        Filter(key=1, action="key.created"),
        Filter(key=1, outcome="ok"),
        Filter(member=1, outcome="denied", since=NOW - timedelta(days=1)),
        Filter(q="booking 1"),
        Filter(q="Claude"),
        Filter(q="approved", key=1),
        Filter(q="/wiki"),
        Filter(q="192.0.2.1"),
        Filter(q=new_request_id()),
    ],
    ids=lambda wanted: "+".join(name for name, value in vars(wanted).items() if value),
)
def test_several_parts_and_what_is_typed_are_found_by_indices(
    organization_id: int, asked: list[tuple[str, Any]], wanted: Filter
) -> None:
    """What is then sorted is no more than a stretch of the log."""
    for statements in _of_page_and_count(organization_id, asked, wanted):
        for statement, parameters in statements:
            plan = _plan(statement, parameters)
            for bad in ("Seq Scan on audit", "SCAN audit_event"):
                assert bad not in plan, f"{statement}\n{plan}"


def _of_page_and_count(
    organization_id: int, asked: list[tuple[str, Any]], wanted: Filter
) -> Iterator[list[tuple[str, Any]]]:
    """What the page of some events asks of the log, and then what their count asks."""
    session = db.session()
    for read in (
        lambda: audit_queries.page(session, organization_id, wanted, before=None, limit=50),
        lambda: audit_queries.count(session, organization_id, wanted),
    ):
        asked.clear()
        read()
        session.rollback()
        statements = [each for each in asked if "FROM audit_event" in each[0]]
        assert statements
        yield statements


def _plan(statement: str, parameters: Any) -> str:
    """How the database goes about it. PostgreSQL is told that the tables are not as small as here."""
    connection = db.session.connection()
    explain = "EXPLAIN QUERY PLAN "
    if connection.dialect.name == "postgresql":
        explain = "EXPLAIN "
        for way in ("seqscan", "sort", "bitmapscan"):
            connection.exec_driver_sql(f"SET LOCAL enable_{way} = off")
    lines = [str(row[-1]) for row in connection.exec_driver_sql(explain + statement, parameters)]
    db.session.rollback()
    return "\n".join(lines)
