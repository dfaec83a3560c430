"""The `flask --app wsgi …` commands: for whoever hosts the product, and for its own Makefile."""

from pathlib import Path

from flask import Flask
from flask_migrate import Migrate

from convene_keys.cli import audit, demo, doctor, keys, move, organizations
from convene_keys.db.session import db

MIGRATIONS = Path(__file__).resolve().parent.parent.parent / "migrations"


def init_app(app: Flask) -> None:
    Migrate(app, db, directory=str(MIGRATIONS))
    for command in (
        organizations.organization,
        organizations.member,
        organizations.sample_data,
        organizations.setup_link,
        keys.keys,
        audit.audit,
        doctor.doctor,
        move.move_database,
        demo.demo,
    ):
        app.cli.add_command(command)
