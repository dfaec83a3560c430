"""The Model Context Protocol, made from the operations table."""

from flask import Flask

from convene_keys.http.extensions import csrf
from convene_keys.mcp.routes import PATH, blueprint, refusal

__all__ = ["PATH", "init_app", "refusal"]


def init_app(app: Flask) -> None:
    app.register_blueprint(blueprint)
    csrf.exempt(blueprint)  # a key in a header is not sent by a browser on its own
