"""`GET /auth/verify`: whether a proxy in front of another site may let a key's request through.

For nginx's `auth_request`, Caddy's `forward_auth` and Traefik's ForwardAuth.
"""

import re
from functools import partial
from urllib.parse import quote

from convene_keys.errors import Forbidden
from convene_keys.http.answers import NO_STORE, Answer
from convene_keys.http.key_app import KeyApp, KeyRequest
from convene_keys.operations import runner, table

URI_MAX = 2_000
# Caddy and Traefik send the first two; for nginx it is a habit to send the others.
PAIRS = (("X-Forwarded-Method", "X-Forwarded-Uri"), ("X-Original-Method", "X-Original-URI"))
_METHOD = re.compile(r"[A-Z][A-Z-]{0,15}")


def init_app(key_app: KeyApp) -> None:
    key_app.add(table.VERIFY, "forward_auth.verify", verify, ["GET"])


def verify(request: KeyRequest) -> Answer:
    """What the proxy hands on is in headers; a name can be in any script, so it is encoded."""
    key = runner.verify(request.caller, partial(_asked, request))
    headers = (
        ("X-Convene-Organization", key.organization_slug),
        ("X-Convene-Key-Id", str(key.id)),
        ("X-Convene-Key-Name", quote(key.name, safe="")),
        ("X-Convene-Scope", str(key.scope)),
        NO_STORE,
    )
    return Answer(b"", 204, headers)


def _asked(request: KeyRequest) -> tuple[str, str]:
    """The method and the URI that the proxy was asked for.

    Raises `Forbidden`, as nginx knows no other refusal, unless they are told whole and once. A pair
    that the proxy did not set is the client's own, and would decide what a key may do.
    """
    told = {(request.headers.get(m, ""), request.headers.get(u, "")) for m, u in PAIRS}
    told -= {("", "")}
    if len(told) != 1:
        raise _invalid("The proxy must tell method and URI, in one pair of headers and no other.")
    method, uri = told.pop()
    if not _METHOD.fullmatch(method):
        raise _invalid("The proxy tells no method, or none that can be.")
    if not uri.startswith("/") or len(uri) > URI_MAX:
        raise _invalid(f"The proxy must tell a URI from its path on, up to {URI_MAX:,} characters.")
    return method, uri


def _invalid(detail: str) -> Forbidden:
    return Forbidden(detail, code="forwarded_invalid")
