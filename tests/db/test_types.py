"""Column types: both kinds of database give back what was put in, and keep it in one form."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import Column, Connection, MetaData, Table, Text, cast, insert, literal, select
from sqlalchemy.types import TypeEngine

from convene_keys.db.session import db
from convene_keys.db.types import BigId, JSONText, UTCDateTime

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


def made(connection: Connection, kind: TypeEngine[Any]) -> Table:
    """A table of values of this type, which lasts as long as the connection."""
    columns = Column("id", BigId, primary_key=True), Column("value", kind)
    table = Table("kept", MetaData(), *columns, prefixes=["TEMPORARY"])
    table.create(connection)
    return table


@pytest.mark.parametrize(
    "moment",
    [
        NOON,
        NOON + timedelta(microseconds=1),
        NOON.astimezone(timezone(timedelta(hours=9, minutes=30))),
        datetime(2026, 3, 29, 3, 30, tzinfo=timezone(timedelta(hours=2))),
        None,
    ],
)
def test_a_moment_comes_back_in_utc(app: Flask, moment: datetime | None) -> None:
    with db.engine.connect() as connection:
        table = made(connection, UTCDateTime())
        connection.execute(insert(table).values(value=moment))
        found = connection.scalar(select(table.c.value))
        assert found == moment
        assert found is None or found.tzinfo is UTC


def test_moments_of_several_zones_are_compared_and_sorted_as_moments(app: Flask) -> None:
    """SQLite compares them as text."""
    west, east = (timezone(timedelta(hours=hours)) for hours in (-8, 9))
    moments = [
        (NOON - timedelta(microseconds=1)).astimezone(east),
        NOON,
        (NOON + timedelta(microseconds=1)).astimezone(west),
        (NOON + timedelta(seconds=1)).astimezone(east),
    ]
    with db.engine.connect() as connection:
        table = made(connection, UTCDateTime())
        rows = [{"value": moment} for moment in reversed(moments)]
        connection.execute(insert(table), rows)
        value = table.c.value
        assert list(connection.scalars(select(value).order_by(value))) == moments
        later = select(value).where(value > NOON.astimezone(west)).order_by(value)
        assert list(connection.scalars(later)) == moments[2:]


def test_rows_are_numbered_by_the_database_beyond_32_bits(app: Flask) -> None:
    with db.engine.connect() as connection:
        table = made(connection, Text())
        connection.execute(insert(table).values(value="the first"))
        connection.execute(insert(table).values(id=2**40, value="a far one"))
        assert list(connection.scalars(select(table.c.id).order_by(table.c.id))) == [1, 2**40]


@pytest.mark.parametrize("text", ['{"b": 1,  "a": [null, "\\u00e9"]}', '{"a": "é", "a": 2}', "{}"])
def test_json_that_is_text_already_is_kept_as_it_is(app: Flask, text: str) -> None:
    with db.engine.connect() as connection:
        table = made(connection, JSONText())
        connection.execute(insert(table).values(value=literal(text, JSONText())))
        assert connection.scalar(select(cast(table.c.value, Text))) == text
