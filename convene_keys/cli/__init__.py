"""The `flask --app wsgi …` commands: for whoever hosts the product, and for its own Makefile."""

from flask import Flask

from convene_keys.cli import audit, demo, doctor, keys, organizations


def init_app(app: Flask) -> None:
    for command in (
        organizations.organization,
        organizations.member,
        organizations.sample_data,
        organizations.setup_link,
        keys.keys,
        audit.audit,
        doctor.doctor,
        demo.demo,
    ):
        app.cli.add_command(command)
