"""What every answer carries, whoever made it."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

from flask import Flask, g

from convene_keys.http import access
from convene_keys.operations.runner import Caller

Write = Callable[[bytes], object]

# Nothing is loaded from elsewhere, nothing runs inline, nobody frames these pages.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
# Every power of a browser that a page may ask for, closed, but for the button that copies a key.
# Only what browsers know: for any other name they complain in the console.
CLOSED = (
    "accelerometer autoplay browsing-topics camera clipboard-read display-capture "
    "encrypted-media fullscreen gamepad geolocation gyroscope hid identity-credentials-get "
    "idle-detection keyboard-map local-fonts magnetometer microphone midi otp-credentials "
    "payment picture-in-picture publickey-credentials-create publickey-credentials-get "
    "screen-wake-lock serial storage-access sync-xhr usb window-management "
    "xr-spatial-tracking"
)
PERMISSIONS = ", ".join(
    [*(f"{feature}=()" for feature in CLOSED.split()), "clipboard-write=(self)"]
)
HEADERS = (
    ("Content-Security-Policy", POLICY),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Permissions-Policy", PERMISSIONS),
    ("Referrer-Policy", "same-origin"),
    ("X-Content-Type-Options", "nosniff"),
)
HSTS = ("Strict-Transport-Security", "max-age=63072000; includeSubDomains")


def of_every_answer(*, secure: bool) -> Sequence[tuple[str, str]]:
    return (*HEADERS, HSTS) if secure else HEADERS


def init_app(app: Flask, fixed: Sequence[tuple[str, str]]) -> None:
    """Add them around the application, where no view and no error can miss them."""
    inner = app.wsgi_app

    def with_headers(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        def started(status: str, given: list[tuple[str, str]], *error: Any) -> Write:
            caller: Caller | None = g.get("caller")
            limit = caller.standing.headers if caller and caller.standing else ()
            request_id = ("X-Request-Id", access.origin().request_id or "")
            return start(status, [*given, *fixed, request_id, *limit], *error)

        return inner(environ, started)

    app.wsgi_app = with_headers  # type: ignore[assignment]
