"""The REST API, made from the operations table."""

from flask import Flask

from convene_keys.api import openapi
from convene_keys.api.problems import problem_document
from convene_keys.api.routes import blueprint
from convene_keys.extensions import csrf

__all__ = ["init_app", "problem_document"]


def init_app(app: Flask) -> None:
    app.register_blueprint(blueprint)
    app.register_blueprint(openapi.blueprint)
    csrf.exempt(blueprint)  # a key in a header is not sent by a browser on its own
