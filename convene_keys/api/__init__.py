"""The REST API, made from the operations table, and what a proxy asks."""

from flask import Flask

from convene_keys.api import forward_auth, leaks, openapi
from convene_keys.api.problems import problem_document
from convene_keys.api.routes import blueprint
from convene_keys.http.extensions import csrf

__all__ = ["init_app", "problem_document"]


def init_app(app: Flask) -> None:
    app.register_blueprint(blueprint)
    app.register_blueprint(openapi.blueprint)
    app.register_blueprint(forward_auth.blueprint)
    leaks.init_app(app)
    csrf.exempt(blueprint)  # a key in a header is not sent by a browser on its own
