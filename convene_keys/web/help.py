"""How to look after keys, in plain words, for whoever asks."""

from flask import Blueprint, Response

from convene_keys.http.access import Access, access
from convene_keys.web.respond import page

blueprint = Blueprint("help", __name__, url_prefix="/help")


@blueprint.get("/keys")
@access(Access.OPEN)
def keys() -> Response:
    """Shows nobody's data, so that it can be read before the first sign-in, and sent to others."""
    return page("help/keys.html")
