"""The REST API, made from the operations table, and what a proxy asks."""

from flask import Flask

from convene_keys.api import forward_auth, leaks, openapi, routes
from convene_keys.http.key_app import KeyApp


def init_app(app: Flask, key_app: KeyApp) -> None:
    app.register_blueprint(openapi.blueprint)
    routes.init_app(key_app)
    forward_auth.init_app(key_app)
    leaks.init_app(app, key_app)
