"""The Model Context Protocol, made from the operations table."""

from flask import Flask

from convene_keys.http.extensions import csrf
from convene_keys.http.key_app import KeyApp
from convene_keys.mcp.routes import PATH, blueprint, exchange, refusal, refuse

__all__ = ["PATH", "init_app", "refusal"]


def init_app(app: Flask, key_app: KeyApp) -> None:
    app.register_blueprint(blueprint)
    csrf.exempt(blueprint)  # nothing in it changes anything
    key_app.add(PATH, "mcp.exchange", exchange, ["POST"], refuse=refuse)
