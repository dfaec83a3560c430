"""A whole installation from SQLite into another database: copied, compared, and only then kept."""

from itertools import zip_longest

import click
from alembic import command
from flask import current_app
from flask.cli import with_appcontext
from sqlalchemy import (
    Connection,
    Result,
    Table,
    create_engine,
    func,
    insert,
    inspect,
    literal,
    select,
    text,
)
from sqlalchemy import table as named

from convene_keys import config
from convene_keys.cli import doctor
from convene_keys.cli.types import Command
from convene_keys.db.session import Base, db, prepare_sqlite, transaction

ROWS = 200  # in memory at a time
TABLES = Base.metadata.sorted_tables  # what is pointed to comes first


@click.command("move-database", cls=Command)
@click.option("--to", "url", required=True, help="The empty database, as in DATABASE_URL.")
@with_appcontext
def move_database(url: str) -> None:
    """Copy everything from the SQLite database in use to an empty one; print how many rows.

    Writers wait while it runs, every value is compared after the copy, and a move that fails leaves
    nothing behind.
    """
    try:
        url = config.database_url(url, "--to")
    except config.ConfigError as error:
        raise click.ClickException(str(error)) from None
    if db.engine.dialect.name != "sqlite":
        raise click.ClickException("Only SQLite is moved. From PostgreSQL, use pg_dump.")
    if url == current_app.config["SETTINGS"].database_url:
        raise click.ClickException("--to is the database that is in use now.")
    level, said = doctor.database()
    if level is not doctor.Level.OK:
        raise click.ClickException(said)
    engine = create_engine(
        url, hide_parameters=True, execution_options={"sqlite_begin": "IMMEDIATE"}
    )
    prepare_sqlite(engine)
    try:
        with transaction() as session, engine.begin() as target:
            source = session.connection()
            _refuse_unless_empty(target)
            migrations = current_app.extensions["migrate"].migrate.get_config()
            migrations.attributes["connection"] = target
            command.upgrade(migrations, "head")
            for table in TABLES:
                for rows in _rows(table, source).partitions():
                    target.execute(insert(table), [dict(row._mapping) for row in rows])
            counts = {table.name: _compare(table, source, target) for table in TABLES}
            _go_on_numbering(source, target)
    finally:
        engine.dispose()
    for name, count in counts.items():
        click.echo(f"{name}: {count}")


def _refuse_unless_empty(target: Connection) -> None:
    for name in sorted({*inspect(target).get_table_names()} - {"alembic_version"}):
        if target.scalar(select(literal(1)).select_from(named(name)).limit(1)):
            raise click.ClickException(f"The target is not empty: it has rows in {name}.")


def _rows(table: Table, connection: Connection) -> Result[object]:
    """All rows, read bit by bit, in the order of the primary key."""
    every = select(table).order_by(*table.primary_key)
    return connection.execute(every.execution_options(yield_per=ROWS))


def _compare(table: Table, source: Connection, target: Connection) -> int:
    """How many rows there are on both sides, all alike in every value."""
    count = 0
    with _rows(table, source) as before, _rows(table, target) as after:
        for here, there in zip_longest(before, after):
            if here is None or there is None or tuple(here) != tuple(there):
                raise click.ClickException(
                    f"Row {count + 1} of {table.name} is not the same after the copy. "
                    "Nothing was moved."
                )
            count += 1
    return count


def _go_on_numbering(source: Connection, target: Connection) -> None:
    """New rows get the ids after the last one that was ever given."""
    rows = source.execute(text("SELECT name, seq FROM sqlite_sequence"))
    given = {name: last for name, last in rows}
    if target.dialect.name == "sqlite":
        target.execute(text("DELETE FROM sqlite_sequence"))
        for name, last in given.items():
            row = {"name": name, "last": last}
            target.execute(text("INSERT INTO sqlite_sequence VALUES (:name, :last)"), row)
        return
    for table in TABLES:
        if (column := table.autoincrement_column) is None:
            continue
        highest = target.scalar(select(func.max(column))) or 0
        if last := max(highest, given.get(table.name, 0)):
            sequence = func.pg_get_serial_sequence(table.name, column.name)
            target.execute(select(func.setval(sequence, last)))
