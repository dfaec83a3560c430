"""Whether the process lives, and whether it can work."""

from flask import Blueprint, Response
from sqlalchemy import text

from convene_keys.db.session import db
from convene_keys.http.access import Access, access

blueprint = Blueprint("health", __name__)


@blueprint.get("/healthz")
@access(Access.OPEN)
def healthz() -> Response:
    return Response("ok", mimetype="text/plain")


@blueprint.get("/readyz")
@access(Access.OPEN)
def readyz() -> Response:
    """200 when the database answers and has the tables, else 503."""
    db.session.execute(text("SELECT 1 FROM organization LIMIT 1"))
    return Response("ok", mimetype="text/plain")
