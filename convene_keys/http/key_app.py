"""The WSGI application that keys call, in front of the one for people.

A key's call needs no session, cookie, form or template, and here none is in reach: no context of
Flask's is open. Flask's map has all addresses, so that none is there twice; what is not a key's
goes on to Flask, and so does what is asked for by a method that its address does not take.
"""

from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from typing import NamedTuple
from wsgiref.types import StartResponse, WSGIEnvironment

from flask import Flask
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Request

from convene_keys.errors import Problem
from convene_keys.http import access
from convene_keys.http.answers import Answer, problem_document, problem_of
from convene_keys.http.request_body import FORM_MAX
from convene_keys.operations.runner import Caller, Site


class KeyRequest(Request):
    """A request to an address of keys, and who makes it."""

    max_content_length = max_form_memory_size = FORM_MAX

    def __init__(self, environ: WSGIEnvironment, site: Site) -> None:
        super().__init__(environ)
        token, origin = access.presented_key(environ) or "", access.origin_of(environ)
        self.caller = Caller(site, token, origin)


View = Callable[..., Answer]  # of the request and what is variable in the address
Refuse = Callable[[KeyRequest, Problem], Answer]


def refuse(request: KeyRequest, problem: Problem) -> Answer:
    caller = request.caller
    return problem_document(problem, caller.origin.request_id, caller.site.url)


class _Route(NamedTuple):
    view: View
    refuse: Refuse


class KeyApp:
    def __init__(self, app: Flask, site: Site, headers: Sequence[tuple[str, str]]) -> None:
        """`headers` are those that every answer carries."""
        self._app, self._others, self._site, self._headers = app, app.wsgi_app, site, headers
        self._addresses = app.url_map.bind("")
        self._routes: dict[str, _Route] = {}

    def add(
        self,
        path: str,
        endpoint: str,
        view: View,
        methods: Sequence[str],
        *,
        refuse: Refuse = refuse,
        defaults: dict[str, str] | None = None,
    ) -> None:
        self._app.add_url_rule(
            path, endpoint, methods=methods, defaults=defaults, provide_automatic_options=False
        )
        self._routes[endpoint] = _Route(view, refuse)

    def __contains__(self, endpoint: str) -> bool:
        """Whether an endpoint of Flask's map is one of keys."""
        return endpoint in self._routes

    def __call__(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"].encode("latin-1").decode(errors="replace")  # as Flask reads it
        try:
            endpoint, values = self._addresses.match(path, environ["REQUEST_METHOD"])
        except HTTPException:
            return self._others(environ, start)
        route = self._routes.get(endpoint)
        if route is None:
            return self._others(environ, start)
        request = KeyRequest(environ, self._site)
        try:
            access.refuse_key_outside_header(request, access.Access.KEY)
            answer = route.view(request, **values)
        except Exception as error:  # noqa: BLE001  whatever it is has an answer
            answer = route.refuse(request, problem_of(error))
        return self._answered(request, answer, start)

    def _answered(
        self, request: KeyRequest, answer: Answer, start: StartResponse
    ) -> Iterable[bytes]:
        caller = request.caller
        headers = [
            *answer.headers,
            *self._headers,
            ("X-Request-Id", caller.origin.request_id or ""),
        ]
        if caller.standing is not None:
            headers += caller.standing.headers
        if answer.status != HTTPStatus.NO_CONTENT:
            headers.append(("Content-Length", str(len(answer.body))))
        start(_STATUS_LINES[answer.status], headers)
        return [] if request.method == "HEAD" else [answer.body]


_STATUS_LINES = {status.value: f"{status.value} {status.phrase.upper()}" for status in HTTPStatus}
