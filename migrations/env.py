"""Alembic's environment: the application's own models, on its engine or a connection handed in."""

from contextlib import nullcontext

from alembic import context
from flask import current_app

from convene_keys.db.session import Base, db


def run() -> None:
    if context.is_offline_mode():
        raise SystemExit("Migrations need a database to run on; SQL scripts are not made.")
    arguments = current_app.extensions["migrate"].configure_args
    given = context.config.attributes.get("connection")
    with nullcontext(given) if given else db.engine.connect() as connection:
        connection = connection.execution_options(sqlite_begin="IMMEDIATE")
        context.configure(connection=connection, target_metadata=Base.metadata, **arguments)
        with context.begin_transaction():
            context.run_migrations()


run()
